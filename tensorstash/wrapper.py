"""A driver around a driver: what it does not change is passed on."""
# ruff: noqa: D102 - its methods promise what those of Driver promise

from __future__ import annotations

from abc import update_abstractmethods
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .driver import Buffer, Check, Driver, Opened, Parts, Request, Span, Tag, Traffic
from .limits import Limits


class WrapperDriver(Driver):
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

    def rename(self, prefix: str, target: Driver, target_prefix: str) -> bool:
        return self.driver.rename(prefix, unwrapped(target), target_prefix)

    def remove_root(self) -> None:
        self.driver.remove_root()

    def is_lasting(self, tag: Tag) -> bool:
        return self.driver.is_lasting(tag)

    def modified(self, key: str) -> float | None:
        return self.driver.modified(key)

    def kept(self, key: str) -> str | None:
        return self.driver.kept(key)

    def map(self, key: str) -> memoryview | None:
        return self.driver.map(key)

    def view(self, key: str) -> memoryview | None:
        return self.driver.view(key)

    def get_parts(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        return self.driver.get_parts(requests)

    def gather(
        self,
        wanted: Sequence[tuple[str, Sequence[int]]],
        nbytes: int,
        beside: Request | None = None,
    ) -> tuple[Sequence[Buffer | None], tuple[Buffer, Tag] | None]:
        return self.driver.gather(wanted, nbytes, beside)

    def put_parts(self, values: Iterable[Parts]) -> None:
        self.driver.put_parts(values)

    def opened(self, key: str, nbytes: int, fill: bytes | None) -> Opened | None:
        return self.driver.opened(key, nbytes, fill)

    def flush(self, prefix: str) -> None:
        self.driver.flush(prefix)

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


def unwrapped(driver: Driver) -> Driver:
    """The driver that stores what is put to ``driver``."""
    while isinstance(driver, WrapperDriver):
        driver = driver.driver
    return driver


class LimitedDriver(WrapperDriver):
    """``driver`` itself, of whose metadata documents ``metadata_limit`` bytes are read at most:
    who reads metadata asks its driver, so that every handle on the place keeps the limit, and
    those that are pickled too."""

    def __init__(self, driver: Driver, metadata_limit: int) -> None:
        """See the class."""
        super().__init__(driver)
        self.capabilities = driver.capabilities
        self.metadata_limit = metadata_limit

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        return self.driver.get_tagged(key, span)

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        return self.driver.put(key, value, if_absent=if_absent, if_tag=if_tag)

    def delete(self, key: str) -> None:
        self.driver.delete(key)


def _passed_on(name: str) -> Any:
    def method(self: LimitedDriver, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.driver, name)(*args, **kwargs)

    method.__name__ = name
    return method


# Every other method, so that none that a driver does better is forgotten.
for _name, _member in vars(Driver).items():
    _known = _name.startswith("_") or _name in vars(WrapperDriver) or _name in vars(LimitedDriver)
    if callable(_member) and not _known:
        setattr(LimitedDriver, _name, _passed_on(_name))
update_abstractmethods(LimitedDriver)


def limited(driver: Driver, limits: Limits) -> Driver:
    """``driver``, with a limit on metadata that was asked for."""
    if limits.metadata is None or limits.metadata == driver.metadata_limit:
        return driver
    return LimitedDriver(driver, limits.metadata)
