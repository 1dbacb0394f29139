"""Creating, opening and saving records."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..coerce import parse_lengths
from ..create import LimitsLike, make_settings, open_driver
from ..driver import Driver
from ..errors import Invalid, short
from ..handle import Settings
from ..location import Location, resolve
from ..metadata import node, zarr3
from ..wrapper import limited
from . import formats, grow, infer, layout
from .catalog import MARK, Catalog, identified, reserved, to_document
from .classes import schema_of
from .kept import Kept, Values, is_of, kept, refuse_shapeless
from .records import Records
from .schema import Fields, allowed, check_paths, parse
from .table import At, Table
from .typed import view_of


def create_records(
    location: Location,
    schema: Any = None,
    length: int = 0,
    *,
    like: Any = None,
    attributes: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    threads: int | None = None,
    allow_pickle: bool = False,
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    overwrite: bool = False,
    **layout_options: Any,
) -> Records:
    """Create records of ``length`` rows and answer a handle that reads and writes. Only metadata
    is stored: absent chunks read as zeros, empty text and rows of no elements, so that a terabyte
    costs a few small objects.

    ``schema`` is TensorDict's ``{field: (element_shape, dtype)}``, nested where fields are, with
    ``str``, ``bytes``, ``tensorstash.json`` and ``tensorstash.ragged(dtype)`` beside dtypes;
    ``object`` is pickled, and needs ``allow_pickle`` on both sides. ``like`` is an example row, for
    the fields that the schema does not name. ``layout_options``: ``rows_per_chunk``,
    ``rows_per_shard``, ``codecs``, ``fill_value``; see :func:`tensorstash.records.layout.specs`.
    What is there already raises :class:`~tensorstash.errors.AlreadyExists` unless ``overwrite``.
    """
    fields = _fields(schema, like, allow_pickle)
    (rows,) = parse_lengths(length, "length") if isinstance(length, (int, np.integer)) else (-1,)
    if not 0 <= rows < 1 << 62:
        raise Invalid(f"length is a number of rows, not {short(length)}")
    settings = make_settings(
        "r+", cache, threads, lock_timeout=lock_timeout, limits=limits, allow_pickle=allow_pickle
    )
    driver = limited(resolve(location, options), settings.limits)
    return create_at(driver, "", fields, rows, settings, attributes, overwrite, layout_options)


def create_at(
    driver: Driver,
    path: str,
    fields: Fields,
    length: int,
    settings: Settings,
    attributes: Mapping[str, Any] | None,
    overwrite: bool,
    how: Mapping[str, Any],
) -> Records:
    """Create records below a driver's root; ``path`` is empty or ends in ``/``."""
    specs = identified(layout.specs(fields, length, **how))
    if not isinstance(attributes or {}, Mapping):
        raise Invalid(f"attributes are a dict of values by name, not {short(attributes)}")
    if MARK in (attributes or {}):
        raise reserved()
    catalog = Catalog(fields, specs, length, dict(attributes or {}), {}, {})
    zarr3.encode(zarr3.group_document(to_document(catalog)))  # raises before anything is replaced
    for name in specs:
        node.check_place(driver, f"{path}{name}/")
    # The document that claims the place comes first: of several creators one wins, and it says
    # all that readers of records need. Those of single fields follow.
    tag = node.create(driver, path, to_document(catalog), overwrite=overwrite)
    grow.follow(driver, path, catalog, shapes=False)
    return Records(Table(At(driver, path), settings, replace(catalog, tag=tag)))


def open_records(
    location: Location,
    mode: Literal["r", "r+"] = "r",
    *,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    immutable: bool = False,
    threads: int | None = None,
    missing: Literal["fill", "raise"] = "fill",
    allow_pickle: bool = False,
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_dir_bytes: int | str = "10GiB",
) -> Records:
    """Open records: one small read. ``mode`` is ``"r"`` to read or ``"r+"`` to write too; the
    other options are those of ``tensorstash.open``, for every field. ``allow_pickle``: read and
    write fields of pickled objects, which runs code found in the data. A group that holds none:
    :class:`~tensorstash.errors.Invalid`; nothing there: :class:`~tensorstash.errors.NotFound`."""
    if mode not in ("r", "r+"):
        raise Invalid(f"mode {mode!r} is neither 'r' nor 'r+'; create_records() makes new ones")
    flags = {"immutable": immutable, "allow_pickle": allow_pickle}
    settings = make_settings(mode, cache, threads, missing, lock_timeout, limits, **flags)
    driver = open_driver(location, options, cache_dir, cache_dir_bytes, immutable)
    driver = limited(driver, settings.limits)
    return Records(Table(At(driver), settings, grow.load(driver, "")))


def save_records(
    location: Location,
    columns: Any,
    schema: Any = None,
    *,
    overwrite: bool = True,
    **options: Any,
) -> Records:
    """Store ``columns`` as new records and answer their handle: other records or a view of them,
    a dict of arrays, tensors or lists by field (nested where fields are), a list of rows, a
    TensorDict, a table of arrow, pandas or polars.

    Records, and what was read from some in any format, keep their fields. Of other values
    ``schema`` names the kind of fields of which they do not tell it; how the others are found
    stands in "Rows of Python's values" in docs/records.md. Takes what :func:`create_records`
    takes. Rows appear all at once. Values that cannot be stored raise before what is there is
    replaced; they are all in memory.
    """
    named = {} if schema is None else _parsed(schema)
    columns = view_of(columns)
    # Of those that a transform has changed, what it answers may be of other types.
    known = columns.fields if isinstance(columns, Records) else kept(columns)
    told = {path: field for path, field in known.items() if field is not None}
    values = formats.columns_of(columns, {**told, **named})
    if not values and not isinstance(columns, Mapping):  # rows, of which there are none
        values = {path: [] for path in {**known, **named}}
    if not values:
        raise Invalid("there are no columns to save")
    absent = [path for path in named if path not in values]
    if absent:
        raise Invalid(f"no values for field {absent[0]!r} of the schema")
    refuse_shapeless([path for path in values if path not in named], known)
    fields = _fields_of(values, named, told)
    trial = create_records({}, fields, allow_pickle=options.get("allow_pickle", False))
    count, checked = trial.checked_rows(values)
    made = create_records(location, fields, 0, overwrite=overwrite, **options)
    made.table.extend(checked, count)
    return made


def _fields_of(values: Mapping[str, Any], named: Fields, told: Kept) -> Fields:
    """The fields of ``values``: as ``named``, as they know it themselves, as they call for."""
    fields: Fields = {}
    for path, column in values.items():
        field = named.get(path)
        if field is None:
            known = column.field if isinstance(column, Values) else told.get(path)
            field = known if known is not None and is_of(column, known) else None
        fields[path] = infer.of_columns({path: column})[path] if field is None else field
    return check_paths(fields)


def _fields(given: Any, like: Any, allow_pickle: bool) -> Fields:
    if given is None and like is None:
        raise Invalid("new records need a schema, or an example row: like={...}")
    fields: Fields = {}
    if like is not None:
        named = {} if given is None else _parsed(given)
        fields = infer.of_example(formats.flat(like, named), named)
    if given is not None:
        fields |= _parsed(given)
    if not fields:
        raise Invalid("new records need a field; the example row has none")
    return allowed(check_paths(fields), allow_pickle)


def _parsed(given: Any) -> Fields:
    """The fields of a schema, or of a class that describes a row."""
    return parse(schema_of(given) if isinstance(given, type) else given)
