"""Values worked out on first use and kept: on their instance, or for this process."""

from __future__ import annotations

import os
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


class PerProcess(Generic[Value]):
    """One value in each process, made where it is first asked for.

    A forked child makes its own: it has none of its parent's threads, must leave its sockets alone,
    and a lock may have been held at the fork by a thread that is not there to release it. Those of
    ancestors stay as they are, so that no finalizer gets at them.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        """The values that ``make`` returns. Of two threads that come first both may call it; all
        are given the same value."""
        self._make = make
        self._values: dict[int, Value] = {}

    def here(self) -> Value:
        """This process' value."""
        pid = os.getpid()
        found = self._values.get(pid)
        return self._values.setdefault(pid, self._make()) if found is None else found

    def forget(self) -> None:
        """Make this process another one when it is next asked for."""
        self._values.pop(os.getpid(), None)
