"""A driver whose metadata documents may be larger, or must be smaller, than is usual."""
# ruff: noqa: D102 - its methods promise what those of Driver promise

from __future__ import annotations

from abc import update_abstractmethods
from typing import Any

from .around import Around
from .driver import Buffer, Driver, Span, Tag
from .limits import Limits


class Limited(Around):
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
    def method(self: Limited, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.driver, name)(*args, **kwargs)

    method.__name__ = name
    return method


# Every other method, so that none that a driver does better is forgotten.
for _name, _member in vars(Driver).items():
    _known = _name.startswith("_") or _name in vars(Around) or _name in vars(Limited)
    if callable(_member) and not _known:
        setattr(Limited, _name, _passed_on(_name))
update_abstractmethods(Limited)


def limited(driver: Driver, limits: Limits) -> Driver:
    """``driver``, with a limit on metadata that was asked for."""
    if limits.metadata is None or limits.metadata == driver.metadata_limit:
        return driver
    return Limited(driver, limits.metadata)
