"""Opening, creating, saving, loading and copying arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import dtype as dtypes
from . import fill as fills
from . import layout, node
from .array import Array, Settings
from .chain import make
from .codec import Pipeline
from .driver import Driver
from .errors import AlreadyExists, Invalid, NotFound
from .formats import zarr2
from .grid import Grid
from .layout import CodecsLike
from .location import Location, resolve
from .shard import Sharding
from .spec import ArraySpec, KeyEncoding
from .values import as_array, is_tensor, parse_bytes

Mode = Literal["r", "r+", "a", "w", "x"]


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
    """
    driver = resolve(location, options)
    spec = make_spec(shape, dtype, **layout_options)
    settings = _settings("r+", cache, threads, missing, write_fill, False)
    return create_at(driver, "", spec, settings, overwrite=overwrite)


def create_at(
    driver: Driver, path: str, spec: ArraySpec, settings: Settings, *, overwrite: bool = False
) -> Array:
    """Create an array below a driver's root; ``path`` is empty or ends in ``/``."""
    node.create(driver, path, spec, overwrite=overwrite)
    return Array(driver, path, settings, spec)


def open(  # noqa: A001 - the library's own verb, used as ``stash.open``
    location: Location,
    mode: Mode = "r",
    *,
    options: Mapping[str, Any] | None = None,
    cache: int | str = 0,
    threads: int | None = None,
    missing: Literal["fill", "raise"] = "fill",
    write_fill: bool = False,
    allow_pickle: bool = False,
    **layout_options: Any,
) -> Array:
    """Open an array: one small read.

    ``mode``: ``"r"`` reads, ``"r+"`` also writes, ``"a"`` creates when absent, ``"w"``
    replaces, ``"x"`` creates and refuses to replace; the last three take what :func:`create`
    takes. ``options`` go to the driver. ``cache``: keep up to so many bytes of decoded chunks
    (``"1GiB"``), checked against the stored version at each use, with read-ahead for
    sequential access. ``threads``: the most that one call uses (default: one a processor).
    ``missing="raise"``: absent chunks raise :class:`~tensorstash.errors.NotFound` instead of
    reading as fill. ``allow_pickle``: read and write v2 object arrays that are pickled, which
    runs code found in the data. Nothing stored there: :class:`~tensorstash.errors.NotFound`.
    """
    if mode not in ("r", "r+", "a", "w", "x"):
        raise Invalid(f"mode {mode!r} is not one of 'r', 'r+', 'a', 'w', 'x'")
    driver = resolve(location, options)
    writes = "r" if mode == "r" else "r+"
    settings = _settings(writes, cache, threads, missing, write_fill, allow_pickle)
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
) -> ArraySpec:
    """The spec of a new array.

    ``chunks``: an edge an axis, or one for all; left out, chosen for about 512 KiB. ``shards``:
    store several chunks in one object, an edge an axis and multiples of ``chunks``. ``codecs``:
    see :func:`tensorstash.layout.chain`. ``fill_value``: default zero. ``order="F"`` stores
    chunks in column-major order. ``zarr_format=2`` and its numcodecs ``filters`` are for
    readers that know no v3.
    """
    if shape is None or dtype is None:
        raise Invalid("a new array needs shape= and dtype=")
    extent = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if any(n < 0 for n in extent):
        raise Invalid(f"shape {extent} has a negative length")
    kind = dtypes.parse(dtype)
    fill = fills.default(kind) if fill_value is None else fills.parse(fill_value, kind)
    if dimension_names is not None and len(dimension_names) != len(extent):
        raise Invalid(f"{len(dimension_names)} dimension_names for {len(extent)} axes")
    target = layout.CHUNK_BYTES if shards is None else layout.INNER_BYTES
    inner = layout.chunk_shape(chunks, extent, kind.itemsize, target)
    outer = inner if shards is None else layout.chunk_shape(shards, extent, kind.itemsize, target)
    if zarr_format == 2:
        if shards is not None:
            raise Invalid("Zarr v2 has no shards; leave shards out, or use zarr_format=3")
        steps = _v2_chain(kind, len(extent), codecs, order, filters)
    elif zarr_format == 3:
        if filters is not None:
            raise Invalid("filters are Zarr v2's; name them in codecs, as 'numcodecs.delta' say")
        steps = layout.chain(codecs, kind)
        if order == "F" and len(extent) > 1:
            steps = (make("transpose", {"order": list(range(len(extent)))[::-1]}), *steps)
        if shards is not None:
            steps = layout.sharded(steps, inner, outer)
    else:
        raise Invalid(f"zarr_format {zarr_format!r} is neither 2 nor 3")
    grid = Grid.regular(outer)
    name = key_encoding or ("default" if zarr_format == 3 else "v2")
    spec = ArraySpec(
        shape=extent,
        dtype=kind,
        grid=grid,
        codecs=steps,
        fill=fill,
        keys=KeyEncoding(name, separator or ("/" if name == "default" else ".")),
        dimension_names=None if dimension_names is None else tuple(dimension_names),
        attributes=dict(attributes or {}),
        zarr_format=zarr_format,
    )
    Pipeline(spec.codecs, spec.chunk_spec(outer))  # refuses what does not fit together
    return spec


