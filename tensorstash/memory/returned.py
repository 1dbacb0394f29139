"""Memory that is freed goes back to the system, where a limit is to hold for the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_FROM = 128 << 10  # as in a process that begins

_done: list[bool] = []
_told: list[Callable[[], object]] = []


def keeps_little() -> bool:
    """Whether threads are to keep little from call to call: there is a limit, or was."""
    return bool(_done)


def when_limited(do: Callable[[], object]) -> None:
    """Have ``do``, which may come twice, done once there is a limit; now, where there was one."""
    _told.append(do)
    if _done:
        do()


def return_freed() -> None:
    """Have the C library keep nothing of what is freed, from 128 KiB a block on.

    glibc raises the size from which it does so with every larger block that is freed, up to 32 MiB:
    from then on chunks lie in its heaps, and what lies between those that are kept is not given
    back. With a cache of 30 MiB that was 16 MiB more. Elsewhere nothing happens.
    """
    if _done:
        return
    _done.append(True)
    for do in _told:
        do()
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _FROM)
        library.malloc_trim(0)
