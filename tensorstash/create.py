"""Creating, opening, saving and loading arrays: from what a user gives to a handle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from . import dtype as dtypes
from . import fill as fills
from .array import Array
from .attributes import reserved
from .codec import Pipeline
from .coerce import as_array, broadcast, natural, parse_bytes, parse_lengths
from .columns import Ragged
from .driver import Driver, located
from .engine.in_place.writing import check_in_place
from .errors import AlreadyExists, Invalid, NotFound, StashError, counted, short
from .handle import Settings
from .indexing.grid import Grid
from .limits import parse as parse_limits
from .location import Location, resolve
from .memory import budget_of
from .metadata import defaults, node
from .metadata.belongings import DOCUMENTS
from .metadata.consolidated import place_path
from .metadata.defaults import CodecsLike
from .metadata.document import as_plain, lengths
from .metadata.mark import fields_of, is_records
from .metadata.spec import ArraySpec, KeyEncoding
from .metadata.trailer import new_identity
from .metadata.unfinished import Spare
from .metadata.zarr3 import IN_PLACE
from .options import (
    LimitsLike,
    NewArrayOptions,
    NewHandleOptions,
    OpenArrayOptions,
    OpenOrCreateOptions,
    parted,
    shown,
)
from .registry import disk_cache, make
from .wrapper import limited

_BYTES = 128 << 20  # of a new array between two looks whether it is still ours

Mode = Literal["r", "r+", "a", "w", "x"]

Place: TypeAlias = tuple[Driver, str, Settings]
"""A driver, a path below its root (empty, or ending in ``/``), and the settings of handles."""


def open_place(
    location: Location,
    mode: str,
    *,
    path: str = "",
    version: str | datetime | None = None,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    immutable: bool = False,
    threads: int | None = None,
    missing: Literal["fill", "raise"] = "fill",
    write_fill: bool = False,
    allow_pickle: bool = False,
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    memory_limit: int | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_dir_bytes: int | str = "10GiB",
) -> Place:
    """The driver of ``location``, the path below it (empty, or ending in ``/``), and the settings
    of handles on what is there, from what a user gave; :class:`~tensorstash.errors.Invalid` names
    what is wrong. Nothing is read yet."""
    below = place_path(path)
    if missing not in ("fill", "raise"):
        raise Invalid(f"missing={missing!r} is neither 'fill' nor 'raise'")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise Invalid(f"threads={short(threads)} is not a number of threads")
    number = isinstance(lock_timeout, int | float) and not isinstance(lock_timeout, bool)
    if lock_timeout is not None and not (number and 0 <= lock_timeout < 1e9):
        raise Invalid(f"lock_timeout={short(lock_timeout)} is not a number of seconds, nor None")
    settings = Settings(
        mode,
        parse_bytes(cache),
        immutable=immutable,
        threads=threads,
        missing=missing,
        write_fill=write_fill,
        allow_pickle=allow_pickle,
        lock_timeout=lock_timeout,
        limits=parse_limits(limits, parse_bytes),
        memory=budget_of(memory_limit),
    )
    driver = resolve(location, options, version, mode)
    if cache_dir is not None and not driver.capabilities.local:
        driver = _behind_cache(driver, cache_dir, cache_dir_bytes, immutable)
    return limited(driver, settings.limits), below, settings


def _behind_cache(
    driver: Driver, folder: str | os.PathLike[str], nbytes: int | str, immutable: bool
) -> Driver:
    """``driver``, with what is fetched kept in ``folder``, up to ``nbytes``. ``immutable``: what it
    holds is not compared with what is stored, but for metadata."""
    limit = parse_bytes(nbytes)
    found: Driver = disk_cache()(driver, os.fspath(folder), limit, immutable, frozenset(DOCUMENTS))
    return found


def _unknown(name: str, options: type, function: str) -> Invalid:
    close = get_close_matches(name, ["shape", "dtype", *options.__annotations__], 1)
    hint = f"did you mean {close[0]!r}?" if close else f"see help(tensorstash.{function})"
    return Invalid(f"an array has no option {name!r}; {hint}")


def make_spec(
    shape: int | Sequence[int] | None = None,
    dtype: Any = None,
    *,
    chunks: int | Sequence[int] | str | None = None,
    shards: int | Sequence[int] | None = None,
    codecs: CodecsLike = "auto",
    fill_value: Any = None,
    dimension_names: Sequence[str | None] | None = None,
    attributes: Mapping[str, Any] | None = None,
    zarr_format: Literal[2, 3] = 3,
    key_encoding: Literal["default", "v2"] | None = None,
    separator: Literal["/", "."] | None = None,
    order: Literal["C", "F"] = "C",
    filters: Sequence[Mapping[str, Any]] | None = None,
    in_place: bool = False,
    **unknown: Any,
) -> ArraySpec:
    """The spec of a new array, from what a user gave; :func:`create` explains each option.

    Where ``shards`` are given and ``chunks`` are not, these are chosen to divide them, for about
    32 KiB. ``codecs``: see :func:`tensorstash.metadata.defaults.chain`.
    """
    for name in unknown:
        raise _unknown(name, NewArrayOptions, "create")
    if shape is None or dtype is None:
        raise Invalid("a new array needs shape= and dtype=")
    extent = lengths(list(parse_lengths(shape, "shape")), "shape", 0)
    kind = dtypes.parse(dtype)
    fill = fills.default(kind) if fill_value is None else fills.parse(fill_value, kind)
    names = None if dimension_names is None else _dimension_names(dimension_names, len(extent))
    if not isinstance(attributes or {}, Mapping):
        raise Invalid(f"attributes are a dict of values by name, not {short(attributes)}")
    if IN_PLACE in (attributes or {}):
        raise reserved()
    if in_place:
        codecs = None if codecs == "auto" else codecs
        chunks = defaults.row_chunks(extent, kind.itemsize) if chunks in (None, "auto") else chunks
    for what, choice, choices in (
        ("zarr_format", zarr_format, (2, 3)),
        ("order", order, ("C", "F")),
        ("key_encoding", key_encoding, (None, "default", "v2")),
        ("separator", separator, (None, "/", ".")),
    ):
        if choice not in choices:
            raise Invalid(f"{what} {short(choice)} is none of {', '.join(map(repr, choices))}")
    if shards is None:
        inner = outer = defaults.chunk_shape(chunks, extent, kind.itemsize)
    else:
        outer = defaults.chunk_shape(shards, extent, kind.itemsize, "shards")
        wanted = defaults.inner_chunks(outer, kind.itemsize) if chunks in (None, "auto") else chunks
        inner = defaults.chunk_shape(wanted, extent, kind.itemsize)
    if zarr_format == 2:
        if shards is not None:
            raise Invalid("Zarr v2 has no shards; leave shards out, or use zarr_format=3")
        steps = defaults.chain_v2(kind, len(extent), codecs, order, filters)
    else:
        if filters is not None:
            raise Invalid("filters are Zarr v2's; name them in codecs, as 'numcodecs.delta' say")
        steps = defaults.chain(codecs, kind)
        if order == "F" and len(extent) > 1:
            steps = (make("transpose", {"order": list(range(len(extent)))[::-1]}), *steps)
        if shards is not None:
            steps = defaults.sharded(steps, inner, outer)
    grid = Grid.regular(outer)
    encoding = key_encoding or ("default" if zarr_format == 3 else "v2")
    spec = ArraySpec(
        shape=extent,
        dtype=kind,
        grid=grid,
        codecs=steps,
        fill=fill,
        keys=KeyEncoding(encoding, separator or ("/" if encoding == "default" else ".")),
        dimension_names=names,
        attributes=as_plain(attributes or {}),
        zarr_format=zarr_format,
    )
    Pipeline(spec.codecs, spec.chunk_spec(outer)).check_new()  # refuses what does not fit together
    if in_place:
        why = "each chunk is a file of its own: leave shards out" if shards is not None else None
        why = why or spec.misfit_in_place()
        if why is not None:
            raise Invalid(f"an array cannot be written in place: {why}")
        spec = replace(spec, in_place=True)
    return spec


def _dimension_names(names: Sequence[str | None], ndim: int) -> tuple[str | None, ...]:
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(name is None or isinstance(name, str) for name in names):
        raise Invalid(f"dimension_names are a list of text or None, not {short(names)}")
    if len(names) != ndim:
        raise Invalid(
            f"dimension_names has {counted(len(names), 'name')} for {counted(ndim, 'axis', 'axes')}"
        )
    return tuple(names)


# -- the public functions --------------------------------------------------------------


@shown(NewArrayOptions, make_spec, open_place)
def create(
    location: Location,
    shape: int | Sequence[int] | None = None,
    dtype: Any = None,
    *,
    overwrite: bool = False,
    **how: Unpack[NewArrayOptions],
) -> Array:
    """Create an array and return a handle that reads and writes it.

    Only metadata is stored: chunks that were never written read as the fill value, so a new array
    of 1 TB costs one small object.

    Args:
        location: where to store it: a path, a URL such as ``"s3://bucket/x"``, a
            ``pathlib.Path``, a ``dict`` or a driver.
        shape: the length of each axis; one integer for an array of one axis.
        dtype: the type of the elements, as NumPy takes it, or a name such as ``"bfloat16"``.
        overwrite: replace the array or group that is there. Other files there are never deleted.
        path: where below the location to store it, such as ``"raw/image"``; the groups above that
            are missing are created too.
        chunks: the shape of a chunk, one integer for all axes alike; by default chosen so that a
            chunk has about 512 KiB.
        shards: the shape of a stored object that holds several chunks, in multiples of
            ``chunks``; by default each chunk is an object of its own.
        codecs: a name such as ``"zstd"``, a list of codecs, or ``None`` for no compression; the
            default compresses and adds a checksum.
        fill_value: what chunks that are not stored read as; by default zero or empty.
        dimension_names: a name, or ``None``, for each axis.
        attributes: the first user attributes, a dict of what JSON can hold.
        zarr_format: 3, or 2 for readers that do not know version 3; below a group, that of the
            group.
        key_encoding, separator: how the keys of chunks are written; by default ``c/0/1``.
        order: ``"F"`` stores each chunk in column-major order.
        filters: numcodecs' filters, with ``zarr_format=2`` only.
        in_place: write what is assigned within stored chunks, uncompressed and unchecked, rather
            than replace these: much faster for single rows, with weaker promises ("Rows in place"
            in docs/records.md). On ``file://``, ``shm://`` and ``redis://``.
        write_fill: store chunks that hold nothing but the fill value, too.
        options, cache, threads, missing, lock_timeout, limits, memory_limit: how the handle
            behaves, as :func:`open` explains.

    Returns:
        A handle opened for reading and writing.

    Raises:
        AlreadyExists: an array or group is stored there, and ``overwrite`` is false.
        Invalid: an argument is wrong or unknown, the codecs do not fit the dtype, or ``path`` lies
            in an array.
        Unsupported: this format or driver cannot store what was asked for.

    >>> a = stash.create("memory://numbers", (4, 6), "int32", chunks=(2, 3))
    >>> a[1, ::2] = 7
    >>> a[:2].tolist()
    [[0, 0, 0, 0, 0, 0], [7, 0, 7, 0, 7, 0]]
    """
    handle, layout = parted(how, NewHandleOptions)
    place = open_place(location, "r+", **handle)
    return _create(place, {"shape": shape, "dtype": dtype, **layout}, overwrite)


def _create(place: Place, layout: Mapping[str, Any], overwrite: bool) -> Array:
    driver, path, settings = place
    spec = new_spec(driver, path, layout, overwrite)
    return create_at(driver, path, spec, settings, overwrite=overwrite)


def new_spec(driver: Driver, path: str, layout: Mapping[str, Any], overwrite: bool) -> ArraySpec:
    """The spec of a new array at ``path``, where one may be (see :func:`check_above`)."""
    found = check_above(driver, path, layout.get("zarr_format"), overwrite)
    return make_spec(**({"zarr_format": found} if found else {}) | dict(layout))


def check_above(
    driver: Driver,
    path: str,
    zarr_format: int | None = None,
    overwrite: bool = False,
    known: str | None = None,
    in_records: bool = True,
) -> Literal[2, 3] | None:
    """The format of the groups above ``path``, where there are any.
    :class:`~tensorstash.errors.Invalid` where no node may be stored there: below an array, where
    no reader looks; in a group of another than ``zarr_format``; with ``overwrite``, where rows of a
    field of records are, whose document would go on naming it; where not ``in_records``, beside
    fields. ``known``: a group above, above which nothing is looked at."""
    parts = path.split("/")[:-1]
    above = ["".join(f"{part}/" for part in parts[:k]) for k in range(len(parts))]
    if known is not None:
        above = [group for group in above if len(group) >= len(known) + (not overwrite)]
    format_: Literal[2, 3] | None = None
    for group, found in node.load_each(driver, above, allow_pickle=None) if above else ():
        if isinstance(found, StashError):
            raise found
        content, rest = found.content, path[len(group) :]
        if isinstance(content, ArraySpec):
            raise Invalid(f"{located(driver, group)} is an array and cannot hold {rest[:-1]!r}")
        format_ = content.zarr_format
        if zarr_format not in (None, format_):
            raise Invalid(
                f"{located(driver, group)} is a group of Zarr v{format_} and holds members of "
                f"that format only, so {rest[:-1]!r} cannot be stored there as v{zarr_format}"
            )
        if not in_records and is_records(content.attributes):
            raise Invalid(
                f"{located(driver, group)} holds records, whose rows have all fields: "
                f"open_records() and add_field({rest[:-1]!r}, ..., values) it"
            )
        for field in fields_of(content.attributes) if overwrite else ():
            if rest.startswith(f"{field}/") or f"{field}/".startswith(rest):
                raise Invalid(
                    f"{rest[:-1]!r} holds rows of {field!r}, a field of the records at "
                    f"{located(driver, group)}; open_records() and drop_field() it"
                )
    return format_


def create_at(
    driver: Driver, path: str, spec: ArraySpec, settings: Settings, *, overwrite: bool = False
) -> Array:
    """Create an array below a driver's root; ``path`` is empty or ends in ``/``."""
    check_in_place(driver, spec)
    spec = replace(spec, identity=new_identity())
    tag = node.create(driver, path, spec, overwrite=overwrite)
    return Array(driver, path, settings, spec, created=True, tag=tag)


