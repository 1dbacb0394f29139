"""Memory that processes of one host share: ``shm://name``, gone when nobody holds it any more.

A store is a folder of files in shared memory (``/dev/shm``), so what ``file://`` promises holds
here: whole puts, conditions, locks, and views without copying (``a.mmap``). A driver holds the
store from when it is made until it is closed or collected, in each process for itself; a forked
child holds what its parent held. After the last of them, killed ones too, the store is empty.
"""

from __future__ import annotations

from tensorstash.drivers.shm.driver import ShmDriver

__all__ = ["ShmDriver", "connect"]


def connect(rest: str) -> ShmDriver:
    """The store that ``rest`` names up to its first ``/``, made if nobody holds it, and below it
    the part that the remainder names."""
    return ShmDriver(rest)
