"""The layout that ``vlen-utf8`` and ``vlen-bytes`` share; not a codec itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Serializer, short
from tensorstash.errors import Invalid, counted

_WORD = 4

T = TypeVar("T", str, bytes)


def check_count(data: Buffer, count: int) -> None:
    """``ValueError`` unless ``data`` begins with ``count`` and is long enough for as many."""
    if len(data) < _WORD:
        raise ValueError(f"{counted(len(data), 'byte is', 'bytes are')} too few for a count")
    stored = int.from_bytes(data[:_WORD], "little")
    if stored != count:
        raise ValueError(f"it claims {counted(stored, 'element')} where {count} were expected")
    if len(data) < _WORD * (1 + count):
        raise ValueError(
            f"{counted(len(data), 'byte is', 'bytes are')} too few for the "
            f"lengths of {counted(count, 'element')}"
        )


def check_end(data: Buffer, count: int, content: int) -> None:
    """``ValueError`` unless ``content`` bytes in ``count`` elements are all there is."""
    used = _WORD * (1 + count) + content
    if used != len(data):
        raise ValueError(
            f"{counted(len(data) - used, 'byte follows', 'bytes follow')} the last element"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Vlen(Serializer, Generic[T]):
    """Elements of any length: their count, then each with its length before it, in C order; all
    numbers 32 bits little-endian (zarr-extensions, ``vlen-utf8`` and ``vlen-bytes``).

    ``missing`` stands in for ``None`` and NaN elements when encoding; binding takes it from
    the fill value.
    """

    kind: ClassVar[type]
    kinds: ClassVar[str]
    missing: T | None = None

    def bind(self, spec: ChunkSpec) -> Vlen[T]:
        """With ``missing`` set to the fill value."""
        if spec.dtype.kind not in self.kinds:
            raise Invalid(
                f"codec {self.name!r} holds {self.kind.__name__} of any length, not {spec.dtype}"
            )
        if overfull := self.overfull(spec):
            raise Invalid(overfull)
        fill: Any = spec.fill.item() if isinstance(spec.fill, np.ndarray) else spec.fill
        missing: Any = fill if isinstance(fill, self.kind) else None
        return replace(self, missing=missing)

    def overfull(self, spec: ChunkSpec) -> str | None:
        """Why not, where there are more elements than 32 bits count."""
        if spec.count < 1 << 32:
            return None
        return f"codec {self.name!r} holds less than 2**32 elements a chunk; use smaller chunks"

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The elements of ``chunk``; :class:`~tensorstash.errors.Invalid` for wrong ones."""
        items = chunk.ravel().tolist()
        if set(map(type, items)) - {self.kind}:
            items = [self._item(item) for item in items]
        if max(map(len, items), default=0) >= 1 << 29:
            raise Invalid(f"codec {self.name!r} holds elements of less than 512 MiB each")
        values = np.empty(len(items), object)
        values[:] = items
        try:
            return self._pack(values)
        except UnicodeEncodeError as error:
            raise Invalid(
                f"codec {self.name!r} cannot encode {short(error.object)}: {error.reason}"
            ) from error

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The elements; every length is checked against ``data`` before it is believed."""
        check_count(data, spec.count)
        values = self._unpack(data)
        check_end(data, spec.count, self._nbytes(values))
        return values.reshape(spec.shape).astype(spec.dtype, copy=False)

    @abstractmethod
    def _pack(self, values: NDArray[np.object_]) -> Buffer: ...

    @abstractmethod
    def _unpack(self, data: Buffer) -> NDArray[np.object_]: ...

    @abstractmethod
    def _nbytes(self, values: NDArray[np.object_]) -> int: ...

    def _item(self, item: Any) -> Any:
        if isinstance(item, self.kind):
            return self.kind(item)
        if item is None or (isinstance(item, float) and item != item):
            return self.kind() if self.missing is None else self.missing
        raise Invalid(
            f"codec {self.name!r} holds {self.kind.__name__} elements, not {type(item).__name__}"
        )
