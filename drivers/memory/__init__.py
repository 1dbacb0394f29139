"""Values in this process' memory: ``memory://name``, or a ``dict`` of yours.

Named stores live until the process ends or their keys are deleted, and nest like paths:
``memory://run/raw`` is the part of ``memory://run`` below ``raw/``.

Other mappings of yours (``dbm``, ``shelve``, zict, one over SQLite or LMDB) may make new bytes at
each read, may not be used by two threads at once, or only by the thread that opened them.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from tensorstash.driver import check_key
from tensorstash.drivers.memory.driver import MemoryDriver, named

__all__ = ["MemoryDriver", "connect"]


def connect(rest: str, *, mapping: MutableMapping[str, Any] | None = None) -> MemoryDriver:
    """The process-wide store that ``rest`` names up to its first ``/``, and below it the
    part that the remainder names; or the driver of a ``mapping`` of the user's."""
    if mapping is not None:
        return MemoryDriver(mapping)
    name, _, inner = rest.strip("/").partition("/")
    if inner:
        check_key(inner)
        inner += "/"
    return MemoryDriver(named(name), name=name, prefix=inner)
