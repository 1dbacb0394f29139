"""Changes to which fields records have, and splits of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import fsum
from typing import Any

from ..driver import Check
from ..engine.in_place.writing import check_in_place
from ..engine.resize import write_beyond
from ..errors import AlreadyExists, Conflict, Invalid, NotFound, short
from ..metadata import node, trailer, zarr3
from ..metadata.belongings import Belongings, look
from ..metadata.spec import ArraySpec
from ..metadata.trailer import Trailer
from ..metadata.unfinished import what_is_unfinished
from . import commit, layout, schema
from .catalog import Catalog, arrays_of, with_new_identities, with_row_sizes, with_value_counts
from .rowset import RowSet, ShuffledRows, split_part
from .table import Table, column_of


def split_rows(
    rows: RowSet, count: int, fractions: Mapping[str, float], seed: int
) -> dict[str, RowSet]:
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
        found[name] = split_part(rows, ShuffledRows(seed, count, start, end), count)
    return found


def add(table: Table, path: str, field: Any, values: Any, how: Mapping[str, Any]) -> None:
    """Add a field: its arrays are stored first, then the document that names it."""
    if isinstance(field, Mapping):
        raise Invalid(f"add the fields within {path!r} one by one, as {path + '/x'!r}")
    fields = schema.allowed(schema.parse({path: field}), table.settings.allow_pickle)

    driver, root = table.place

    def change(before: Catalog, check: Check) -> Catalog:
        if path in before.fields:
            raise AlreadyExists(f"{table.where} has a field {path!r}; drop it, or choose a name")
        schema.check_paths({**before.fields, **fields})
        for name in arrays_of(path, fields[path]):
            node.check_place(driver, f"{root}{name}/")
        step = min(layout.step_of(fields), *map(before.chunk_rows, before.fields))
        plain = driver.capabilities.in_place and all(s.in_place for s in before.specs.values())
        in_place = (
            plain and fields[path].kind == "fixed" and not {"codecs", "rows_per_shard"} & {*how}
        )
        how_ = {"rows_per_chunk": step, "in_place": in_place, **how}
        specs = with_new_identities(layout.specs(fields, before.rows, **how_))
        after = replace(before, fields={**before.fields, **fields}, specs={**before.specs, **specs})
        for spec in specs.values():
            check_in_place(driver, spec)
        arrays = {
            n: commit.member_array(driver, root, n, table.settings, s) for n, s in specs.items()
        }
        column = column_of(path, fields[path], list(arrays.values()))
        checked = None if values is None else column.checked(values, before.rows)
        _make_room(table, path, before)
        if checked is None:
            return after
        *apart, rows = arrays
        node.mark(driver, f"{root}{path}/", "field", _within(path, specs))
        for name in apart:  # values are appended, which needs a document
            document = zarr3.encode(zarr3.array_document(specs[name]))
            behind = trailer.encode(Trailer(identity=specs[name].identity or b"", field=True))
            driver.replace(f"{root}{name}/{zarr3.KEY}", document + behind, None)
        stored = column.reserve(checked)
        empty = replace(specs[rows], shape=(0, *specs[rows].shape[1:]))
        write_beyond(empty, stored, 0, arrays[rows].make_writer, check)
        if not apart:
            return after
        return with_row_sizes(
            with_value_counts(after, {path: int(stored[:, 1].max(initial=0))}), 0, [path]
        )

    table.change(change)


def _make_room(table: Table, path: str, catalog: Catalog) -> None:
    """Have nothing stored at ``path``: what is no field of ours is not ours to delete, but what
    an attempt that failed has left, which is marked."""
    driver, root = table.place
    parts = path.split("/")
    for k in range(1, len(parts)):
        above = "/".join(parts[:k])
        found = (
            None
            if above in catalog.groups
            else node.load(driver, f"{root}{above}/", allow_pickle=None)
        )
        if found is not None and isinstance(found.content, ArraySpec):
            raise AlreadyExists(f"{table.where} holds an array {above!r}; choose another name")
    place = f"{root}{path}/"
    if what_is_unfinished(driver, place) in ("field", "delete"):
        node.delete(driver, place)
    elif node.load_any(driver, place):
        raise AlreadyExists(
            f"{table.where} holds {path!r}, which is not a field of the records; choose another "
            "name, or delete it through open_group()"
        )
    look(driver, place)


def _within(path: str, specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """The arrays of a field, by their path from it."""
    below = path + "/"
    return {
        name[len(below) :]: spec for name, spec in specs.items() if f"{name}/".startswith(below)
    }


def drop(table: Table, paths: list[str]) -> None:
    """Remove fields from the document, then what is stored of them."""

    stored: dict[str, dict[str, ArraySpec]] = {}

    def change(before: Catalog, check: Check) -> Catalog:
        fields = {name: f for name, f in before.fields.items() if name not in paths}
        if not fields:
            raise Invalid(f"{table.where} would be left without a field; delete the group instead")
        _check_own(table, before, paths, stored)
        return _only_needed(replace(before, fields=fields))

    table.change(change)
    for path in paths:
        delete(table, path, stored[path])


def _check_own(
    table: Table, catalog: Catalog, paths: list[str], stored: dict[str, dict[str, ArraySpec]]
) -> None:
    """Raise, before anything is changed, where the place of a field holds what is not its own.
    ``stored`` takes the arrays of each."""
    driver, root = table.place
    for path in paths:
        stored[path] = _within(path, catalog.specs)
        look(driver, f"{root}{path}/", node.layouts(stored[path]))


def delete(table: Table, path: str, stored: Mapping[str, ArraySpec]) -> None:
    """Delete the arrays ``stored`` below ``path``, which no document names any more, and the
    groups above that hold nothing else. What another adds there meanwhile stays."""
    driver, root = table.place

    def is_made_anew(found: Belongings) -> bool:
        if found.what == "field":  # by one who is about to name it
            return True
        try:
            now = commit.load(driver, root, table.catalog).fields
        except (Conflict, Invalid, NotFound):  # the records are no more, or others
            return True
        return any(f"{field}/".startswith(f"{path}/") for field in now)

    node.delete(driver, f"{root}{path}/", stored, spare=is_made_anew)
    *above, _ = path.split("/")
    while above:
        group = "/".join(above) + "/"
        if any(field.startswith(group) for field in table.fields):
            break
        key = f"{root}{group}{zarr3.KEY}"
        if any(other != key for other in driver.list(root + group)):
            break
        driver.delete(key)
        above.pop()


def rename(table: Table, old: str, new: str) -> None:
    """Copy the chunks of a field, or of all that stand within a name, to another name, name it in
    the document, and delete the old ones."""
    paths = schema.chosen(table.fields, [old])
    if f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/"):
        raise Invalid(f"{old!r} cannot become {new!r}, which is or holds itself; use a third name")
    names = {path: new + path[len(old) :] for path in paths}
    stored: dict[str, dict[str, ArraySpec]] = {}

    def change(before: Catalog, check: Check) -> Catalog:
        gone = [path for path in paths if path not in before.fields]
        if gone:
            raise table.missing(gone[0])
        taken = [name for name in names.values() if name in before.fields]
        if taken:
            raise AlreadyExists(f"{table.where} has a field {taken[0]!r} already")
        fields = {names.get(path, path): field for path, field in before.fields.items()}
        schema.check_paths(fields)
        driver, root = table.place
        for name in names.values():
            node.check_place(driver, f"{root}{name}/")
        specs = dict(before.specs)
        _check_own(table, before, paths, stored)
        for path, name in names.items():
            _make_room(table, name, before)
            node.mark(driver, f"{root}{name}/", "field", stored[path])
            _copy(table, path, name, stored[path], check)
            arrays = zip(
                arrays_of(path, before.fields[path]),
                arrays_of(name, before.fields[path]),
                strict=True,
            )
            for source, target in arrays:
                moved = _as_stored(table, source, specs.pop(source))
                specs |= with_new_identities({target: moved})
        row_sizes = {names.get(path, path): known for path, known in before.row_sizes.items()}
        return _only_needed(replace(before, fields=fields, specs=specs, row_sizes=row_sizes))

    table.change(change)
    for path in paths:
        delete(table, path, stored[path])


def _copy(table: Table, old: str, new: str, stored: Mapping[str, ArraySpec], check: Check) -> None:
    """Chunks, not documents: without these, what a copy that failed leaves is no array."""
    driver, root = table.place
    source, target = f"{root}{old}/", f"{root}{new}/"
    found = look(driver, source, node.layouts(stored))

    def move(key: str) -> None:
        value = driver.get(key)
        if value is not None:
            check()
            # Of a holder that was stopped and wakes late, not over what others have made meanwhile.
            driver.replace(target + key[len(source) :], bytes(value), None)

    commit.for_each_field(driver, list(found.chunk_keys()), move)


def _as_stored(table: Table, name: str, spec: ArraySpec) -> ArraySpec:
    """``spec`` with the attributes that the array itself has now."""
    driver, root = table.place
    try:
        attributes = node.reread(driver, f"{root}{name}/", spec).content.attributes
    except (NotFound, Conflict):  # left over from something else
        return spec
    return replace(spec, attributes=attributes)


def _only_needed(catalog: Catalog) -> Catalog:
    """Only the arrays and groups that the fields need."""
    wanted = {n for path, field in catalog.fields.items() for n in arrays_of(path, field)}
    specs = {name: spec for name, spec in catalog.specs.items() if name in wanted}
    groups = {
        name: document
        for name, document in catalog.groups.items()
        if any(array.startswith(name + "/") for array in wanted)
    }
    row_sizes = {path: known for path, known in catalog.row_sizes.items() if path in catalog.fields}
    return replace(catalog, specs=specs, groups=groups, row_sizes=row_sizes)