@shown(OpenOrCreateOptions, make_spec, open_place)
def open(location: Location, mode: Mode = "r", **how: Unpack[OpenOrCreateOptions]) -> Array:
    """Open a stored array and return a handle; this costs one small read.

    Args:
        location: where it is stored: a path, a URL such as ``"s3://bucket/x"``, a
            ``pathlib.Path``, a ``dict`` or a driver.
        mode: ``"r"`` reads, ``"r+"`` also writes, ``"a"`` creates the array when nothing is there,
            ``"w"`` replaces what is there, ``"x"`` creates and never replaces.
        path: where below the location it is stored, such as ``"raw/image"``.
        version: of a repository, which version: see ``Repo``.
        options: keyword arguments of the driver: keys, endpoints, time limits.
        cache: keep up to this many bytes of decoded chunks, such as ``"1GiB"``, and read ahead when
            chunks are read in order; what is kept is compared with the stored version at each use.
        immutable: nobody writes while this handle is in use, so what is kept is not compared.
        threads: the most threads that one call uses; by default one for each processor.
        missing: ``"raise"``: a chunk that is not stored raises ``NotFound`` instead of reading as
            the fill value.
        write_fill: store chunks that hold nothing but the fill value, too.
        allow_pickle: read and write the pickled objects of Zarr v2, which runs code that is found
            in the data.
        lock_timeout: the most seconds that ``append`` and ``resize`` wait for another that holds
            the array's lock; ``None`` waits for ever.
        limits: let what is stored take more memory than is usual: ``{"metadata": "1GiB"}`` for a
            metadata document, ``{"chunk": "4GiB"}`` for a chunk of text or bytes.
        memory_limit: bytes, or text such as ``"1GiB"``, that this handle takes at once in each
            process, results aside; see :func:`tensorstash.memory_limit`, the limit of a process.
        cache_dir: a folder that keeps what is fetched from remote places, for all processes of
            this machine and for the next run; what it holds is compared with the stored version.
        cache_dir_bytes: the most that this folder holds.
        shape, dtype, chunks, shards, codecs, fill_value, dimension_names, attributes, zarr_format,
            key_encoding, separator, order, filters, in_place: for a mode that creates, as
            :func:`create` explains. An array that mode ``"a"`` finds stays stored as it is; it
            must have the dtype, number of axes, fill value and dimension names that are given,
            and the length of each axis but the first, and but those that are given as 0.

    Returns:
        A handle on the array.

    Raises:
        NotFound: nothing is stored there, and ``mode`` does not create.
        AlreadyExists: ``mode`` is ``"x"``, and an array or group is stored there.
        Invalid: an argument is wrong, a group is stored there, or mode ``"a"`` finds an array of
            another dtype or shape.
        Corrupt: the stored metadata is damaged.
        Unsupported: the array is stored in a way that is not known here.

    >>> place = {}
    >>> stash.create(place, 3, "int8")[:] = [1, 2, 3]
    >>> stash.open(place)[::-1].tolist()
    [3, 2, 1]
    """
    if mode not in ("r", "r+", "a", "w", "x"):
        raise Invalid(f"mode {mode!r} is not one of 'r', 'r+', 'a', 'w', 'x'")
    handle, layout = parted(how, OpenArrayOptions)
    place = open_place(location, "r" if mode == "r" else "r+", **handle)
    if mode in ("r", "r+"):
        for name in sorted(layout):
            if name not in OpenOrCreateOptions.__annotations__:
                raise _unknown(name, OpenOrCreateOptions, "open")
            raise Invalid(f"mode {mode!r} creates nothing, so it takes no {name!r}")
        return Array(*place).refresh()
    if mode != "a":
        return _create(place, layout, overwrite=mode == "w")
    try:
        return _as_asked(Array(*place).refresh(), layout)
    except NotFound:
        try:
            return _create(place, layout, overwrite=False)
        except AlreadyExists:  # another process created it meanwhile
            return _as_asked(Array(*place).refresh(), layout)


