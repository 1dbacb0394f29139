"""Choosing chunk shapes and codec chains from what a user says, or does not say.

The defaults come from the measured table in ``docs/performance-figures.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..codec import BytesCodec, Codec, Serializer, split
from ..coerce import parse_lengths
from ..errors import Invalid, Unsupported, counted, short
from ..registry import extension, make
from ..sharding import Sharding
from . import zarr2
from .document import MAX_LENGTH

CodecLike: TypeAlias = Codec | str | Mapping[str, Any]
CodecsLike: TypeAlias = CodecLike | Sequence[CodecLike] | None

CHUNK_BYTES = 512 << 10
"""Bulk reads are flat from 256 KiB a chunk up, an element's latency grows with the size."""

INNER_BYTES = 32 << 10
"""Inner chunks of shards: small, because reaching one costs no request of its own."""

IN_PLACE_BYTES = 8 << 20
"""Of arrays written in place: no chunk is moved for one row, and files that are few stay open."""

_BLOCK_BYTES = 32 << 10
"""Blocks that Blosc decodes one by one: a row or an element costs one, not a chunk. Against its
own choice (most of a chunk) bulk decoding is about a tenth slower, ratios equal."""

BLOSC = ("blosclz", "lz4", "lz4hc", "snappy")
"""Compressors within blosc that may be named by themselves."""


def auto_chunks(shape: Sequence[int], itemsize: int, target: int = CHUNK_BYTES) -> tuple[int, ...]:
    """A chunk shape of about ``target`` bytes, as near to a cube as ``shape`` lets it be, with
    edges that are powers of two or whole axes. An axis of length 0 counts as one that will
    grow long."""
    room = max(1.0, target / max(1, itemsize))
    edges = dict.fromkeys(range(len(shape)), 1)
    left = sorted(edges, key=lambda k: shape[k] or math.inf)
    while left:
        axis = left.pop(0)
        even = room ** (1 / (len(left) + 1))
        n = shape[axis] or math.inf
        edge = n if n <= even * 1.5 and n <= room else 2 ** int(math.log2(even * 1.01))
        edges[axis] = int(max(1, min(edge, n)))
        room = max(1.0, room / edges[axis])
    return tuple(edges[k] for k in range(len(shape)))


def chunk_shape(
    chunks: int | Sequence[int | None] | str | None,
    shape: Sequence[int],
    itemsize: int,
    what: str = "chunks",
) -> tuple[int, ...]:
    """The chunk shape a user asked for: nothing or ``"auto"``, one edge for every axis, or an
    edge an axis, where ``-1`` and ``None`` stand for the whole axis."""
    if chunks is None or isinstance(chunks, str):
        if chunks not in (None, "auto") or what != "chunks":
            raise Invalid(f"{what} cannot be {short(chunks)}; give an edge an axis")
        return auto_chunks(shape, itemsize)
    if isinstance(chunks, Iterable):
        given = parse_lengths([-1 if n is None else n for n in chunks], what)
    else:
        given = parse_lengths(chunks, what) * len(shape)
    if len(given) != len(shape):
        raise Invalid(
            f"{what} {given} have {counted(len(given), 'axis', 'axes')}, the array has {len(shape)}"
        )
    edges = tuple(max(1, n) if edge == -1 else edge for edge, n in zip(given, shape, strict=True))
    for edge in edges:
        if not 1 <= edge <= MAX_LENGTH:
            raise Invalid(f"{what} {given} have an edge of {edge}; the least is 1")
    return edges


def row_chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """A chunk shape of whole rows along the first axis, of about :data:`IN_PLACE_BYTES`, for an
    array whose rows are written in place; where one row is more, that of any array."""
    row = math.prod(shape[1:]) * max(1, itemsize)
    if not shape or not 0 < row <= IN_PLACE_BYTES:
        return auto_chunks(shape, itemsize)
    rows = IN_PLACE_BYTES // row
    return (min(rows, shape[0]) if shape[0] else rows, *shape[1:])


