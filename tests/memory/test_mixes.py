"""Any mix of work stays within its limit by the ledger's account, and gives all of it back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine.caching.cache import _ENTRY
from tensorstash.errors import StashError
from tensorstash.loading.loader import BatchLoader
from tensorstash.memory import budget as memory
from tensorstash.memory.ledger import Entry, Ledger, total
from tests.support.far import FarDriver
from tests.support.interrupts import interrupted, places, uncollected
from tests.support.races import in_threads

SHAPE, CHUNKS = (64, 40), (4, 10)
CHUNK = 4 * 10 * 4
VALUES = np.random.default_rng(0).integers(1, 1 << 30, SHAPE).astype("i4")
SELECTIONS: list[Any] = [
    *(np.s_[...], np.s_[3], np.s_[:, 7], np.s_[5:60:3, ::-1], np.s_[16:24, 30:40], np.s_[7, 9]),
    *([50, 1, 1, 40, 7], (np.arange(0, 64, 2), np.arange(32) % 40), VALUES % 5 == 0),
]


class Noted(dict[int, Entry]):
    """The table of a ledger, and the most that ever was in it."""

    most = 0

    def __setitem__(self, number: int, entry: Entry) -> None:
        super().__setitem__(number, entry)
        self.most = max(self.most, total(list(self.values())))


class NotedLedger(Ledger):
    made: list[Noted] = []  # noqa: RUF012 - of all of them

    def __init__(self) -> None:
        super().__init__()
        self.entries = Noted()
        self.made.append(self.entries)


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory, "Ledger", NotedLedger)
    yield
    NotedLedger.made.clear()


class Failing(MemoryDriver):
    """Its calls fail once ``left`` have not."""

    left: int | None = None

    def _one(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OSError("the wire was cut")

    def get_tagged(self, *args: Any, **options: Any) -> Any:
        self._one()
        return super().get_tagged(*args, **options)

    def put(self, *args: Any, **options: Any) -> Any:
        self._one()
        return super().put(*args, **options)

    def delete(self, *args: Any, **options: Any) -> None:
        self._one()
        super().delete(*args, **options)


class Place:
    """An array under a limit, and what is done with it."""

    def __init__(self, far: bool, shards: tuple[int, int] | None, limit: int) -> None:
        self.failing = Failing()
        self.driver: Driver = FarDriver(self.failing, seed=limit) if far else self.failing
        how: dict[str, Any] = {"chunks": CHUNKS, "shards": shards}
        stash.create(self.driver, SHAPE, "i4", **how)[...] = VALUES
        self.limit, self.object = limit, CHUNK * (1 if shards is None else 16)
        NotedLedger.made.clear()
        self.open(0)

    def open(self, cache: int) -> None:
        self.array = stash.open(self.driver, "r+", cache=cache, memory_limit=self.limit)
        if self.array.shape != SHAPE:
            self.array.resize(SHAPE)

    def read(self, k: int) -> None:
        assert self.array[SELECTIONS[k]].size > 0

    def write(self, k: int) -> None:
        self.array[SELECTIONS[k]] = k

    def assign(self, k: int) -> None:
        self.array[...] = VALUES + k

    def append(self, k: int) -> None:
        self.array.append(VALUES[: 1 + 5 * k])
        self.array.resize(SHAPE)

    def writer(self, k: int) -> None:
        with self.array.writer() as writer:
            for start in range(k + 1):
                writer[start :: k + 1] = VALUES[start :: k + 1]

    def copy(self, k: int) -> None:
        target: Any = FarDriver() if k % 2 else {}
        stash.copy(self.array, target, chunks=(8, 8) if k % 3 else CHUNKS, shards=None)

    def load(self, k: int) -> None:
        loader = BatchLoader(
            self.array, 1 + 3 * k, shuffle=k % 2 == 0, threads=1 + k % 3, memory_limit=self.limit
        )
        assert all(len(batch) for batch in islice(loader, 1 + k))  # it is left in the middle

    def close(self, k: int) -> None:
        self.array.close()
        self.open((0, 1 << 20)[k % 2])

    def check(self) -> None:
        """Nothing but caches hold anything, and never was more held than may be."""
        use = self.array.settings.memory.use()
        assert use["total"] == use["caches"], use
        for ledger in self.array.settings.memory.ledgers()[:1]:
            held = [cache.nbytes + _ENTRY * len(cache.entries) for cache in ledger.caches]  # type: ignore[attr-defined]
            assert sum(held) == use["caches"] <= self.limit
        for entries in NotedLedger.made:
            # One chunk more, of which there may be three copies, and which a cache may take.
            assert entries.most <= self.limit + 4 * self.object + _ENTRY


WORKS = ("read", "write", "assign", "append", "writer", "copy", "load", "close")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(WORKS),
        st.integers(0, len(SELECTIONS) - 1),
        st.one_of(st.none(), st.none(), st.integers(0, 60), st.floats(0, 0.999)),
    ),
    min_size=1,
    max_size=8,
)


def interrupted_at(part: float, operation: Callable[[], Any]) -> None:
    """An interrupt at one of the places that it passes."""
    found = places(operation)
    interrupted(operation, found[int(part * len(found))])


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    far=st.booleans(),
    shards=st.sampled_from([None, (16, 40)]),
    chunks=st.integers(1, 60),
    steps=STEPS,
)
def test_one_thread(
    far: bool,
    shards: tuple[int, int] | None,
    chunks: int,
    steps: list[tuple[str, int, int | float | None]],
) -> None:
    """``steps``: what is done, how, and the call that fails, or the place of an interrupt."""
    place = Place(far, shards, chunks * CHUNK * (1 if shards is None else 16))
    for name, k, ends in steps:
        work = partial(getattr(Place, name), place)
        with uncollected(now=False), suppress(OSError, StashError):
            if isinstance(ends, float):
                interrupted_at(ends, partial(work, k))
            else:
                place.failing.left = ends
                work(k)
        place.failing.left = None
        gc.collect()
        place.check()
    place.array.close()
    ledgers = [*NotedLedger.made]
    del place, work
    gc.collect()
    assert not any(ledgers)


@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    far=st.booleans(),
    shards=st.sampled_from([None, (16, 40)]),
    chunks=st.integers(1, 12),
    steps=st.lists(
        st.tuples(st.sampled_from(WORKS[:-1]), st.integers(0, len(SELECTIONS) - 1)),
        min_size=6,
        max_size=12,
    ),
)
def test_threads_end(
    far: bool, shards: tuple[int, int] | None, chunks: int, steps: list[tuple[str, int]]
) -> None:
    """Three that want what the others have never wait for ever, one of which meets errors."""
    place = Place(far, shards, chunks * CHUNK * (1 if shards is None else 16))
    stop = threading.Event()

    def work(thread: int) -> None:
        for name, k in steps[thread::3]:
            with suppress(OSError, StashError):
                getattr(place, name)(k)
        if thread == 2 and not stop.is_set():
            place.failing.left = len(steps)

    in_threads(3, work, 60)
    place.failing.left = None
    gc.collect()
    use = place.array.settings.memory.use()
    assert use["total"] == use["caches"] <= place.limit
