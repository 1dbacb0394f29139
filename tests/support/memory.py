"""How much memory a block of code takes at most, whoever allocates it."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GUARD = 2 << 30
_ELSEWHERE = 96 << 20
"""Bytes that threads, caches and libraries may come to hold meanwhile."""


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Fails where what Python allocates, or the process holds, grew by more than ``nbytes``. What
    would take all there is gets a ``MemoryError`` instead."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + nbytes + _GUARD, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        grown = _status("VmHWM") - before
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert peak <= nbytes, f"Python took {peak >> 20} MiB"
    assert grown <= nbytes + _ELSEWHERE, f"the process took {grown >> 20} MiB"


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)
