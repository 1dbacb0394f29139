"""The requests that obstore's threads have not done with.

obstore answers a request in a thread of its own, for which it must enter Python; so it does to
learn that one was cancelled. When the interpreter ends, no such thread may be in Python: before
3.14 CPython unwinds its stack then, which aborts the process at the first frame of Rust.

The thread holds the request's future until it leaves. So whether a request is over for obstore
too, be it answered or cancelled, is told by its future: that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar
from weakref import ref

from obstore.store import MemoryStore

_T = TypeVar("_T")

_LEAST = 64

# Without callbacks: they would run in those threads, which might lose the GIL there.
_tracked: list[ref[Any]] = []
_room = _LEAST


def tracked(future: Awaitable[_T]) -> Awaitable[_T]:
    """``future``, which obstore just made, and which only the caller's ``await`` may keep."""
    global _room
    if len(_tracked) >= _room:
        _tracked[:] = _alive()
        _room = 2 * len(_tracked) + _LEAST
    _tracked.append(ref(future))
    return future


async def all_done() -> None:
    """Return when obstore has done with every request."""
    while True:
        MemoryStore()  # any call lets obstore drop what it let go of while it was not in Python
        if not _alive():
            return
        await asyncio.sleep(0.001)


def _alive() -> list[ref[Any]]:
    return [one for one in _tracked if one() is not None]
