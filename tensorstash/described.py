"""What a handle says of its array by the metadata that it knows, without reading it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import coerce
from .codec import Codec
from .driver import located
from .errors import Closed, ReadOnly
from .handle import Handle
from .metadata.spec import ArraySpec


class Described(Handle):
    """A handle whose shape, dtype and layout are those of its ``spec``, until it is closed."""

    path: str
    _closed: bool
    _spec: ArraySpec | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type in memory, in native byte order."""
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.spec.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.spec.size

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.spec.size * self.spec.dtype.itemsize

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The codec chain."""
        return self.spec.codecs

    @property
    def fill_value(self) -> Any:
        """What absent chunks read as, as a NumPy scalar."""
        return self.spec.fill[()]

    @property
    def dimension_names(self) -> tuple[str | None, ...] | None:
        """Names of the axes, where they have any."""
        return self.spec.dimension_names

    @property
    def writable(self) -> bool:
        """Whether this handle may write."""
        return self.settings.mode != "r"

    def attributes(self) -> Mapping[str, Any]:
        """The attributes as they stand in the metadata; ``attrs`` changes them."""
        return self.spec.attributes

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    def as_value(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """``value`` as an array of ``shape``, broadcast by NumPy's assignment rules."""
        spec = self.spec
        if spec.dtype.kind == "O":
            return coerce.as_objects(value, shape, isinstance(spec.fill[()], bytes))
        return coerce.broadcast(coerce.as_array(value, spec.dtype), shape)

    def as_rows(self, rows: Any, axis: int) -> NDArray[Any]:
        """Rows for :meth:`append`, their shape checked."""
        return coerce.as_rows(rows, self.as_axis(axis), self.shape, self.dtype)

    def as_axis(self, axis: int) -> int:
        """``axis`` counted from the first, its bounds checked."""
        return coerce.as_axis(axis, self.ndim)

    def __repr__(self) -> str:
        where = located(self.driver, self.path)
        if self._spec is None:
            return f"<tensorstash.Array at {where}>"
        shape, dtype = self._spec.shape, self._spec.dtype
        return f"<tensorstash.Array {shape} {dtype} chunks={self.chunks} at {where}>"

    def _open(self, write: bool = False) -> None:
        if self._closed:
            where = located(self.driver, self.path)
            raise Closed(f"this handle on {where} is closed; open it again")
        if write and not self.writable:
            where = located(self.driver, self.path)
            raise ReadOnly(f'{where} was opened for reading; open it with mode="r+" to write')

    @abstractmethod
    def close(self) -> None:
        """Refuse further use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
