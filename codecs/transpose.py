"""Codec ``transpose``: the chunk with its axes permuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import ArrayCodec, Cached, ChunkSpec, Codec, short, take
from tensorstash.errors import Invalid, counted


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    known = take(name, configuration, order=(list, tuple, str))
    if "order" not in known:
        raise Invalid("codec 'transpose' needs its 'order', a permutation of the axes")
    return Transpose(known["order"])


@dataclass(frozen=True, eq=False, repr=False)
class Transpose(ArrayCodec):
    """Stores ``numpy.transpose(chunk, order)``; both directions are views (Zarr v3 codec
    ``transpose``).

    ``order`` is a permutation of the axes. ``"C"`` (no change) and ``"F"`` (reversed) are read
    as well, as older documents have them; binding spells them out.
    """

    name: ClassVar[str] = "transpose"
    step: ClassVar[str | None] = "transpose"
    moves_only: ClassVar[bool] = True
    order: Sequence[int] | str

    def __post_init__(self) -> None:
        order = self.order
        if order in ("C", "F"):
            return
        if (
            isinstance(order, str)
            or any(type(axis) is not int for axis in order)
            or sorted(order) != list(range(len(order)))
        ):
            raise Invalid(
                f"codec 'transpose' order {short(order)} is not a permutation of the axes"
            )
        object.__setattr__(self, "order", tuple(order))

    def configuration(self) -> dict[str, Any]:
        """``{"order": [...]}``."""
        return {"order": self.order if isinstance(self.order, str) else list(self.order)}

    def bind(self, spec: ChunkSpec) -> Transpose:
        """With ``order`` as a permutation of the axes of ``spec``."""
        axes = range(len(spec.shape))
        if isinstance(self.order, str):
            return Transpose(tuple(axes if self.order == "C" else reversed(axes)))
        if len(self.order) != len(axes):
            raise Invalid(
                f"codec 'transpose' order {list(self.order)} is for "
                f"{counted(len(self.order), 'axis', 'axes')}; "
                f"the chunk has {len(axes)}"
            )
        return self

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` with its shape permuted."""
        order = self.bind(spec).order
        assert not isinstance(order, str)
        return ChunkSpec(tuple(spec.shape[axis] for axis in order), spec.dtype, spec.fill)

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """A view of ``chunk``."""
        if isinstance(self.order, str):
            return chunk if self.order == "C" else chunk.T
        return chunk.transpose(self.order)

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """A view of ``chunk``."""
        if isinstance(self.order, str):
            return chunk if self.order == "C" else chunk.T
        return chunk.transpose(self._inverse)

    @Cached
    def _inverse(self) -> tuple[int, ...]:
        return tuple(np.argsort(self.order).tolist())
