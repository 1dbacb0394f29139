"""Handles as another process has them, which shares their driver here."""

from __future__ import annotations

import io
import pickle
from typing import Any, TypeVar

from tensorstash.driver import Driver

_Handle = TypeVar("_Handle")


def sent(handle: _Handle) -> _Handle:
    """``handle`` after a pickle, but for its driver: that of some tests keeps all it has in it."""
    drivers: list[Driver] = []

    class Out(pickle.Pickler):
        def persistent_id(self, obj: Any) -> int | None:
            if not isinstance(obj, Driver):
                return None
            drivers.append(obj)
            return len(drivers) - 1

    class In(pickle.Unpickler):
        def persistent_load(self, pid: int) -> Driver:
            return drivers[pid]

    file = io.BytesIO()
    Out(file).dump(handle)
    file.seek(0)
    found: _Handle = In(file).load()
    return found
