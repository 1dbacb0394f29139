"""The contract of whoever is filled row by row."""

from __future__ import annotations

from typing import Any

from .contestant import Contestant

CHUNK = 64


class Filler(Contestant):
    """A library, used in one way."""

    verbs: tuple[str, ...] = ("rows", "batches")
    redis = False
    whole = False
    """Whether it is known to read whole columns for one row."""
    large = False
    """Whether it is tried at a million rows too."""

    def __init__(self, variant: str, how: str) -> None:
        self.variant, self.how = variant, how

    def create(self, place: str, size: int, side: int) -> Any:
        """``size`` rows of zeros."""
        raise NotImplementedError

    def create_growing(self, place: str, size: int, side: int) -> Any:
        """The same, to be appended to."""
        return self.create(place, size, side)

    def row(self, values: dict[str, Any]) -> Any:
        """A row as this library takes it."""
        return values

    def columns(self, values: dict[str, Any]) -> Any:
        """Rows as this library takes them."""
        return values

    def put(self, handle: Any, i: int, row: Any) -> None:
        """Store row ``i``; stored when this returns."""
        raise NotImplementedError

    def get(self, handle: Any, i: int) -> dict[str, Any]:
        """Row ``i``."""
        raise NotImplementedError

    def append(self, handle: Any, columns: Any) -> Any:
        """Add rows; answers the handle to go on with."""
        raise NotImplementedError