def _as_asked(array: Array, layout: Mapping[str, Any]) -> Array:
    """``array``, which was there already, where it holds what ``layout`` asks for: how it is stored
    may be another. The first axis is what is appended to, and so is one that is asked for
    without an element."""
    spec, asked = array.spec, {name: v for name, v in layout.items() if v is not None}
    for name in asked:
        if name not in NewArrayOptions.__annotations__ and name not in ("shape", "dtype"):
            raise _unknown(name, OpenOrCreateOptions, "open")
    differ = []
    if "dtype" in asked and (dtype := dtypes.parse(asked["dtype"])) != spec.dtype:
        differ.append(f"dtype {spec.dtype}, not {dtype}")
    if "shape" in asked:
        shape = lengths(list(parse_lengths(asked["shape"], "shape")), "shape", 0)
        fixed = zip(spec.shape[1:], shape[1:], strict=False)
        if len(shape) != len(spec.shape) or any(given not in (0, n) for n, given in fixed):
            differ.append(f"shape {spec.shape}, not {shape}")
    if "fill_value" in asked and not differ:
        fill = fills.parse(asked["fill_value"], spec.dtype)
        if not fills.is_same(spec.fill, fill):
            differ.append(f"fill value {_told(spec.fill)}, not {_told(fill)}")
    if "dimension_names" in asked and not differ:
        names = _dimension_names(asked["dimension_names"], array.ndim)
        if names != spec.dimension_names:
            differ.append(f"dimension names {spec.dimension_names}, not {names}")
    if differ:
        raise Invalid(
            f"{located(array.driver, array.path)} is stored with {', and '.join(differ)}; leave "
            'out what is another, or replace it with mode="w"'
        )
    return array


