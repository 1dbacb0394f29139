"""Codec ``reshape``: the elements of a chunk, in C order, under another shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import ArrayCodec, ChunkSpec, Codec, short, take
from tensorstash.errors import Invalid

_AXES = 64
"""NumPy's most."""


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    known = take(name, configuration, shape=(list, tuple))
    if "shape" not in known:
        raise Invalid("codec 'reshape' needs its 'shape', an entry for each axis of its result")
    return Reshape(known["shape"])


@dataclass(frozen=True, eq=False, repr=False)
class Reshape(ArrayCodec):
    """Stores ``chunk.reshape(shape)`` (registered Zarr v3 codec ``reshape``).

    Each entry of ``shape`` is a length, or a list of axes of the chunk that become one, or ``-1``,
    once, for what is left over. Axes are named in ascending order: nothing is transposed.
    """

    name: ClassVar[str] = "reshape"
    shape: Sequence[int | Sequence[int]]

    def __post_init__(self) -> None:
        entries = self.shape
        if not isinstance(entries, list | tuple) or len(entries) > _AXES:
            raise Invalid(
                f"codec 'reshape' shape is a list of up to {_AXES} entries, not {short(entries)}"
            )
        for entry in entries:
            if not (_is_length(entry) or _is_axes(entry)):
                raise Invalid(
                    f"codec 'reshape' shape has an entry {short(entry)}; each is a length from 1 "
                    "on, a list of axes, or -1"
                )
        if sum(entry == -1 for entry in entries) > 1:
            raise Invalid("codec 'reshape' shape has more than one -1")
        axes = [axis for entry in entries if not isinstance(entry, int) for axis in entry]
        if any(after <= before for before, after in itertools.pairwise(axes)):
            raise Invalid(
                f"codec 'reshape' names the axes {short(axes)}, which do not ascend; "
                "'transpose' reorders them"
            )
        plain = tuple(entry if isinstance(entry, int) else tuple(entry) for entry in entries)
        object.__setattr__(self, "shape", plain)

    def configuration(self) -> dict[str, Any]:
        """``{"shape": [...]}``."""
        entries = [entry if isinstance(entry, int) else list(entry) for entry in self.shape]
        return {"shape": entries}

    def bind(self, spec: ChunkSpec) -> Reshape:
        """This codec, when its shape fits that of ``spec``."""
        self._shape(spec.shape)
        return self

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` under the other shape."""
        return ChunkSpec(self._shape(spec.shape), spec.dtype, spec.fill)

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """A view where the chunk is in C order, else a copy."""
        return np.reshape(chunk, self._shape(chunk.shape), order="C")

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """The same."""
        return np.reshape(chunk, spec.shape, order="C")

    def _shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        made: list[int] = []
        for entry in self.shape:
            if isinstance(entry, int):
                made.append(entry)
                continue
            if entry and entry[-1] >= len(before):
                raise Invalid(
                    f"codec 'reshape' names axis {short(entry[-1])}; the chunk has {len(before)}"
                )
            made.append(math.prod(before[axis] for axis in entry))
        count = math.prod(before)
        if -1 in made:
            rest = math.prod(edge for edge in made if edge != -1)
            made[made.index(-1)] = count // rest if rest else 0
        if math.prod(made) != count:
            raise Invalid(
                f"codec 'reshape' cannot make shape {short(self.configuration()['shape'])} of a "
                f"chunk of shape {before}"
            )
        for place, entry in enumerate(self.shape):
            if isinstance(entry, int) or not entry:
                continue
            first, last = entry[0], entry[-1]
            if math.prod(made[:place]) != math.prod(before[:first]) or math.prod(
                made[place + 1 :]
            ) != math.prod(before[last + 1 :]):
                raise Invalid(
                    f"codec 'reshape': entry {place} of {short(self.configuration()['shape'])} is "
                    f"not axes {list(entry)} of a chunk of shape {before}"
                )
        return tuple(made)


def _is_length(entry: Any) -> bool:
    return type(entry) is int and (entry == -1 or 1 <= entry < 1 << 63)


def _is_axes(entry: Any) -> bool:
    return (
        isinstance(entry, list | tuple)
        and len(entry) <= _AXES
        and all(type(axis) is int and axis >= 0 for axis in entry)
    )
