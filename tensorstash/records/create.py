"""Creating, opening and saving records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Unpack

import numpy as np

from ..coerce import parse_lengths
from ..create import check_above, make_spec, open_place
from ..driver import Driver
from ..engine.in_place.writing import check_in_place
from ..errors import Invalid, short
from ..handle import Settings
from ..location import Location
from ..metadata import node, zarr3
from ..options import HandleOptions, NewRecordsOptions, OpenOptions, only, parted, shown
from . import commit, ingest, layout, schema
from .catalog import ATTRIBUTE, Catalog, reserved_attribute, to_document, with_new_identities
from .classes import schema_of
from .interop.field_metadata import (
    FieldValues,
    KnownFields,
    attached_fields,
    check_shapes_known,
    matches,
)
from .records import Records
from .schema import Fields, allowed, check_paths, parse
from .table import FixedPlace, Table
from .typed import view_of


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
    specs = with_new_identities(layout.specs(fields, length, **how))
    if not isinstance(attributes or {}, Mapping):
        raise Invalid(f"attributes are a dict of values by name, not {short(attributes)}")
    if ATTRIBUTE in (attributes or {}):
        raise reserved_attribute()
    for spec in specs.values():
        check_in_place(driver, spec)
    catalog = Catalog(fields, specs, length, dict(attributes or {}), {}, {})
    zarr3.encode(zarr3.group_document(to_document(catalog)))  # raises before anything is replaced
    for name in specs:
        node.check_place(driver, f"{path}{name}/")
    # The document that claims the place comes first: of several creators one wins, and it says
    # all that readers of records need. Those of single fields follow.
    tag = node.create(driver, path, to_document(catalog), overwrite=overwrite)
    commit.write_members(driver, path, catalog, shapes=False)
    return Records(Table(FixedPlace(driver, path), settings, replace(catalog, tag=tag)))


@shown(NewRecordsOptions, layout.specs, make_spec, open_place)
def create_records(
    location: Location,
    schema: Any = None,
    length: int = 0,
    *,
    like: Any = None,
    overwrite: bool = False,
    **how: Unpack[NewRecordsOptions],
) -> Records:
    """Create records, rows of named fields, and return a handle that reads and writes them.

    Only metadata is stored: rows that were never written read as zeros, empty text and rows of no
    elements, so new records of a terabyte cost a few small objects.

    Args:
        location: where to store them: a path, a URL such as ``"s3://bucket/x"``, a
            ``pathlib.Path``, a ``dict`` or a driver.
        schema: the fields: ``{name: (element_shape, dtype)}``, or ``{name: dtype}`` for single
            numbers; nested dicts for fields within fields; also ``str``, ``bytes``,
            ``tensorstash.json`` and ``tensorstash.ragged(dtype)``. A dataclass or TypedDict will do
            too. ``object`` is pickled, and needs ``allow_pickle`` here and when opening.
        length: how many rows there are at first.
        like: an example row, which gives the fields that ``schema`` does not name.
        overwrite: replace the array or group that is there.
        path: where below the location, such as ``"runs/first"``; the groups above that are missing
            are created too.
        rows_per_chunk: rows of a chunk, for all fields or a dict by field; by default chosen so
            that a chunk of the widest field has about 512 KiB.
        rows_per_shard: rows of a stored object that holds several chunks; by default each chunk is
            an object of its own.
        codecs, fill_value: as for ``tensorstash.create``, for all fields of numbers, or a dict by
            field.
        in_place: write rows within stored chunks, uncompressed and unchecked, rather than replace
            these: much faster for single rows, with weaker promises ("Rows in place" in
            docs/records.md). For fields of fixed size, on ``file://``, ``shm://`` and ``redis://``.
        attributes: the first user attributes, a dict of what JSON can hold.
        allow_pickle: read and write fields of pickled objects, which runs code found in the data.
        options, cache, threads, lock_timeout, limits: how the driver and the handle behave, as
            ``tensorstash.open`` explains, for each field.
        memory_limit: as for ``tensorstash.open``, for all fields together.

    Returns:
        A handle opened for reading and writing.

    Raises:
        AlreadyExists: something is stored there, and ``overwrite`` is false.
        Invalid: the schema or an option is wrong, or ``path`` lies in an array.
        Unsupported: a dtype cannot be stored.

    >>> r = stash.create_records({}, {"obs": ((2,), "float32"), "label": str})
    >>> r.append({"obs": [0.5, 1], "label": "cat"})
    0
    >>> r[0]["label"]
    'cat'
    """
    handle, more = parted(how, HandleOptions)
    allow_pickle, attributes = more.pop("allow_pickle", False), more.pop("attributes", None)
    fields = _fields(schema, like, allow_pickle)
    (rows,) = parse_lengths(length, "length") if isinstance(length, (int, np.integer)) else (-1,)
    if not 0 <= rows < 1 << 62:
        raise Invalid(f"length is a number of rows, not {short(length)}")
    driver, path, settings = open_place(location, "r+", allow_pickle=allow_pickle, **handle)
    check_above(driver, path, 3, overwrite)
    return create_at(driver, path, fields, rows, settings, attributes, overwrite, more)


@shown(OpenOptions, open_place)
def open_records(
    location: Location, mode: Literal["r", "r+"] = "r", **how: Unpack[OpenOptions]
) -> Records:
    """Open stored records and return a handle; this costs one small read.

    Args:
        location: where they are stored, as for :func:`create_records`.
        mode: ``"r"`` reads, ``"r+"`` also writes.
        path: where below the location they are stored, such as ``"runs/first"``.
        version: of a repository, which version: see ``Repo``.
        cache: as for ``tensorstash.open``, for each field.
        allow_pickle: read and write fields of pickled objects, which runs code found in the data.
        options, limits, memory_limit, threads, lock_timeout, immutable, missing, cache_dir,
            cache_dir_bytes: how the driver and the handle behave, as ``tensorstash.open`` explains.

    Returns:
        A handle on all rows and fields.

    Raises:
        NotFound: nothing is stored there.
        Invalid: an argument is wrong, or what is stored there holds no records.
        Corrupt: the stored metadata is damaged.

    >>> place = {}
    >>> r = stash.save_records(place, {"x": np.arange(3), "y": ["a", "b", "c"]})
    >>> stash.open_records(place)[1]["y"]
    'b'
    """
    if mode not in ("r", "r+"):
        raise Invalid(f"mode {mode!r} is neither 'r' nor 'r+'; create_records() makes new ones")
    handle = only(how, OpenOptions, "open_records")
    driver, path, settings = open_place(location, mode, **handle)
    return Records(Table(FixedPlace(driver, path), settings, commit.load(driver, path)))


@shown(NewRecordsOptions, layout.specs, make_spec, open_place)
def save_records(
    location: Location,
    columns: Any,
    schema: Any = None,
    *,
    overwrite: bool = True,
    **how: Unpack[NewRecordsOptions],
) -> Records:
    """Store rows as new records, all at once, replacing the array or group that is there.

    Values that cannot be stored raise before anything is replaced. All values are in memory.

    Args:
        location: where to store them, as for :func:`create_records`.
        columns: the rows: a dict of arrays, tensors or lists by field (nested where fields are), a
            list of row dicts, a TensorDict, a table of arrow, pandas or polars, or other records
            and views of them.
        schema: the fields of which the values do not tell what they are, as for
            :func:`create_records`. Records, and what was read from some, keep their fields; "Rows
            of Python's values" in docs/records.md says how others are found.
        overwrite: ``False`` refuses to replace an array or group.
        path: where below the location, as for :func:`create_records`.
        rows_per_chunk, rows_per_shard, codecs, fill_value, in_place, attributes, allow_pickle,
            options, cache, threads, lock_timeout, limits, memory_limit: as for
            :func:`create_records`.

    Returns:
        A handle that reads and writes the new records.

    Raises:
        AlreadyExists: something is stored there, and ``overwrite`` is false.
        Invalid: there are no columns, they differ in length, or a value does not fit its field.

    >>> r = stash.save_records({}, {"x": np.arange(3), "y": ["a", "b", "c"]})
    >>> len(r), r["x"][1:].tolist()
    (3, [1, 2])
    """
    named = {} if schema is None else _parsed(schema)
    columns = view_of(columns)
    # Of those that a transform has changed, what it returns may be of other types.
    known = columns.fields if isinstance(columns, Records) else attached_fields(columns)
    known_fields = {path: field for path, field in known.items() if field is not None}
    values = ingest.columns_of(columns, {**known_fields, **named})
    if not values and not isinstance(columns, Mapping):  # rows, of which there are none
        values = {path: [] for path in {**known, **named}}
    if not values:
        raise Invalid("there are no columns to save")
    absent = [path for path in named if path not in values]
    if absent:
        raise Invalid(f"no values for field {absent[0]!r} of the schema")
    check_shapes_known([path for path in values if path not in named], known)
    fields = _fields_of(values, named, known_fields)
    trial = create_records({}, fields, allow_pickle=how.get("allow_pickle", False))
    count, checked = ingest.check_rows(values, trial.source.table.columns, trial.names)
    made = create_records(location, fields, 0, overwrite=overwrite, **how)
    made.source.table.extend(checked, count)
    return made


def _fields_of(values: Mapping[str, Any], named: Fields, known_fields: KnownFields) -> Fields:
    """The fields of ``values``: as ``named``, as they know it themselves, as they call for."""
    fields: Fields = {}
    for path, column in values.items():
        field = named.get(path)
        if field is None:
            known = column.field if isinstance(column, FieldValues) else known_fields.get(path)
            field = known if known is not None and matches(column, known) else None
        fields[path] = schema.infer_columns({path: column})[path] if field is None else field
    return check_paths(fields)


def _fields(described: Any, like: Any, allow_pickle: bool) -> Fields:
    if described is None and like is None:
        raise Invalid("new records need a schema, or an example row: like={...}")
    fields: Fields = {}
    if like is not None:
        named = {} if described is None else _parsed(described)
        fields = schema.infer_example(ingest.flatten(like, named), named)
    if described is not None:
        fields |= _parsed(described)
    if not fields:
        raise Invalid("new records need a field; the example row has none")
    return allowed(check_paths(fields), allow_pickle)


def _parsed(described: Any) -> Fields:
    """The fields of a schema, or of a class that describes a row."""
    return parse(schema_of(described) if isinstance(described, type) else described)