def _told(fill: NDArray[Any]) -> str:
    value = fill[()]
    return short(value) if isinstance(value, str | bytes) else str(value)


@shown(NewArrayOptions, make_spec, open_place)
def save(
    location: Location,
    value: Any,
    *,
    dtype: Any = None,
    overwrite: bool = True,
    **how: Unpack[NewArrayOptions],
) -> Array:
    """Store a whole array at a place, replacing the array or group that is there.

    Until all values are stored, readers refuse the new array: no kill leaves one that is half fill.

    Args:
        location: where to store it, as for :func:`create`.
        value: the values: a NumPy array, a torch tensor, or nested lists.
        dtype: the type to store them as; by default their own.
        overwrite: ``False`` refuses to replace an array or group.
        path: where below the location, as for :func:`create`.
        chunks, shards, codecs, fill_value, dimension_names, attributes, zarr_format,
            key_encoding, separator, order, filters, in_place, write_fill: how it is stored, as
            :func:`create` explains.
        options, cache, threads, missing, lock_timeout, limits, memory_limit: how the handle
            behaves, as :func:`open` explains.

    Returns:
        A handle that reads and writes the new array.

    Raises:
        AlreadyExists: an array or group is stored there, and ``overwrite`` is false.
        Invalid: an argument is wrong, or the values do not fit the dtype.

    >>> stash.save("memory://saved", np.arange(6).reshape(2, 3), chunks=(1, 3))[1].tolist()
    [3, 4, 5]
    """
    handle, layout = parted(how, NewHandleOptions)
    values, kind = as_values(value, None, dtype)
    driver, path, settings = open_place(location, "r+", **handle)
    layout = {"shape": values.shape, "dtype": kind, **layout}
    spec = new_spec(driver, path, layout, overwrite)
    return save_at(driver, path, spec, settings, values, overwrite=overwrite)


