"""The codec contract, and the pipeline that runs a chain of codecs over one chunk.

A Zarr chain is array -> array codecs, exactly one array -> bytes codec, then
bytes -> bytes codecs (Zarr v3 core, "Codecs"). Codecs are pure: they see one chunk,
never a driver.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from .cached import Cached as Cached
from .driver import Buffer as Buffer
from .errors import Corrupt, Invalid, StashError, Unsupported, counted
from .errors import short as short
from .limits import CHUNK, HUGE, NODE_BYTES, SLACK, room
from .limits import values_in as values_in

UNSIZED_LIMIT = CHUNK
"""Bytes a decoder may produce where the chain does not fix the size (strings, say)."""

_Result = TypeVar("_Result")

OBJECT_BYTES = NODE_BYTES
"""Memory that one Python object of a decoded chunk takes, beside its bytes."""


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """What a chunk is at one point of a chain: its shape, dtype and fill value.

    ``fill`` is a 0-d array of ``dtype``, so that NaN payloads and -0.0 keep their bits.
    ``most``: bytes to which a chunk of elements of any length may decode, where that was said.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: NDArray[Any] = field(compare=False)
    most: int | None = field(default=None, compare=False)

    @property
    def count(self) -> int:
        """Elements in the chunk."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk in memory (for strings: of their references)."""
        return self.count * self.dtype.itemsize

    @property
    def sized(self) -> bool:
        """Whether the dtype fixes the size of an element."""
        return not self.dtype.hasobject and self.dtype.kind != "T"

    def room(self, stored: int) -> int:
        """Bytes to which ``stored`` bytes of such a chunk may decode, where its elements are of
        any length."""
        return room(self.most, stored, self.count)


class Codec(ABC):  # noqa: B024 - what is abstract differs by kind: see the three below
    """One step between a chunk and its stored bytes: the base class of the three kinds below.

    Codecs are immutable, hashable by configuration, and safe in several threads.
    """

    name: ClassVar[str] = ""

    step: ClassVar[str | None] = None
    """What the engine's kernel calls the decoding of this format, where it knows how: of this class
    alone, for one that derives from it may decode otherwise."""

    def configuration(self) -> dict[str, Any]:
        """The ``configuration`` object of the metadata document; empty when there is none."""
        return {}

    def bind(self, spec: ChunkSpec) -> Codec:
        """This codec made ready for chunks like ``spec`` (a missing blosc typesize filled in,
        say). Raises :class:`~tensorstash.errors.Invalid` when it cannot encode them."""
        return self

    @property
    def unfit(self) -> str | None:
        """Why the codec can only decode: an option that only encoding needs is wrong. ``None`` if
        it can encode."""
        told = vars(self).get("_unfit")
        return None if told is None else str(told[0])

    def document(self) -> dict[str, Any]:
        """The codec as an element of ``"codecs"`` in ``zarr.json``, in the v3.0 object form."""
        told = vars(self).get("_unfit")
        configuration = self.configuration() if told is None else dict(told[1])
        named = {"name": self.name}
        return {**named, "configuration": configuration} if configuration else named

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.configuration().items())
        return f"{type(self).__name__}({inner})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(repr(self))


class ArrayCodec(Codec):
    """A codec that turns an array into another array: transpose, rounding, a change of dtype."""

    moves_only: ClassVar[bool] = False
    """Whether elements are moved, never changed: both directions are views."""

    @abstractmethod
    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """What :meth:`encode` turns a chunk like ``spec`` into."""

    @abstractmethod
    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """The chunk as the next codec sees it. May be a view."""

    @abstractmethod
    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """The inverse; ``spec`` is what the result must be. May be a view."""


