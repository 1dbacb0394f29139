"""What one piece of work costs the process that does it."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from pathlib import Path
from types import TracebackType

from ..startup import resident
from ..timing import moved


class Gauge:
    """Wall and CPU seconds (all threads, and processes that have ended), bytes that read and
    write system calls moved, and how far resident memory rose.

    Files that are mapped are read by page faults: no bytes for them, but their pages are resident.
    """

    def __enter__(self) -> Gauge:
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        self._resident = resident("VmRSS")
        self._moved = moved()
        self._cpu = _cpu()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.wall = time.perf_counter() - self._start
        self.cpu = _cpu() - self._cpu
        after = moved()
        self.read, self.written = (b - a for a, b in zip(self._moved, after, strict=True))
        self.peak = max(0, resident("VmHWM") - self._resident)

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

    def as_dict(self) -> dict[str, float]:
        """All of it."""
        return {
            "wall": self.wall,
            "cpu": self.cpu,
            "read": self.read,
            "written": self.written,
            "peak": self.peak,
        }


def _cpu() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
