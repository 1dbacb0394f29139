"""References in bulk, and pages of them: numpy arithmetic, no I/O. (Signatures; bodies follow.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ids import Reference
from .pages import Form

MOST_POSITIONS = 4096


@dataclass(frozen=True, eq=False)
class Refs:
    """Several references, as columns: ``sessions[which[i]]``, ``numbers[i]``, ``nbytes[i]``."""

    sessions: tuple[str, ...]
    which: NDArray[Any]
    numbers: NDArray[Any]
    nbytes: NDArray[Any]

    @staticmethod
    def of(session: str, numbers: Any, nbytes: Any) -> Refs:
        """References to objects of one session."""

    @staticmethod
    def list(references: Sequence[Reference]) -> Refs:
        """The references given one by one."""

    @staticmethod
    def joined(parts: Sequence[Refs]) -> Refs:
        """All of ``parts``, one after the other."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Reference: ...
    def __iter__(self): ...

    def take(self, which: NDArray[Any]) -> Refs:
        """Those at ``which`` (positions or a mask)."""


@dataclass(frozen=True, eq=False)
class RefPage:
    """References by position, of which most or few are there. Never changed.

    ``size`` positions (at most 4096); ``positions`` are those where something is, sorted (uint16);
    ``refs`` theirs, in the same order. In a page of pages ``chunks`` and ``stored`` are how many
    chunks lie below each, and their bytes; ``None`` in a page of chunks."""

    size: int
    positions: NDArray[np.uint16]
    refs: Refs
    chunks: NDArray[np.int64] | None = None
    stored: NDArray[np.int64] | None = None

    @property
    def held(self) -> int:
        """Bytes of memory that it takes, for caches."""

    def find(self, position: int) -> Reference | None:
        """The reference at one position."""

    def lookup(self, positions: NDArray[Any]) -> tuple[NDArray[np.bool_], Refs]:
        """Which of ``positions`` are there, and the references of those that are."""

    def totals(self) -> tuple[int, int]:
        """Chunks on or below this page, and their bytes."""

    def changed(self, change: PageChange) -> RefPage:
        """The page as it is after ``change``."""

    def encode(self) -> bytes:
        """Its raw bytes, without the envelope."""


@dataclass(frozen=True, eq=False)
class PageChange:
    """What becomes of positions of a page of chunks: ``positions`` sorted, each once;
    ``present[i]``: whether a chunk is there afterwards; ``refs``: of those that are, in order."""

    positions: NDArray[np.uint16]
    present: NDArray[np.bool_]
    refs: Refs

    @staticmethod
    def of(positions: Any, refs: Refs, absent: Any = ()) -> PageChange:
        """Positions in any order with their ``refs``, and those where nothing is afterwards."""


REF_PAGES: Form[RefPage]  # pages of either kind
