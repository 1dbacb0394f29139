"""What views, buffered writers and adapters need of an array handle, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .driver import Check, held
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


@runtime_checkable
class Handle(Protocol):
    """An array as the modules beside ``array.py`` see it, which therefore need not know it."""

    settings: Settings

    @property
    def spec(self) -> ArraySpec:
        """The metadata, as this handle knows it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type in memory."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, selection: Any) -> Any: ...

    def __setitem__(self, selection: Any, value: Any) -> None: ...

    def refresh(self) -> Any:
        """Look at the stored metadata again."""
        ...

    def read_transform(
        self, transform: Transform, out: Any, fields: Fields | None = None
    ) -> NDArray[Any]:
        """Read a prepared transform."""
        ...

    def write_transform(
        self, transform: Transform, value: Any, fields: Fields | None = None
    ) -> None:
        """Store a value at a prepared transform."""
        ...

    def append(self, rows: Any, axis: int = 0) -> int:
        """Grow the array by rows."""
        ...

    def as_value(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A value as an array of ``shape``."""
        ...

    def as_rows(self, rows: Any, axis: int) -> NDArray[Any]:
        """Rows to append, checked."""
        ...

    def as_axis(self, axis: int) -> int:
        """An axis counted from the first, checked."""
        ...

    def check_stored(self) -> None:
        """Raise where another array was put in the place of this one."""
        ...

    def make_writer(
        self, spec: ArraySpec, grown_from: tuple[int, ...] | None = None, check: Check = held
    ) -> Writer:
        """The writer for the array as ``spec`` has it."""
        ...


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
