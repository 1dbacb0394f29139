"""Names in shared memory that no other test has, and what is left of them."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from tensorstash.drivers.shm import driver as shm


def fresh() -> Iterator[str]:
    """A name that no other test has; afterwards nothing may be left of it."""
    made = f"test-{uuid.uuid4().hex}"
    yield made
    gc.collect()
    assert left(made) == []


def left(name: str) -> list[str]:
    """What there is of the store ``name``, its remains included."""
    return sorted(entry for entry in os.listdir(shm._memory()) if name in entry)


def child(context: Any, work: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    """A process that runs ``work(pipe, *args)``, and the other end of its pipe."""
    mine, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return process, mine