def as_values(value: Any, shape: Any, dtype: Any) -> tuple[NDArray[Any], np.dtype[Any]]:
    """``value`` as the whole of an array of this ``shape`` and ``dtype``, by default its own, and
    the dtype that the array is to have."""
    if isinstance(value, Ragged | Mapping):
        raise Invalid(
            f"values are an array, a tensor or nested lists, not {type(value).__name__}; store rows"
            " of fields, or of different lengths, as save_records(location, {name: rows}) does"
        )
    kind = None if dtype is None else dtypes.parse(dtype)
    values = natural(value) if kind is None else as_array(value, kind)
    if shape is not None:
        values = broadcast(values, parse_lengths(shape, "shape"))
    return values, values.dtype if kind is None else kind


def save_at(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    settings: Settings,
    values: NDArray[Any],
    *,
    overwrite: bool = False,
    spare: Spare = None,
) -> Array:
    """As :func:`create_at`, of all values. ``spare``: as of ``node.making``."""
    check_in_place(driver, spec)
    spec = replace(spec, identity=new_identity())
    made = Array(driver, path, settings, spec, created=True)
    made.watch(False)  # its document comes last
    with node.making(driver, path, spec, "replace", overwrite=overwrite, spare=spare) as check:
        for rows in _pieces(spec):
            check()
            made[rows] = values[rows]
    made.watch(True)
    return made


