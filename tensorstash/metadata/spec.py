"""What an array is, in any format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..codec import ChunkSpec, Codec, Pipeline
from ..errors import StashError, counted, short
from ..fill import is_fill
from ..indexing.grid import Grid


@dataclass(frozen=True, slots=True)
class KeyEncoding:
    """How a chunk's index becomes its key: ``c/0/1`` (``default``) or ``0.1`` (``v2``)."""

    name: Literal["default", "v2"] = "default"
    separator: Literal["/", "."] = "/"

    def key(self, index: Sequence[int]) -> str:
        """The key of a chunk below its array (Zarr v3 core, "Chunk key encoding")."""
        if self.name == "default":
            return self.separator.join(("c", *map(str, index)))
        return self.separator.join(map(str, index)) if index else "0"

    @property
    def prefix(self) -> str:
        """What every key of an array with at least one axis begins with."""
        return "c" + self.separator if self.name == "default" else ""

    def index(self, key: str, ndim: int) -> tuple[int, ...] | None:
        """The inverse of :meth:`key`; ``None`` when ``key`` names no chunk."""
        parts = key.split(self.separator)
        if self.name == "default":
            if parts[0] != "c":
                return None
            parts = parts[1:]
        elif ndim == 0:
            return () if key == "0" else None
        if len(parts) != ndim or not all(map(_is_number, parts)):
            return None
        index = tuple(map(int, parts))
        return index if self.key(index) == key else None


def _is_number(part: str) -> bool:
    # No grid has as many chunks as 20 digits count; Python refuses to read thousands of them.
    return part.isascii() and part.isdigit() and len(part) < 20


