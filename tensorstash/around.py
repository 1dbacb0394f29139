"""A driver around a driver: what it does not change is passed on."""
# ruff: noqa: D102 - its methods promise what those of Driver promise

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from .driver import Check, Driver, Tag, Traffic


class Around(Driver):
    """``driver`` itself, as far as names, locks, empty folders, maps, counts and
    listings of keys go. Sizes, reading, writing and deleting are for whoever derives from it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.scheme = driver.scheme
        self.metadata_limit = driver.metadata_limit

    def list(self, prefix: str = "") -> Iterator[str]:
        return self.driver.list(prefix)

    def taken(self, prefix: str = "") -> Iterator[str]:
        return self.driver.taken(prefix)

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        return self.driver.tags(prefix, wanted)

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        return self.driver.list_dir(prefix)

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        return self.driver.lock(key, timeout)

    def remove_link(self, prefix: str) -> bool:
        return self.driver.remove_link(prefix)

    def linked(self, prefix: str) -> str | None:
        return self.driver.linked(prefix)

    def prune(self, prefix: str) -> None:
        self.driver.prune(prefix)

    def modified(self, key: str) -> float | None:
        return self.driver.modified(key)

    def kept(self, key: str) -> str | None:
        return self.driver.kept(key)

    def map(self, key: str) -> memoryview | None:
        return self.driver.map(key)

    @property
    def traffic(self) -> Traffic | None:
        return self.driver.traffic

    def close(self) -> None:
        self.driver.close()

    @property
    def url(self) -> str:
        return self.driver.url

    @property
    def identity(self) -> str:
        return self.driver.identity
