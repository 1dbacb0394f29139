"""What views, buffered writers and adapters need of an array handle, and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .codec import Codec
from .driver import Check, Driver, held
from .engine.write import Writer
from .indexing.fields import Fields
from .indexing.selection import Transform
from .limits import USUAL, Limits
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


_DATA = (int, float, complex, str, bytes, list, tuple, np.generic, np.ndarray)


class NoOperators:
    """Two handles are equal when they are one. To compare a handle or to calculate with it, other
    than by NumPy's own functions, is a :class:`TypeError` that says what to do: ``a == 3`` was
    silently ``False`` otherwise, and ``a[a == 3]`` empty."""

    __slots__ = ()

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
    def refused(self: object, other: object) -> NoReturn:
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


def _refuse(handle: object, sign: str) -> NoReturn:
    raise TypeError(
        f"{type(handle).__name__} has no {sign!r}: it is a handle on what is stored, and reads "
        f"nothing unasked; read first: a[...] {sign} value"
    )


class Handle(ABC, NoOperators):
    """An array as the modules beside ``array.py`` see it, which therefore need not know it. To ask
    whether something is one reads nothing."""

    driver: Driver
    settings: Settings

    @property
    @abstractmethod
    def spec(self) -> ArraySpec:
        """The metadata, as this handle knows it."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Element type in memory."""

    @property
    @abstractmethod
    def chunks(self) -> tuple[int, ...] | None:
        """Shape of what is decoded at once, ``None`` when chunks differ."""

    @property
    @abstractmethod
    def codecs(self) -> tuple[Codec, ...]:
        """The codec chain."""

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of axes."""

    @abstractmethod
    def __len__(self) -> int: ...

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
    def as_value(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A value as an array of ``shape``."""

    @abstractmethod
    def as_rows(self, rows: Any, axis: int) -> NDArray[Any]:
        """Rows to append, checked."""

    @abstractmethod
    def as_axis(self, axis: int) -> int:
        """An axis counted from the first, checked."""

    @abstractmethod
    def check_stored(self) -> None:
        """Raise where another array was put in the place of this one."""

    @abstractmethod
    def make_writer(
        self, spec: ArraySpec, grown_from: tuple[int, ...] | None = None, check: Check = held
    ) -> Writer:
        """The writer for the array as ``spec`` has it."""