def inner_chunks(shards: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """A chunk shape of about :data:`INNER_BYTES` that divides ``shards``."""
    edges = auto_chunks(shards, itemsize, INNER_BYTES)
    return tuple(
        next(edge for edge in range(most, 0, -1) if n % edge == 0)
        for most, n in zip(edges, shards, strict=True)
    )


def chain(codecs: CodecsLike, dtype: np.dtype[Any]) -> tuple[Codec, ...]:
    """A whole chain from what a user asked for.

    ``"auto"``: blosc-lz4 with shuffle (zstd for strings) and crc32c. A name (``"zstd"``,
    ``"gzip"``, ``"lz4"``, ...): that compressor and crc32c. ``None`` or ``"raw"``: uncompressed,
    without checksum. A codec, or a list of codecs, names and v3 documents: just these, with the
    serializer added where there is none.
    """
    if codecs is None or codecs == "raw":
        return (serializer(dtype),)
    if isinstance(codecs, str):
        if codecs == "auto":
            packed: Codec = (
                make("zstd", {"level": 3}) if dtype.kind in "TO" else _blosc("lz4", dtype)
            )
        else:
            packed = _named(codecs, dtype)
        if not isinstance(packed, BytesCodec):
            return _completed([packed], dtype)
        tail = [packed] if packed.name == "crc32c" else [packed, make("crc32c", {})]
        return (serializer(dtype), *tail)
    if isinstance(codecs, (Codec, Mapping)):
        codecs = [codecs]
    if not isinstance(codecs, Sequence):
        raise Invalid(f"codecs={short(codecs)}: give a name, a codec, a list of them, or None")
    return _completed([_one(item, dtype) for item in codecs], dtype)


def serializer(dtype: np.dtype[Any]) -> Codec:
    """The array -> bytes codec that a dtype calls for."""
    if dtype.kind == "T":
        return make("vlen-utf8", {})
    if dtype.kind == "O":
        return make("vlen-bytes", {})
    single = dtype.itemsize == 1 and dtype.names is None
    return make(
        "bytes",
        {} if single or (dtype.kind == "V" and dtype.names is None) else {"endian": "little"},
    )


def sharded(
    inner: Sequence[Codec], chunks: tuple[int, ...], shards: tuple[int, ...]
) -> tuple[Codec, ...]:
    """The chain of an array of ``shards`` that hold ``chunks``."""
    if len(shards) != len(chunks) or any(s % c for s, c in zip(shards, chunks, strict=False)):
        raise Invalid(f"shards {shards} are not whole numbers of chunks {chunks} along each axis")
    return (Sharding(chunks, inner),)


def _completed(codecs: list[Codec], dtype: np.dtype[Any]) -> tuple[Codec, ...]:
    if not any(isinstance(codec, Serializer) for codec in codecs):
        at = next((k for k, c in enumerate(codecs) if isinstance(c, BytesCodec)), len(codecs))
        codecs.insert(at, serializer(dtype))
    split(codecs)
    return tuple(codecs)


def _one(item: Any, dtype: np.dtype[Any]) -> Codec:
    if isinstance(item, Codec):
        return item
    if isinstance(item, str):
        return serializer(dtype) if item == "bytes" else _named(item, dtype)
    if isinstance(item, Mapping):
        name, configuration, _ = extension(dict(item), "codec")
        return make(name, configuration)
    get_config = getattr(item, "get_config", None)
    if get_config is not None:
        raise Unsupported(
            f"{type(item).__name__} is a numcodecs codec; name it: "
            f"{{'name': 'numcodecs.{get_config()['id']}', 'configuration': ...}}"
        )
    raise Invalid(f"{item!r} is not a codec; give a name, a codec object or a v3 document")


def _named(name: str, dtype: np.dtype[Any]) -> Codec:
    if name == "blosc" or name in BLOSC:
        return _blosc("lz4" if name == "blosc" else name, dtype)
    if name == "zstd":
        return make("zstd", {"level": 3})
    if name == "gzip":
        return make("gzip", {"level": 5})
    return make(name, {})


def _blosc(cname: str, dtype: np.dtype[Any]) -> Codec:
    # Shuffling bytes does nothing for one-byte elements; to shuffle their bits costs more time than
    # it saves bytes (decision 28).
    shuffle = "noshuffle" if dtype.itemsize == 1 else "shuffle"
    return make(
        "blosc",
        {
            "cname": cname,
            "clevel": 5,
            "shuffle": shuffle,
            "typesize": min(max(dtype.itemsize, 1), 255),
            "blocksize": _BLOCK_BYTES,
        },
    )


def chain_v2(
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
    elif codecs in ("auto", "blosc", *BLOSC):
        cname = codecs if codecs in BLOSC else "lz4"
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
        return chain(codecs, dtype)
    return zarr2.chain(dtype, ndim, order=order, filters=filters, compressor=compressor)