class Serializer(Codec):
    """A codec that turns an array into bytes. A chain has exactly one."""

    @abstractmethod
    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The chunk's bytes. ``chunk`` may have any strides and byte order."""

    @abstractmethod
    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """An array of ``spec.shape`` and ``spec.dtype``; may be a read-only view of ``data``.
        ``ValueError`` when ``data`` cannot be such a chunk."""

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """The exact size of an encoded chunk, or ``None`` when it varies."""
        return None

    def encoded_limit(self, spec: ChunkSpec) -> int | None:
        """The most bytes an encoded chunk can have; ``None`` where elements of any length leave
        that open."""
        exact = self.encoded_nbytes(spec)
        if exact is not None or not spec.sized:
            return exact
        return 2 * spec.nbytes + SLACK

    def is_memory(self, spec: ChunkSpec) -> bool:
        """Whether the encoded bytes are the C-ordered memory of the chunk, so that a
        decompressor may write them straight into an array."""
        return False

    def overfull(self, spec: ChunkSpec) -> str | None:
        """Why a chunk like ``spec`` is too large: a part of it exceeds the limit of an inner
        codec. ``None`` if it can be encoded."""
        return None

    def misfit(self, spec: ChunkSpec) -> str | None:
        """Why no chunk like ``spec`` can be encoded, found by trying; ``None`` if some can.
        Called when an array is created, never for an existing array."""
        return None

    def memory_dtype(self, spec: ChunkSpec) -> np.dtype[Any] | None:
        """The dtype of which the encoded bytes are the C-ordered memory, in whatever byte order;
        ``None`` where they are not."""
        return spec.dtype if self.is_memory(spec) else None


class BytesCodec(Codec):
    """A codec that turns bytes into other bytes: compression, a checksum."""

    @property
    def capacity(self) -> int | None:
        """The most bytes that it can encode; ``None`` where memory alone decides."""
        return None

    def overfull(self, nbytes: int) -> str | None:
        """Why ``nbytes`` cannot be encoded, where they are more than :attr:`capacity`."""
        most = self.capacity
        if most is None or nbytes <= most:
            return None
        return (
            f"codec {self.name!r} holds at most {counted(most, 'byte')}, not {nbytes}; "
            f"use smaller chunks"
        )

    @abstractmethod
    def encode(self, data: Buffer) -> Buffer:
        """Encoded bytes. Deterministic: equal input gives equal output."""

    def encode_change(self, data: Buffer, before: Buffer, start: int, stop: int) -> Buffer | None:
        """As :meth:`encode`, where :meth:`encode` made ``before`` of bytes that were others only
        from ``start`` to ``stop``; ``None`` where that is no cheaper."""
        return None

    def within(self, encoded: Buffer) -> Buffer | None:
        """What :meth:`encode` made ``encoded`` of, where that lies in it."""
        return None

    @abstractmethod
    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """Decoded bytes, at most ``limit`` of them. With ``out`` the result must fill ``out``
        exactly, is written there, and ``out`` is returned. Sizes claimed by ``data`` are
        checked against ``limit`` *before* anything is allocated. ``ValueError`` (or the
        library's own error) when ``data`` is damaged."""

    def decode_span(self, data: Buffer, limit: int, start: int, stop: int, out: memoryview) -> bool:
        """Bring decoded bytes ``start:stop`` to their place in ``out``, which has room for all
        of them, where that is cheaper than decoding everything. ``False``: nothing was done."""
        return False

    def step_options(self, nbytes: int) -> tuple[int, ...] | None:
        """The numbers by which the engine's kernel makes of ``nbytes`` just the bytes that
        :meth:`encode` makes, with a :attr:`~Codec.step`; ``None`` where it cannot."""
        return None

    def encoded_nbytes(self, nbytes: int) -> int | None:
        """What ``nbytes`` become when encoded, whatever they are; ``None`` when that varies."""
        return None

    def encoded_limit(self, nbytes: int) -> int:
        """The most bytes that ``nbytes`` can become when encoded, by whatever encoder: a stored
        chunk that has more is not read. Generous, for others write as they like."""
        return 2 * nbytes + SLACK


