"""Opening, creating, saving, loading and copying arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import dtype as dtypes
from . import fill as fills
from .array import Array
from .codec import Pipeline
from .coerce import as_array, natural, parse_bytes, parse_lengths
from .driver import Driver
from .errors import AlreadyExists, Invalid, NotFound, counted, short
from .handle import Settings
from .indexing.grid import Grid
from .limits import Limits
from .limits import parse as parse_limits
from .location import Location, resolve
from .metadata import defaults, node, zarr2, zarr3
from .metadata.defaults import CodecsLike
from .metadata.document import as_plain, lengths
from .metadata.spec import ArraySpec, KeyEncoding
from .metadata.trailer import new_identity
from .registry import disk_cache, make
from .wrapper import limited

Mode = Literal["r", "r+", "a", "w", "x"]
LimitsLike = Mapping[str, int | str] | Limits | None


def create(
    location: Location,
    shape: int | Sequence[int] | None = None,
    dtype: Any = None,
    *,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    threads: int | None = None,
    missing: Literal["fill", "raise"] = "fill",
    write_fill: bool = False,
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    overwrite: bool = False,
    **layout_options: Any,
) -> Array:
    """Create an array and answer a handle that reads and writes. Only metadata is stored: absent
    chunks read as the fill value, so a 1 TB array costs one small object.

    ``location`` is a path, a URL, a ``pathlib.Path``, a ``dict`` or a driver; an array or group
    that is there already raises :class:`~tensorstash.errors.AlreadyExists` unless
    ``overwrite``. ``layout_options`` say how it is stored, see :func:`make_spec`: ``chunks``,
    ``shards``, ``codecs``, ``fill_value``, ``dimension_names``, ``attributes``,
    ``zarr_format``, ``key_encoding``, ``separator``, ``order``, ``filters``. The other options
    are those of :func:`open`; ``write_fill`` stores chunks of nothing but fill too.

    >>> a = stash.create("memory://numbers", (4, 6), "int32", chunks=(2, 3))
    >>> a[1, ::2] = 7
    >>> a[:2].tolist()
    [[0, 0, 0, 0, 0, 0], [7, 0, 7, 0, 7, 0]]
    """
    settings = make_settings(
        "r+", cache, threads, missing, lock_timeout, limits, write_fill=write_fill
    )
    driver = limited(resolve(location, options), settings.limits)
    spec = make_spec(shape, dtype, **layout_options)
    return create_at(driver, "", spec, settings, overwrite=overwrite)


def create_at(
    driver: Driver, path: str, spec: ArraySpec, settings: Settings, *, overwrite: bool = False
) -> Array:
    """Create an array below a driver's root; ``path`` is empty or ends in ``/``."""
    spec = replace(spec, identity=new_identity())
    tag = node.create(driver, path, spec, overwrite=overwrite)
    return Array(driver, path, settings, spec, created=True, tag=tag)


