"""A codec chain as a table of the kernel's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...codec import ArrayCodec, BytesCodec, Codec, Pipeline
from .library import CRC32C, NAMES, SWAP, Library

_NUMBERS = "iufcmMU"
_MOST_STEPS = 16  # as in kernel.h
_MOST_BYTES = 1 << 59  # of a chunk: what lies within is counted in 64 bits


class Steps(NamedTuple):
    """How the kernel decodes a chunk: ``steps`` outermost first, each ``(kind, size)``; the
    ``strides`` of its axes in memory, in bytes; ``plain``: nothing is to be decoded."""

    steps: tuple[tuple[int, int], ...]
    nbytes: int
    most: int
    itemsize: int
    strides: tuple[int, ...]
    plain: bool

    @property
    def chain(self) -> tuple[Any, ...]:
        """As the kernel takes it."""
        return self.steps, self.nbytes, self.most, self.itemsize

    @property
    def kinds(self) -> tuple[int, ...]:
        """What they are."""
        return tuple(kind for kind, _ in self.steps)


def steps(pipeline: Pipeline, known: frozenset[int]) -> Steps | None:
    """The steps of a ``pipeline``, all of a ``known`` kind; ``None`` where the kernel cannot decode
    its chunks."""
    spec, stored = pipeline.spec, pipeline.stored
    if not spec.sized or not pipeline.sized or not 0 < spec.nbytes < _MOST_BYTES:
        return None
    arrays = [codec for codec in pipeline.codecs if isinstance(codec, ArrayCodec)]
    if not all(_step(codec) == "transpose" for codec in arrays):
        return None
    width = _swapped(pipeline)
    if width is None:
        return None
    strides = _strides(pipeline, arrays)
    if strides is None or stored.dtype != spec.dtype:
        return None
    found: list[tuple[int, int]] = [(SWAP, width)] if width else []
    size: int | None = spec.nbytes
    tail = pipeline.codecs[len(arrays) + 1 :]
    for codec in tail:
        name = _step(codec)
        kind = NAMES.index(name) if name in NAMES else None
        if kind == CRC32C:
            found.append((kind, 0))
            size = None if size is None else size + 4
        elif kind is None or size is None:
            return None  # what a second compressor makes is of no size that is known
        else:
            found.append((kind, size))
            size = None
    if len(found) > _MOST_STEPS or not _known(found, known):
        return None
    return _bounded(pipeline, found, strides)


class Encoding(NamedTuple):
    """How the kernel encodes a chunk: ``steps`` innermost first, each ``(kind, size, *options)``;
    ``capacity``: bytes that the place must have where it is put; else as of :class:`Steps`."""

    steps: tuple[tuple[int, ...], ...]
    capacity: int
    decoding: Steps

    @property
    def chain(self) -> tuple[Any, ...]:
        """As the kernel takes it."""
        return self.steps, self.decoding.nbytes, self.decoding.most, self.decoding.itemsize


def encoding(pipeline: Pipeline, library: Library) -> Encoding | None:
    """The steps that encode as ``pipeline`` does, bit for bit; ``None`` where the kernel cannot."""
    decoding = None if pipeline.unfit is not None else steps(pipeline, library.kinds)
    if decoding is None or library.kernel is None:
        return None
    found: list[tuple[int, ...]] = [step for step in decoding.steps if step[0] == SWAP]
    codecs = [codec for codec in pipeline.codecs if isinstance(codec, BytesCodec)]
    rest = [step for step in decoding.steps[::-1] if step[0] != SWAP]
    for codec, (kind, size) in zip(codecs, rest, strict=True):
        try:
            options = codec.step_options(size)
            known = options is not None and library.encodes(codec, kind, options)
        except Exception:  # an option that is no number, or that a library refuses: Python says so
            return None
        if options is None or not known:
            return None
        found.append((kind, size, *options))
    made = Encoding(tuple(found), 0, decoding)
    capacity = library.kernel.capacity(made.chain)
    return made._replace(capacity=capacity) if 0 < capacity < _MOST_BYTES else None


def _known(found: list[tuple[int, int]], known: frozenset[int]) -> bool:
    return all(kind in known for kind, _ in found)


def _bounded(pipeline: Pipeline, found: list[tuple[int, int]], strides: tuple[int, ...]) -> Steps:
    spec = pipeline.spec
    return Steps(
        tuple(found[::-1]), spec.nbytes, pipeline.most, spec.dtype.itemsize, strides, pipeline.raw
    )


def _step(codec: Codec) -> str | None:
    """What its class itself says, not one that it derives from."""
    return codec.step if "step" in vars(type(codec)) else None


def _swapped(pipeline: Pipeline) -> int | None:
    """Bytes of the numbers that are stored the other way round: 0 where none are, ``None`` where
    more than that is to be done."""
    if pipeline.direct:
        return 0
    dtype = pipeline.stored.dtype
    wire = pipeline.serializer.memory_dtype(pipeline.stored)
    if wire is None or dtype.kind not in _NUMBERS or dtype.names or wire != dtype.newbyteorder():
        return None
    return {"c": dtype.itemsize // 2, "U": 4}.get(dtype.kind, dtype.itemsize)


def _strides(pipeline: Pipeline, arrays: Sequence[Codec]) -> tuple[int, ...] | None:
    """How far apart neighbours along each axis of the chunk lie in its memory."""
    stored, spec = pipeline.stored, pipeline.spec
    strides = [stored.dtype.itemsize] * len(stored.shape)
    for k in range(len(strides) - 1, 0, -1):
        strides[k - 1] = strides[k] * stored.shape[k]
    shape = stored.shape
    for codec in reversed(arrays):
        order = getattr(codec, "order", None)
        if not isinstance(order, tuple):
            return None
        inverse = np.argsort(order).tolist()
        strides = [strides[k] for k in inverse]
        shape = tuple(shape[k] for k in inverse)
    return tuple(strides) if shape == spec.shape else None
