"""Changes to which fields records have, and splits of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import fsum
from typing import Any

import numpy as np

from .. import node
from ..driver import Check
from ..dtype import short
from ..errors import AlreadyExists, Invalid
from ..formats import zarr3
from . import grow, layout, schema
from .catalog import Catalog, arrays_of
from .rowset import All, Chosen, RowSet, Shuffled, as_numbers
from .table import Table, column_of


def parts(rows: RowSet, count: int, fractions: Mapping[str, float], seed: int) -> dict[str, RowSet]:
    """Disjoint parts of ``count`` rows in shuffled order. Each part's size is rounded so that
    sizes add up; fractions that sum to 1 leave no row out."""
    if not isinstance(fractions, Mapping) or not fractions:
        raise Invalid("split takes fractions by name: {'train': .9, 'val': .1}")
    if type(seed) is not int:
        raise Invalid(f"a seed is an integer, not {short(seed)}")
    values = [*fractions.values()]
    if (
        not all(isinstance(f, (int, float)) and 0 <= f <= 1 for f in values)
        or fsum(values) > 1 + 1e-9
    ):
        raise Invalid(
            f"fractions are between 0 and 1, and together at most 1, not {short(fractions)}"
        )
    ends = [min(count, round(fsum(values[: k + 1]) * count)) for k in range(len(values))]
    found: dict[str, RowSet] = {}
    for name, start, end in zip(fractions, [0, *ends], ends, strict=False):
        part = Shuffled(seed, count, start, end)
        if isinstance(rows, All):
            found[name] = part
        else:  # of a view that is itself a choice: the numbers
            positions = part.at(slice(0, end - start, 1), count)
            found[name] = Chosen(np.array(as_numbers(rows.at(positions, count)), np.int64))
    return found


def add(table: Table, path: str, field: Any, values: Any, how: Mapping[str, Any]) -> None:
    """Add a field: its arrays are stored first, then the document that names it."""
    fields = schema.parse({path: field})

    def change(before: Catalog, check: Check) -> Catalog:
        if path in before.fields:
            raise AlreadyExists(f"{table.where} has a field {path!r}; drop it, or choose a name")
        schema.check_paths({**before.fields, **fields})
        specs = dict(layout.specs(fields, before.rows, **how))
        driver, root = table.place
        if node.load_any(driver, f"{root}{path}/"):
            raise AlreadyExists(
                f"{table.where} holds a {path!r} that is no field of the records; choose another "
                "name, or delete it through open_group()"
            )
        driver.delete_prefix(f"{root}{path}/")  # what an attempt that failed has left
        if values is not None:
            arrays = [
                grow.member(driver, root, name, table.settings, specs[name])
                for name in arrays_of(path, fields[path])
            ]
            if len(arrays) == 2:  # its values are appended, which needs a document
                key = f"{root}{arrays_of(path, fields[path])[0]}/{zarr3.KEY}"
                driver.put(key, zarr3.encode(zarr3.array_document(arrays[0].spec)))
            column = column_of(path, fields[path], arrays)
            checked = column.checked(values, before.rows)
            arrays[-1][...] = column.reserve(checked)
            specs = {name: array.spec for name, array in zip(specs, arrays, strict=True)}
        return replace(before, fields={**before.fields, **fields}, specs={**before.specs, **specs})

    table.change(change)


def drop(table: Table, paths: list[str]) -> None:
    """Remove fields from the document, then what is stored of them."""

    def change(before: Catalog, check: Check) -> Catalog:
        fields = {name: f for name, f in before.fields.items() if name not in paths}
        if not fields:
            raise Invalid(f"{table.where} would be left without a field; delete the group instead")
        return _without(replace(before, fields=fields))

    table.change(change)
    for path in paths:
        table.delete(path)


def rename(table: Table, old: str, new: str) -> None:
    """Copy a field's chunks to another name, name it in the document, and delete the old ones."""
    paths = schema.chosen(table.fields, [old])
    if f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/"):
        raise Invalid(f"{old!r} cannot become {new!r}, which is or holds itself; use a third name")

    def named(path: str) -> str:
        return new + path[len(old) :]

    def change(before: Catalog, check: Check) -> Catalog:
        names = {path: named(path) for path in paths}
        taken = [n for n in names.values() if n in before.fields and n not in names]
        if taken:
            raise AlreadyExists(f"{table.where} has a field {taken[0]!r} already")
        fields = {names.get(path, path): field for path, field in before.fields.items()}
        schema.check_paths(fields)
        specs = {
            (named(name) if name == old or name.startswith(old + "/") else name): spec
            for name, spec in before.specs.items()
        }
        _copy(table, old, new, check)
        return _without(replace(before, fields=fields, specs=specs))

    table.change(change)
    table.delete(old)


def _copy(table: Table, old: str, new: str, check: Check) -> None:
    driver, root = table.place
    source, target = f"{root}{old}/", f"{root}{new}/"
    driver.delete_prefix(target)

    def chunks() -> Iterator[tuple[str, bytes]]:
        for key in driver.list(source):
            value = driver.get(key)
            if value is not None:
                check()
                yield target + key[len(source) :], bytes(value)

    driver.put_many(chunks())


def _without(catalog: Catalog) -> Catalog:
    """Only the arrays and groups that the fields need."""
    wanted = {n for path, field in catalog.fields.items() for n in arrays_of(path, field)}
    specs = {name: spec for name, spec in catalog.specs.items() if name in wanted}
    groups = {
        name: document
        for name, document in catalog.groups.items()
        if any(array.startswith(name + "/") for array in wanted)
    }
    return replace(catalog, specs=specs, groups=groups)