@dataclass(frozen=True)
class ArraySpec:
    """Everything needed to read and write an array's chunks, and its metadata document.

    ``fill`` is a 0-d array of ``dtype``; ``fill_defined`` is ``False`` for Zarr v2's
    ``null``, whose absent chunks read as zeros, or NaT. ``document`` is the document as stored, so
    that rewriting it keeps what we do not interpret. ``reach``: how far appends that did not end
    may yet store chunks (:mod:`~tensorstash.metadata.trailer`). ``identity``: what tells it from
    other arrays at the same place; empty where others stored it, ``None`` where that was not
    looked at. ``of_records``: it was opened alone, and holds a field of records. ``in_place``: its
    chunks are plain memory, and what is assigned is written within them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: Grid
    codecs: tuple[Codec, ...]
    fill: NDArray[Any] = field(compare=False)
    keys: KeyEncoding = KeyEncoding()
    dimension_names: tuple[str | None, ...] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    zarr_format: Literal[2, 3] = 3
    fill_defined: bool = True
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    reach: tuple[int, ...] = field(default=(), repr=False, compare=False)
    identity: bytes | None = field(default=None, repr=False, compare=False)
    of_records: bool = field(default=False, repr=False, compare=False)
    in_place: bool = field(default=False, repr=False, compare=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @Cached
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of_shape(self, shape: tuple[int, ...]) -> ArraySpec:
        """The same array with another shape, in a grid that covers it: :func:`dataclasses.replace`
        for what each append does several times."""
        made = object.__new__(ArraySpec)
        made.__dict__.update(self.__dict__)
        made.__dict__["shape"] = shape
        made.__dict__.pop("size", None)
        return made

    def misfit_in_place(self) -> str | None:
        """Why its chunks cannot be written in place; ``None`` where they can."""
        if self.dtype.kind in "OT" or self.dtype.hasobject:
            return f"elements of {self.dtype} vary in size"
        if self.zarr_format != 3 or self.grid.chunks is None:
            return "only regular chunks of Zarr v3 are written in place"
        if len(self.codecs) != 1 or self.codecs[0].name != "bytes":
            return f"chunks encoded by {', '.join(c.name for c in self.codecs)} are no plain memory"
        chunk = self.chunk_spec(self.grid.chunks)
        if not 0 < chunk.nbytes < 1 << 62 or not Pipeline(self.codecs, chunk).raw:
            return "its chunks are not in this machine's byte order, or have no size"
        return None

    def check_pair(self) -> None:
        """:class:`~tensorstash.errors.Invalid` where elements of any length meet a codec that
        holds none such, or the reverse: no chunk of it can be."""
        varied = self.dtype.kind in "OT" or self.codecs[0].name in ("vlen-utf8", "vlen-bytes")
        if not varied or self.grid.chunks is None:
            return
        spec = self.chunk_spec(self.grid.chunks)
        if spec.nbytes < 1 << 63:  # else no memory holds one: every use but this says so
            Pipeline(self.codecs, spec)

    def chunk_spec(self, shape: tuple[int, ...], most: int | None = None) -> ChunkSpec:
        """A chunk of ``shape`` of this array; ``most``: bytes to which one of text or bytes may
        decode, where the handle says."""
        return ChunkSpec(shape, self.dtype, self.fill, most)


_FREE = ("shape", "attributes", "dimension_names", "fill_value")
"""Keys of a document that say nothing of how chunks are stored; fill values are compared apart,
by their bits."""


ANOTHER = "it is another array, though a like one"


def difference(known: ArraySpec, now: ArraySpec) -> str | None:
    """What makes ``now`` another array than ``known``, in words; ``None`` where a handle that
    knows the one may read and write the other. Lengths, names and attributes may differ, and the
    same may be spelled otherwise. Others drop the identity when they change the document: then the
    rest decides."""
    found = _difference(known, now)
    if found is None and is_another(known.identity, now.identity):
        return ANOTHER
    return found


def is_another(known: bytes | None, now: bytes | None) -> bool:
    """Whether two identities tell that the array is not the one that was known."""
    return bool(now) and known not in (None, now)


def _difference(known: ArraySpec, now: ArraySpec) -> str | None:
    if known.zarr_format != now.zarr_format:
        return f"Zarr v{known.zarr_format} is now v{now.zarr_format}"
    if known.dtype != now.dtype:
        return f"dtype {known.dtype} is now {now.dtype}"
    if known.ndim != now.ndim:
        return f"{counted(known.ndim, 'axis is', 'axes are')} now {now.ndim}"
    if not _is_same_fill(known.fill, now.fill):
        return f"fill value {short(known.fill[()])} is now {short(now.fill[()])}"
    if known.in_place != now.in_place:
        return f"chunks are {'replaced' if known.in_place else 'written in place'} now"
    if _is_same_document(known.document, now.document):
        return None
    if not known.grid.begins(now.grid):  # listed chunks grow with the array
        edges = [spec.grid.chunks or "of differing shapes" for spec in (known, now)]
        return f"chunks {edges[0]} are now {edges[1]}"
    if known.keys != now.keys:
        return f"chunk keys {known.keys} are now {now.keys}"
    if known.codecs != now.codecs and not _is_same_chain(known, now):
        return f"codecs {short(list(known.codecs))} are now {short(list(now.codecs))}"
    return None


def _is_same_document(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(known) and all(
        known.get(key) == now.get(key) for key in known.keys() | now.keys() if key not in _FREE
    )


def _is_same_fill(known: NDArray[Any], now: NDArray[Any]) -> bool:
    if known.dtype.kind != "O":
        return is_fill(known, now)
    one, other = known[()], now[()]
    # By their text too: NaN, which JSON can hold at any depth, is equal to no other.
    return type(one) is type(other) and (bool(one == other) or repr(one) == repr(other))


def _is_same_chain(known: ArraySpec, now: ArraySpec) -> bool:
    """Whether the chains are the same once what depends on the chunk is filled in, which others
    may have spelled out."""
    try:
        bound = [
            Pipeline(spec.codecs, spec.chunk_spec(spec.grid.chunk_shape((0,) * spec.ndim))).codecs
            for spec in (known, now)
        ]
    except StashError:  # a chain that takes no such chunk is like no other
        return False
    return bound[0] == bound[1]