def open(
    location: Location,
    mode: Mode = "r",
    *,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    immutable: bool = False,
    threads: int | None = None,
    missing: Literal["fill", "raise"] = "fill",
    write_fill: bool = False,
    allow_pickle: bool = False,
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_dir_bytes: int | str = "10GiB",
    **layout_options: Any,
) -> Array:
    """Open an array: one small read.

    ``mode``: ``"r"`` reads, ``"r+"`` also writes, ``"a"`` creates when absent, ``"w"``
    replaces, ``"x"`` creates and refuses to replace; the last three take what :func:`create`
    takes. ``options`` go to the driver. ``cache``: keep up to so many bytes of decoded chunks
    (``"1GiB"``), checked against the stored version at each use, with read-ahead for
    sequential access; ``immutable``: nobody writes while this handle is in use, so do not check.
    ``threads``: the most that one call uses (default: one a processor).
    ``missing="raise"``: absent chunks raise :class:`~tensorstash.errors.NotFound` instead of
    reading as fill. ``allow_pickle``: read and write v2 object arrays that are pickled, which
    runs code found in the data. ``lock_timeout``: the most seconds that ``append`` and ``resize``
    wait for another that holds the array's lock, before :class:`~tensorstash.errors.TimedOut` says
    who that is; ``None`` waits for ever. ``limits``: what is stored may take more memory than is
    usual, ``{"metadata": "1GiB"}`` a metadata document, ``{"chunk": "4GiB"}`` a chunk of text or
    bytes. ``cache_dir``: keep what is fetched from afar in this folder, up to ``cache_dir_bytes``,
    for all processes of this host and for the next run; checked against the stored version too,
    with a request that moves no bytes. Nothing stored there:
    :class:`~tensorstash.errors.NotFound`.
    """
    if mode not in ("r", "r+", "a", "w", "x"):
        raise Invalid(f"mode {mode!r} is not one of 'r', 'r+', 'a', 'w', 'x'")
    writes = "r" if mode == "r" else "r+"
    settings = make_settings(
        writes,
        cache,
        threads,
        missing,
        lock_timeout,
        limits,
        immutable=immutable,
        write_fill=write_fill,
        allow_pickle=allow_pickle,
    )
    driver = open_driver(location, options, cache_dir, cache_dir_bytes, immutable)
    driver = limited(driver, settings.limits)
    if mode in ("r", "r+"):
        if layout_options:
            raise Invalid(
                f"mode {mode!r} creates nothing, so it takes no {sorted(layout_options)[0]!r}"
            )
        return Array(driver, "", settings).refresh()
    if mode == "a":
        try:
            return Array(driver, "", settings).refresh()
        except NotFound:
            try:
                return create_at(driver, "", make_spec(**layout_options), settings)
            except AlreadyExists:  # another process created it meanwhile
                return Array(driver, "", settings).refresh()
    return create_at(driver, "", make_spec(**layout_options), settings, overwrite=mode == "w")


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
    **unknown: Any,
) -> ArraySpec:
    """The spec of a new array.

    ``chunks``: an edge an axis, or one for all; left out, chosen for about 512 KiB. ``shards``:
    store several chunks in one object, an edge an axis and multiples of ``chunks``; these, left
    out, are chosen to divide them, for about 32 KiB. ``codecs``: see
    :func:`tensorstash.metadata.defaults.chain`. ``fill_value``: default zero. ``order="F"`` stores
    chunks in column-major order. ``zarr_format=2`` and its numcodecs ``filters`` are for readers
    that know no v3.
    """
    for name in unknown:
        close = get_close_matches(name, make_spec.__kwdefaults__ or (), 1)
        hint = f"did you mean {close[0]!r}?" if close else "see help(tensorstash.create)"
        raise Invalid(f"an array has no option {name!r}; {hint}")
    if shape is None or dtype is None:
        raise Invalid("a new array needs shape= and dtype=")
    extent = lengths(list(parse_lengths(shape, "shape")), "shape", 0)
    kind = dtypes.parse(dtype)
    fill = fills.default(kind) if fill_value is None else fills.parse(fill_value, kind)
    names = None if dimension_names is None else _dimension_names(dimension_names, len(extent))
    if not isinstance(attributes or {}, Mapping):
        raise Invalid(f"attributes are a dict of values by name, not {short(attributes)}")
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
        steps = _v2_chain(kind, len(extent), codecs, order, filters)
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


def save(location: Location, value: Any, *, overwrite: bool = True, **options: Any) -> Array:
    """Store an array (NumPy, a torch tensor, a list) whole and answer its handle; takes what
    :func:`create` takes."""
    dtype = options.pop("dtype", None)
    array = natural(value) if dtype is None else as_array(value, dtypes.parse(dtype))
    kind = array.dtype if dtype is None else dtypes.parse(dtype)
    made = create(location, array.shape, kind, overwrite=overwrite, **options)
    made[...] = array
    return made


def load(location: Location, **options: Any) -> NDArray[Any]:
    """The whole array at ``location``, in memory; takes what :func:`open` takes."""
    result: NDArray[Any] = open(location, **options).read()
    return result