def _pieces(spec: ArraySpec) -> Iterator[Any]:
    """Selections of whole chunks that are the whole array together, each of few bytes."""
    if not spec.shape:
        yield ...
        return
    (edge, *_), (length, *_) = spec.grid.chunks or spec.shape, spec.shape
    nbytes = edge * (spec.size // max(1, length)) * spec.dtype.itemsize
    step = edge * max(1, _BYTES // max(1, nbytes))
    yield from (slice(start, start + step) for start in range(0, length, step))


@shown(OpenArrayOptions, open_place)
def load(location: Location, **how: Unpack[OpenArrayOptions]) -> NDArray[Any]:
    """Read the whole array at a place into memory.

    Args:
        location: where it is stored, as for :func:`open`.
        path: where below the location, as for :func:`open`.
        version: of a repository, which version, as for :func:`open`.
        options, cache, immutable, threads, missing, write_fill, allow_pickle, lock_timeout,
            limits, memory_limit, cache_dir, cache_dir_bytes: how it is read, as :func:`open`
            explains.

    Returns:
        A new NumPy array of the stored shape and dtype.

    Raises:
        NotFound: nothing is stored there.
        Invalid: an argument is wrong, or a group is stored there.
        Corrupt: a chunk or the metadata is damaged.
        NoMemory: the array is larger than the memory of this machine.

    >>> place = {}
    >>> saved = stash.save(place, [[1, 2], [3, 4]])
    >>> stash.load(place).tolist()
    [[1, 2], [3, 4]]
    """
    result: NDArray[Any] = open(location, **how).read()
    return result