class Pipeline:
    """A chain of codecs bound to one kind of chunk: ``encode`` and ``decode`` are inverses.

    ``stored`` is the chunk as the serializer sees it (after array -> array codecs);
    ``most`` the most bytes an encoded chunk can have, ``nbytes`` the exact number where it is
    fixed; ``sized`` says that ``most`` follows from the metadata, not from :mod:`.limits`;
    ``direct`` that :meth:`decode` can write into memory given to it; ``ordered`` that this
    memory is the chunk itself, for no array -> array codec rearranges it; ``spans`` that part of
    a chunk is had for less than all of it. ``unfit``: why such chunks cannot be encoded, where an
    option that reading does not need is wrong, or a codec holds less; they are read all the same.
    """

    def __init__(self, codecs: Sequence[Codec], spec: ChunkSpec) -> None:
        arrays, serializer, tail = split(codecs)
        if spec.nbytes >= 1 << 63:
            raise Invalid(
                f"no memory can hold a chunk of shape {spec.shape} of {spec.dtype}; "
                "use smaller chunks"
            )
        self.spec = spec
        self.unfit = next((codec.unfit for codec in codecs if codec.unfit is not None), None)
        self._arrays: list[tuple[ArrayCodec, ChunkSpec]] = []
        for codec in arrays:
            bound = _asked(codec, codec.bind, spec)
            assert isinstance(bound, ArrayCodec)
            self._arrays.append((bound, spec))
            spec = replace(_asked(bound, bound.encoded, spec), most=spec.most)
        self.stored = spec
        self.ordered = not self._arrays
        ready = _asked(serializer, serializer.bind, spec)
        assert isinstance(ready, Serializer)
        self.serializer = ready
        size = ready.encoded_nbytes(spec)
        most = ready.encoded_limit(spec)
        self.direct = ready.is_memory(spec)
        self.sized = most is not None
        if most is None:
            most = UNSIZED_LIMIT if spec.most is None else spec.most
        self.unfit = self.unfit or ready.overfull(spec)
        self._tail: list[tuple[BytesCodec, int]] = []  # with what each may decode to
        for step in tail:
            if size is not None:
                self.unfit = self.unfit or step.overfull(size)
            if self.unfit is not None:
                bound_step: Codec = step  # it may refuse to be bound, and encodes nothing
            else:
                bound_step = _asked(step, step.bind, spec)
            assert isinstance(bound_step, BytesCodec)
            self._tail.append((bound_step, most))
            size = None if size is None else bound_step.encoded_nbytes(size)
            most = min(bound_step.encoded_limit(most), HUGE)
        self.most = most
        self.nbytes = size
        self.raw = self.direct and self.ordered and not self._tail
        self._outer = self._tail[:0:-1]  # outermost first, without the one next to the chunk
        self._inner = self._tail[0][0] if self._tail else None
        decodes = type(self._inner).decode_span if self._inner is not None else None
        self.spans = self.raw or decodes not in (None, BytesCodec.decode_span)

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The chain, bound: as it stands in the metadata document."""
        arrays = [codec for codec, _ in self._arrays]
        return (*arrays, self.serializer, *(codec for codec, _ in self._tail))

    @Cached
    def memory_dtype(self) -> np.dtype[Any] | None:
        """The dtype in which a chunk's stored bytes are its memory, its axes perhaps in another
        order; ``None`` where they are encoded."""
        if self._tail or not all(codec.moves_only for codec, _ in self._arrays):
            return None
        return self.serializer.memory_dtype(self.stored)

    def over(self, data: Buffer) -> NDArray[Any]:
        """The chunk as a view of ``data``, where there is a :attr:`memory_dtype`."""
        if len(data) != self.nbytes:
            raise Corrupt(
                f"{counted(len(data), 'byte is', 'bytes are')} stored, {self.nbytes} make a chunk",
                codec=self.serializer.name,
            )
        chunk: NDArray[Any] = np.ndarray(self.stored.shape, self.memory_dtype, data)
        for codec, spec in reversed(self._arrays):
            chunk = codec.decode(chunk, spec)
        return chunk

    def check(self) -> None:
        """:class:`~tensorstash.errors.Invalid` where no chunk can be encoded: for who would
        allocate one first."""
        if self.unfit is not None:
            raise Invalid(self.unfit)

    def check_new(self) -> None:
        """As :meth:`check`, for an array that is yet to be: some trial chunk can be encoded."""
        self.check()
        misfit = self.serializer.misfit(self.stored)
        if misfit is not None:
            raise Invalid(misfit)

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The stored form of a chunk of ``spec.shape`` and ``spec.dtype``.
        :class:`~tensorstash.errors.Invalid` when a codec cannot encode it, or when no reader
        would take what it makes."""
        self.check()
        name = ""
        try:
            for codec, _ in self._arrays:
                name = codec.name
                chunk = codec.encode(chunk)
            name = self.serializer.name
            data = self.serializer.encode(chunk)
            size = len(data)
            for step, _ in self._tail:
                name = step.name
                data = step.encode(data)
        except (StashError, MemoryError):
            raise
        except Exception as error:  # libraries raise what they like
            detail = reason(error)
            raise Invalid(f"codec {name!r} cannot encode this chunk: {detail}") from error
        if not self.sized and size > self.stored.room(len(data)):
            raise Invalid(
                f"a chunk of {counted(self.spec.count, 'element')} has "
                f"{counted(size, 'byte')}, the most that is read "
                f"of {counted(len(data), 'stored one')} is {self.stored.room(len(data))}; "
                f"use smaller "
                f'chunks, or open it with limits={{"chunk": {size}}}, here and wherever it is read'
            )
        if len(data) > self.most:
            raise Invalid(
                f"codec {name!r} makes {counted(len(data), 'byte')} of this chunk, the most "
                f"that is read is "
                f"{self.most}; use another"
            )
        return data

    def encode_change(
        self, chunk: NDArray[Any], before: Buffer, start: int, stop: int
    ) -> Buffer | None:
        """As :meth:`encode`, of a chunk of which that made ``before`` when other bytes stood in it
        from ``start`` to ``stop``; ``None`` where all is to be encoded."""
        if self._arrays or not self._tail or self.serializer.memory_dtype(self.stored) is None:
            return None
        first, *rest = (step for step, _ in self._tail)
        inner: Buffer | None = before
        for step in reversed(rest):
            inner = None if inner is None else step.within(inner)
        if inner is None or not self.sized:
            return None
        data = first.encode_change(self.serializer.encode(chunk), inner, start, stop)
        for step in rest if data is not None else ():
            data = step.encode(data)  # type: ignore[arg-type]
        return None if data is None or len(data) > self.most else data

    def decode(
        self,
        data: Buffer,
        into: NDArray[Any] | None = None,
        view: memoryview | None = None,
        span: tuple[int, int] | None = None,
    ) -> NDArray[Any]:
        """The chunk that ``data`` holds, as an array of ``spec.shape``.

        Where the chain is ``direct`` and ``into`` (C-contiguous, of ``stored`` shape and
        dtype, ``view`` its bytes) is given, the chunk is written there and the result is
        ``into`` or a view of it; of that, only bytes ``span`` need be right where it is given.
        Otherwise the result may be a read-only view of ``data``.
        :class:`~tensorstash.errors.Corrupt` when the bytes cannot be such a chunk.
        """
        step: Codec = self.serializer
        try:
            if not self.sized:
                return self._decode_unsized(data)
            for codec, limit in self._outer:
                step = codec
                data = codec.decode(data, limit)
            inner = self._inner
            if self.direct and into is not None and inner is not None:
                step = inner
                assert view is not None
                if span is None or not inner.decode_span(data, len(view), *span, view):
                    inner.decode(data, len(view), view)
                chunk = into
            else:
                if inner is not None:
                    step = inner
                    data = inner.decode(data, self._tail[0][1])
                step = self.serializer
                chunk = self.serializer.decode(data, self.stored)
            for before, spec in reversed(self._arrays):
                step = before
                chunk = before.decode(chunk, spec)
        except (StashError, MemoryError) as error:
            if isinstance(error, Corrupt):
                error.codec = error.codec or step.name
            raise
        except Exception as error:
            raise _undecoded(data, step, error) from error
        return chunk

    def _decode_unsized(self, data: Buffer) -> NDArray[Any]:
        """A chunk of elements of any length: what each step may make of it depends on how much
        is stored."""
        step: Codec = self.serializer
        room = self.stored.room(len(data))
        spec, steps = self._usual if room == self._usual[0].most else self._bounded(room)
        try:
            for codec, limit in steps:
                step = codec
                data = codec.decode(data, limit)
            step = self.serializer
            chunk = self.serializer.decode(data, spec)
            for before, target in reversed(self._arrays):
                step = before
                chunk = before.decode(chunk, target)
        except (StashError, MemoryError) as error:
            if isinstance(error, Corrupt):
                error.codec = error.codec or step.name
            raise
        except Exception as error:
            raise _undecoded(data, step, error) from error
        return chunk

    @Cached
    def _usual(self) -> tuple[ChunkSpec, list[tuple[BytesCodec, int]]]:
        """:meth:`_bounded` for chunks of which little is stored."""
        return self._bounded(self.stored.room(0))

    def _bounded(self, room: int) -> tuple[ChunkSpec, list[tuple[BytesCodec, int]]]:
        """The serializer's chunk, and the steps before it, outermost first, with what each may
        decode to, where the elements may have ``room`` bytes."""
        steps: list[tuple[BytesCodec, int]] = []
        limit = room
        for codec, _ in self._tail:
            steps.append((codec, limit))
            limit = min(codec.encoded_limit(limit), HUGE)
        return replace(self.stored, most=room), steps[::-1]