def _v2_chain(
    dtype: np.dtype[Any], ndim: int, codecs: CodecsLike, order: str, filters: Any
) -> tuple[Any, ...]:
    """A v2 chain: ``codecs`` is a compressor (a name, or a numcodecs configuration)."""
    listed = isinstance(filters or [], Sequence) and not isinstance(filters, str)
    for config in (*(filters or ()),) if listed else (None,):
        if not isinstance(config, Mapping) or not isinstance(config.get("id"), str):
            raise Invalid(f"filters are a list of dicts with an 'id', not {short(filters)}")
    wrong = {"T": "vlen-bytes", "O": "vlen-utf8"}.get(dtype.kind)
    if any(config["id"] == wrong for config in filters or ()):
        kind = "text" if dtype.kind == "T" else "bytes"
        raise Invalid(f"filter {wrong!r} cannot hold {kind}; leave filters out for the right one")
    if dtype.kind in "TO" and filters is None:
        filters = [{"id": "vlen-utf8" if dtype.kind == "T" else "vlen-bytes"}]
    compressor: Mapping[str, Any] | None
    if codecs is None or codecs == "raw":
        compressor = None
    elif codecs in ("auto", "blosc", *defaults.BLOSC):
        cname = codecs if codecs in defaults.BLOSC else "lz4"
        shuffle = 2 if dtype.itemsize == 1 else 1
        compressor = {"id": "blosc", "cname": cname, "clevel": 5, "shuffle": shuffle}
    elif isinstance(codecs, str):
        compressor = {"id": codecs}
    elif isinstance(codecs, Mapping) and isinstance(codecs.get("id"), str):
        compressor = codecs
    else:
        if filters is not None or order != "C":
            raise Invalid(
                "with a whole chain in codecs, order and filters belong into it; or give a "
                "compressor, as {'id': 'zlib', 'level': 5}"
            )
        return defaults.chain(codecs, dtype)
    return zarr2.chain(dtype, ndim, order=order, filters=filters, compressor=compressor)


def make_settings(
    mode: str,
    cache: int | str = 0,
    threads: int | None = None,
    missing: str = "fill",
    lock_timeout: float | None = 60.0,
    limits: LimitsLike = None,
    **flags: bool,
) -> Settings:
    """Settings from what a user gave; :class:`~tensorstash.errors.Invalid` names what is wrong."""
    if missing not in ("fill", "raise"):
        raise Invalid(f"missing={missing!r} is neither 'fill' nor 'raise'")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise Invalid(f"threads={short(threads)} is not a number of threads")
    number = isinstance(lock_timeout, int | float) and not isinstance(lock_timeout, bool)
    if lock_timeout is not None and not (number and 0 <= lock_timeout < 1e9):
        raise Invalid(f"lock_timeout={short(lock_timeout)} is not a number of seconds, nor None")
    return Settings(
        mode,
        parse_bytes(cache),
        threads=threads,
        missing=missing,
        lock_timeout=lock_timeout,
        limits=parse_limits(limits, parse_bytes),
        **flags,
    )


# -- drivers ---------------------------------------------------------------------------


_DOCUMENTS = frozenset({zarr3.KEY, zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS, zarr2.CONSOLIDATED})


def open_driver(
    location: Location,
    options: Mapping[str, Any] | None,
    cache_dir: str | os.PathLike[str] | None,
    cache_dir_bytes: int | str,
    immutable: bool,
) -> Driver:
    """:func:`resolve`, behind a ``DiskCache`` in ``cache_dir`` of at most
    ``cache_dir_bytes``; what is on this machine already needs none. ``immutable``: what it holds
    is not compared with what is stored, but for metadata."""
    driver = resolve(location, options)
    if cache_dir is None or driver.capabilities.local:
        return driver
    limit = parse_bytes(cache_dir_bytes)
    found: Driver = disk_cache()(driver, os.fspath(cache_dir), limit, immutable, _DOCUMENTS)
    return found
