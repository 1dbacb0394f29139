"""Turns at a lock that no interrupt leaves held.

``with lock:`` looks safe and is not quite: whoever is interrupted between the block and the
release (a tracer, a debugger; where the release is a function in Python, Ctrl-C too) leaves the
lock held for ever. A finalizer in Python can be interrupted like any other function. So here
taking the lock and noting that it is held are one call of C, and it is released by C, when what
``with`` holds on its stack goes, however that comes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import compress
from operator import not_
from typing import Any, TypeAlias

Lock: TypeAlias = Any
"""A ``threading.Lock`` or ``RLock``."""

_nothing = "".format  # called with anything it returns something false: no exception is swallowed


class _Held:
    """Its end is the end of the turn: ``note`` is a weak reference to it that releases the lock."""

    __slots__ = ("__weakref__", "note")


class _Turn:
    """A context manager whose methods ``with`` finds in slots, so that they may be C's."""

    __slots__ = ("__enter__", "__exit__")


_note: Any = _Held.note.__set__  # type: ignore[attr-defined]
_once = (True,)


# A frame may outlive its call, in the traceback of a finalizer, say, that the collector ran within
# it. So no name of these functions refers to what they made when they return.


def turn(lock: Lock) -> AbstractContextManager[None]:
    """``lock`` held alone in a ``with`` block, for once and by that statement only."""
    held, made = _Held(), [_Turn()]
    made[0].__exit__ = partial(_nothing, held)  # type: ignore[attr-defined]
    made[0].__enter__ = _taking(held, lock, map(lock.acquire, _once)).__next__  # type: ignore[attr-defined]
    del held
    return made.pop()  # type: ignore[return-value]


def take(lock: Lock, seconds: float | None) -> object | None:
    """Take ``lock``, which is released when nothing refers to what is returned; ``None`` where
    that takes longer."""
    held = _Held()
    acquiring = map(lock.acquire, _once, (-1 if seconds is None else max(seconds, 0),))
    steps = [compress((held,), map(not_, _taking(held, lock, acquiring)))]
    del held
    return next(steps.pop(), None)


def wait(lock: Lock) -> None:
    """Return when nobody has ``lock``."""
    any(map(lock.__exit__, map(lock.acquire, _once)))


def _taking(held: _Held, lock: Lock, acquiring: Iterator[bool]) -> Iterator[None]:
    """Its only step takes the lock and has ``held`` release it; none where the time is up."""
    one = (held,)
    steps = [map(_note, one, map(weakref.ref, compress(one, acquiring), (lock.__exit__,)))]
    del held, one
    return steps.pop()
