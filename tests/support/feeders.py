"""What tests of the feed share: the rows of batches, and the threads that must end."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

from tests.support.counted import check_batch

SHUFFLES: tuple[Any, ...] = (False, True, "exact")


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in check_batch(batch)]


def feeders() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "tensorstash-feed"]


def no_feeder() -> None:
    """A feeder that was let go ends soon: at the latest after the block that it reads."""
    end = time.monotonic() + 60
    while feeders() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert not feeders()