def _asked(codec: Codec, method: Callable[[ChunkSpec], _Result], spec: ChunkSpec) -> _Result:
    """What a ``method`` of ``codec`` returns for chunks like ``spec``, or one of our errors."""
    try:
        return method(spec)
    except (StashError, MemoryError):
        raise
    except RecursionError as error:
        raise Unsupported("a codec chain nests too deeply to be used") from error
    except Exception as error:  # libraries raise what they like
        detail = reason(error)
        raise Invalid(f"codec {codec.name!r} cannot take {spec.dtype}: {detail}") from error


def _undecoded(data: Buffer, step: Codec, error: Exception) -> Corrupt:
    detail = reason(error)
    return Corrupt(
        f"{counted(len(data), 'byte does', 'bytes do')} not decode with codec "
        f"{step.name!r}: {detail}",
        codec=step.name,
    )


def split(
    codecs: Sequence[Codec],
) -> tuple[list[ArrayCodec], Serializer, list[BytesCodec]]:
    """A chain in its three parts; :class:`~tensorstash.errors.Invalid` when out of order."""
    arrays: list[ArrayCodec] = []
    serializer: Serializer | None = None
    tail: list[BytesCodec] = []
    for codec in codecs:
        if isinstance(codec, ArrayCodec) and serializer is None:
            arrays.append(codec)
        elif isinstance(codec, Serializer) and serializer is None:
            serializer = codec
        elif isinstance(codec, BytesCodec) and serializer is not None:
            tail.append(codec)
        else:
            raise Invalid(
                f"codec {codec.name!r} is out of place: a chain is array -> array codecs, "
                "one array -> bytes codec, then bytes -> bytes codecs"
            )
    if serializer is None:
        raise Invalid("the codec chain has no array -> bytes codec; add 'bytes'")
    return arrays, serializer, tail


def take(
    name: str, configuration: Mapping[str, Any], **known: type | tuple[type, ...]
) -> dict[str, Any]:
    """``configuration`` checked against the ``known`` keys and types of codec ``name``."""
    for key, value in configuration.items():
        if key not in known:
            raise Invalid(
                f"codec {name!r} has no option {short(key)}; it takes {', '.join(known) or 'none'}"
            )
        kinds = known[key]
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        right = isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
        if not right:
            raise Invalid(f"codec {name!r} option {key!r} cannot be {short(value)}")
    return dict(configuration)


def lenient(kind: Callable[..., Codec], options: Mapping[str, Any]) -> Codec:
    """Return ``kind(**options)``, for a codec whose options serve only encoding. If they are wrong,
    return one that decodes, and is :attr:`~Codec.unfit` to encode, with the given document."""
    try:
        return kind(**options)
    except Invalid as error:
        codec = kind()
        object.__setattr__(codec, "_unfit", (str(error), dict(options)))
        return codec


ANY: tuple[type, ...] = (object, bool)
"""For :func:`take`: whatever the value, for the codec looks at it when it encodes."""


def reason(error: BaseException) -> str:
    """Return the message of a library's error as one short line."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