def save(location: Location, value: Any, *, overwrite: bool = True, **options: Any) -> Array:
    """Store an array (NumPy, a torch tensor, a list) whole and answer its handle; takes what
    :func:`create` takes."""
    dtype = options.pop("dtype", None)
    if dtype is None and not is_tensor(value):
        value = np.asarray(value)
        dtype = np.dtypes.StringDType() if value.dtype.kind == "U" else value.dtype
    array = as_array(value, np.dtype("V0") if dtype is None else dtypes.parse(dtype))
    kind = array.dtype if dtype is None else dtypes.parse(dtype)
    made = create(location, array.shape, kind, overwrite=overwrite, **options)
    made[...] = array
    return made


def load(location: Location, **options: Any) -> NDArray[Any]:
    """The whole array at ``location``, in memory; takes what :func:`open` takes."""
    result: NDArray[Any] = open(location, **options).read()
    return result


def copy(
    source: Location | Array,
    target: Location,
    *,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **changes: Any,
) -> Array:
    """Copy an array, chunk by chunk of the target, between any two drivers.

    ``changes`` are what :func:`make_spec` takes (``chunks=``, ``codecs=``, ``dtype=``, ...);
    what is left out stays as it is in the source. ``progress`` shows a bar (needs tqdm).
    Memory in use: one target chunk.
    """
    origin = source if isinstance(source, Array) else open(source)
    spec = _changed(origin.spec, changes)
    made = create_at(resolve(target, options), "", spec, Settings(mode="r+"), overwrite=overwrite)
    blocks: Iterator[Any] = _places(made)
    if progress:
        blocks = _with_bar(blocks, spec.size * spec.dtype.itemsize)
    for where in blocks:
        made[where] = origin[where]
    return made


def _changed(spec: ArraySpec, changes: Mapping[str, Any]) -> ArraySpec:
    """``spec`` with a user's changes; kept chain and grid where they still fit."""
    if not changes and spec.grid.chunks is not None:
        return spec
    sharding = spec.codecs[0] if isinstance(spec.codecs[0], Sharding) else None
    known: dict[str, Any] = {
        "shape": spec.shape,
        "dtype": spec.dtype,
        "codecs": list(sharding.codecs if sharding else spec.codecs),
        "fill_value": spec.fill[()],
        "dimension_names": spec.dimension_names,
        "attributes": spec.attributes,
    }
    if spec.zarr_format == 2 or "dtype" in changes:
        known["codecs"] = "auto"
    if spec.grid.chunks is not None and "chunks" not in changes and "shards" not in changes:
        known["chunks"] = sharding.chunk_shape if sharding else spec.grid.chunks
        known["shards"] = spec.grid.chunks if sharding else None
    if "dtype" in changes:
        known["fill_value"] = spec.fill.astype(dtypes.parse(changes["dtype"]))[()]
    return make_spec(**{**known, **changes})


def _places(array: Array) -> Iterator[tuple[slice, ...]]:
    grid, counts = array.spec.grid, array.spec.grid.counts(array.shape)
    for index in np.ndindex(*counts):
        starts = grid.origin(index)
        stops = (a + n for a, n in zip(starts, grid.chunk_shape(index), strict=True))
        yield tuple(slice(a, min(b, n)) for a, b, n in zip(starts, stops, array.shape, strict=True))


def _with_bar(blocks: Iterator[Any], nbytes: int) -> Iterator[Any]:
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError as error:
        raise Invalid("progress=True needs tqdm: pip install tqdm") from error
    places = list(blocks)
    with tqdm(total=nbytes, unit="B", unit_scale=True, desc="copy") as bar:
        for where in places:
            yield where
            bar.update(nbytes / max(1, len(places)))


def _v2_chain(
    dtype: np.dtype[Any], ndim: int, codecs: CodecsLike, order: str, filters: Any
) -> tuple[Any, ...]:
    """A v2 chain: ``codecs`` is a compressor (a name, or a numcodecs configuration)."""
    if dtype.kind in "TO" and filters is None:
        filters = [{"id": "vlen-utf8" if dtype.kind == "T" else "vlen-bytes"}]
    compressor: Mapping[str, Any] | None
    if codecs is None or codecs == "raw":
        compressor = None
    elif codecs == "auto" or codecs in ("blosc", "lz4"):
        compressor = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}
        if dtype.itemsize == 1:
            compressor = {**compressor, "shuffle": 2}
    elif isinstance(codecs, str):
        compressor = {"id": codecs}
    elif isinstance(codecs, Mapping) and "id" in codecs:
        compressor = codecs
    else:
        return layout.chain(codecs, dtype)
    return zarr2.chain(dtype, ndim, order=order, filters=filters, compressor=compressor)


def _settings(
    mode: str,
    cache: int | str,
    threads: int | None,
    missing: str,
    write_fill: bool,
    allow_pickle: bool,
) -> Settings:
    if missing not in ("fill", "raise"):
        raise Invalid(f"missing={missing!r} is neither 'fill' nor 'raise'")
    if threads is not None and threads < 1:
        raise Invalid(f"threads={threads} is not a number of threads")
    return Settings(mode, parse_bytes(cache), threads, missing, write_fill, allow_pickle)
