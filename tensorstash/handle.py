"""What views, buffered writers and adapters need of an array handle, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .driver import Check, held
from .index import Transform
from .limits import USUAL, Limits
from .named import Fields
from .spec import ArraySpec
from .write import Writer


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
