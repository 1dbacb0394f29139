"""Handles on arrays: their settings, what they say by the metadata that they know, and what views,
writers and adapters need of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import coerce
from .codec import Codec
from .driver import Check, Driver, held, located
from .engine.write import Writer
from .errors import Closed, ReadOnly, Unsupported
from .indexing.fields import Fields
from .indexing.selection import Transform
from .limits import USUAL, Limits
from .memory import PROCESS, Budget, incoming, outgoing
from .metadata.spec import ArraySpec


@dataclass(frozen=True)
class Settings:
    """How a handle reads and writes; see ``tensorstash.open`` for each."""

    mode: str = "r"
    cache_bytes: int = 0
    immutable: bool = False
    threads: int | None = None
    missing: str = "fill"
    write_fill: bool = False
    allow_pickle: bool = False
    lock_timeout: float | None = 60.0
    limits: Limits = USUAL
    memory: Budget = field(default=PROCESS, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # To a process that multiprocessing starts, the limit of this one goes along.
        limit = outgoing()
        return self.__dict__ if limit is None else {**self.__dict__, "memory_limit": limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        incoming(state.pop("memory_limit", None))
        self.__dict__.update(state)


_DATA = (int, float, complex, str, bytes, list, tuple, np.generic, np.ndarray)


class NoOperators:
    """Two handles are equal when they are one. To compare a handle or to calculate with it, other
    than by NumPy's own functions, is a :class:`TypeError` that says what to do: ``a == 3`` was
    silently ``False`` otherwise, and ``a[a == 3]`` empty."""

    __slots__ = ()

    @property
    def _calculation(self) -> str:
        """How what is read is calculated with; ``{sign}`` stands for the operator."""
        return "a[...] {sign} value"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _DATA):
            _refuse(self, "==")
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        if isinstance(other, _DATA):
            _refuse(self, "!=")
        return NotImplemented

    __hash__ = object.__hash__


def _operator(sign: str) -> Any:
    def refused(self: NoOperators, other: object) -> NoReturn:
        _refuse(self, sign)

    return refused


_SIGNS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*",
    "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@", "and": "&",
    "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
}  # fmt: skip
for _name, _sign in _SIGNS.items():
    setattr(NoOperators, f"__{_name}__", _operator(_sign))
    if _sign[0] not in "<>" or (len(_sign) == 2 and _sign[1] != "="):
        setattr(NoOperators, f"__r{_name}__", _operator(_sign))


def _refuse(handle: NoOperators, sign: str) -> NoReturn:
    raise TypeError(
        f"{type(handle).__name__} has no {sign!r}: it is a handle on what is stored, and reads "
        f"nothing unasked; read first: {handle._calculation.replace('{sign}', sign)}"
    )


class Handle(ABC, NoOperators):
    """An array as the modules beside ``array.py`` see it, which therefore need not know it. To ask
    whether something is one reads nothing."""

    driver: Driver
    settings: Settings
    path: str
    _closed: bool
    _spec: ArraySpec | None

    # -- what each kind of handle does ---------------------------------------------------

    @property
    @abstractmethod
    def spec(self) -> ArraySpec:
        """The metadata, as this handle knows it."""

    @property
    @abstractmethod
    def chunks(self) -> tuple[int, ...] | None:
        """Shape of what is decoded at once, ``None`` when chunks differ."""

    @abstractmethod
    def __getitem__(self, selection: Any) -> Any: ...

    @abstractmethod
    def __setitem__(self, selection: Any, value: Any) -> None: ...

    @abstractmethod
    def refresh(self) -> Any:
        """Look at the stored metadata again."""

    @abstractmethod
    def read_transform(
        self, transform: Transform, out: Any, fields: Fields | None = None
    ) -> NDArray[Any]:
        """Read a prepared transform."""

    @abstractmethod
    def write_transform(
        self, transform: Transform, value: Any, fields: Fields | None = None
    ) -> None:
        """Store a value at a prepared transform."""

    @abstractmethod
    def append(self, rows: Any, axis: int = 0) -> int:
        """Grow the array by rows."""

    @abstractmethod
    def check_same(self) -> None:
        """Raise where this array is no more, or another is in its place."""

    @abstractmethod
    def check_stored(self) -> None:
        """Raise where another array was put in the place of this one."""

    @abstractmethod
    def make_writer(
        self, spec: ArraySpec, grown_from: tuple[int, ...] | None = None, check: Check = held
    ) -> Writer:
        """The writer for the array as ``spec`` has it."""

    # -- what follows from the metadata that it knows --------------------------------------

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
    def in_place(self) -> bool:
        """Whether what is assigned is written within stored chunks, as ``in_place=True`` asks."""
        return self.spec.in_place

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

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a stored array has no memory of its own: copy=False cannot be had")
        return np.asarray(self[...]).astype(dtype or self.dtype, copy=False)

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

    def _refuse_field(self) -> None:
        if self.spec.of_records:
            where = located(self.driver, self.path)
            raise Unsupported(
                f"{where} is a field of records, and as long as they are: add rows with append() "
                "or extend() of the records, opened with open_records(); none can be taken away"
            )

    @abstractmethod
    def close(self) -> None:
        """Refuse further use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
