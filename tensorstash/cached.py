"""Values worked out on first use and kept on their instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class Cached(Generic[Value]):
    """``functools.cached_property`` without its lock.

    Until Python 3.12 all instances of a class share that lock, and a child forked while another
    thread holds it waits for it forever. Here two threads that come first may both work the
    value out; all are given the same one.
    """

    def __init__(self, work: Callable[[Any], Value]) -> None:
        """The property that ``work`` (of the instance) gives."""
        self._work = work
        self.__doc__ = work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Cached[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Cached[Value] | Value:
        if instance is None:
            return self
        found: Value = instance.__dict__.setdefault(self._name, self._work(instance))
        return found
