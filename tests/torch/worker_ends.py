"""Workers of torch's ``DataLoader`` that a test leaves behind end with that test.

The traceback of a worker's error holds the iterator that holds the workers, in a circle. If the
collector comes by in the thread that feeds a worker's queue, the iterator's finalizer there waits
for a lock that this very thread holds: it, and the collection, never end, and nothing in a circle
is ever freed again in this process (seen with torch 2.13 on Python 3.11).
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator

import pytest


def collect_left_workers() -> None:
    """Have the collector come by here, in the main thread, where worker processes are left."""
    if multiprocessing.active_children():
        gc.collect()


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After an error torch waits for its workers, in vain; here less long."""
    import torch

    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    yield
    collect_left_workers()
