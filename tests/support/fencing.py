"""Holders of a lock that are stopped before a request, in a process of their own, and what they
must leave when they go on."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.errors import Conflict
from tensorstash.location import resolve
from tensorstash.metadata import node
from tests.support.oracle import same
from tests.support.remote import Remote

Op = tuple[Any, ...]
"""``("append", rows, first number)`` (0: all fill), ``("resize", rows)``, ``("edge", number)`` (the
last row is written, without the lock), ``("blank",)`` (all is set to fill, without it),
``("replace", rows)`` (by a new array of fill), ``("remove",)``, ``("extend", rows, first
number)`` of records."""

WIDTH = 3
_PATIENCE = 120.0  # guards against hanging only


@dataclass(frozen=True)
class Layout:
    """An array that is made for a case."""

    rows: int
    how: dict[str, Any]


LAYOUTS = {
    "part": Layout(6, {"chunks": (4, 2)}),
    "whole": Layout(8, {"chunks": (4, 3)}),
    "shards": Layout(6, {"chunks": (2, 3), "shards": (8, 3)}),
    "v2": Layout(6, {"chunks": (4, 3), "zarr_format": 2}),
    "plain": Layout(6, {"chunks": (4, 3), "codecs": ["bytes"]}),
    "empty": Layout(0, {"chunks": (4, 3)}),
}


def rows_of(count: int, first: int) -> np.ndarray:
    """Rows that can be told apart; of zero: fill."""
    if not first:
        return np.zeros((count, WIDTH), "i4")
    return (first + np.arange(count * WIDTH, dtype="i4")).reshape(count, WIDTH)


def after(model: np.ndarray, op: Op) -> np.ndarray:
    """What an operation makes of an array."""
    if op[0] == "append":
        return np.concatenate([model, rows_of(op[1], op[2])])
    if op[0] == "resize":
        kept = model[: op[1]]
        return np.concatenate([kept, np.zeros((op[1] - len(kept), WIDTH), "i4")])
    if op[0] == "blank":
        return np.zeros_like(model)
    model = model.copy()
    model[-1:] = op[1]
    return model


def do(array: stash.Array, op: Op) -> int | None:
    """The operation itself."""
    if op[0] == "append":
        return array.append(rows_of(op[1], op[2]))
    if op[0] == "resize":
        array.resize((op[1], WIDTH))
    elif op[0] == "replace":
        how = {"chunks": (4, WIDTH), "zarr_format": array.spec.zarr_format}
        stash.create(array.driver, (op[1], WIDTH), "i4", overwrite=True, **how)
    elif op[0] == "remove":
        node.delete(array.driver, "")
    elif op[0] == "blank":
        array[...] = 0
    elif len(array):
        array[-1] = op[1]
    return None


# -- the holder ----------------------------------------------------------------------------------


class Gate:
    """Counts a process' requests, and holds back the one of number ``stop`` and all that follow
    until it is opened."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.count = 0
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._guard = threading.Lock()

    def __call__(self) -> None:
        with self._guard:
            if self.count >= self.stop:
                self.reached.set()
            self.count += 1
            wait = self.reached.is_set()
        if wait:
            assert self.opened.wait(_PATIENCE)


_gate = Gate(1 << 60)


def _guarded() -> None:
    """Have every request of this process pass the gate."""
    from tensorstash.drivers.redis import client
    from tensorstash.drivers.s3.requests import Requests

    send, ask = client.send, Requests._send

    def gated(*args: Any) -> None:
        _gate()
        send(*args)

    async def gated_too(self: Any, *args: Any, **how: Any) -> Any:
        await asyncio.to_thread(_gate)
        return await ask(self, *args, **how)

    client.send = gated
    Requests._send = gated_too  # type: ignore[method-assign]


def _serve(pipe: Any) -> None:
    """Carry out operations, one at a time; told to stop at a request, say so and wait."""
    global _gate
    _guarded()
    while (order := pipe.recv()) is not None:
        place, url, op, stop = order
        outcome: list[Any] = []
        _gate = Gate(1 << 60)
        gate = _gate

        opened = threading.Thread(
            target=_held, args=(place, url, op, stop, gate, outcome), daemon=True
        )
        opened.start()
        assert gate.reached.wait(_PATIENCE)
        pipe.send("done" if outcome else "stopped")
        if not outcome:
            assert pipe.recv() == "go"
        gate.opened.set()
        opened.join(_PATIENCE)
        pipe.send(outcome[0] if outcome else ("failed", "it hangs"))


def _held(place: Remote, url: str, op: Op, stop: int, gate: Gate, outcome: list[Any]) -> None:
    driver = resolve(url, place.options)
    try:
        thing: Any = (stash.open_records if op[0] == "extend" else stash.open)(driver, "r+")
        len(thing)
        gate.count, gate.stop = 0, stop  # opening the handle is before it
        result = thing.extend(told(op[1], op[2])) if op[0] == "extend" else do(thing, op)
        outcome.append(("done", result))
    except Conflict as error:
        outcome.append(("conflict", str(error)))
    except BaseException as error:
        outcome.append(("failed", f"{type(error).__name__}: {error}"))
    finally:
        gate.reached.set()
        driver.close()


class Holder:
    """A process that carries out operations and can be stopped in them."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs,), daemon=True
        )
        self.process.start()

    def begin(self, place: Remote, url: str, op: Op, stop: int) -> bool:
        """Whether it was stopped at the request of that number, before it was over."""
        self.pipe.send((place, url, op, stop))
        return bool(self._answer() == "stopped")

    def end(self, stopped: bool) -> tuple[str, Any]:
        """Let it go on; how it ended."""
        if stopped:
            self.pipe.send("go")
        kind, value = self._answer()
        assert kind in ("done", "conflict"), value
        return kind, value

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """All its threads are stopped by the system meanwhile."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.join()

    def _answer(self) -> Any:
        assert self.pipe.poll(_PATIENCE), "the holder says nothing"
        return self.pipe.recv()


def end_leases(driver: Driver, path: str = "") -> None:
    """As if all leases below ``path`` had come to their end: a holder does not know."""
    while not hasattr(driver, "_keys") and not hasattr(driver, "_settings"):
        driver = driver.driver  # type: ignore[attr-defined]
    own: Any = driver
    if hasattr(own, "_keys"):
        from tensorstash.drivers.redis.client import RedisRequest
        from tensorstash.drivers.redis.keys import is_lock
        from tensorstash.drivers.redis.listing import drop

        process, request = own._process, RedisRequest("unlock", path, writes=True)
        for page in process.listing._pages(path, request):
            drop(process.client, request, [place for place in page if is_lock(place)])
        return
    locks = [key for page in own._pages(path) for key, _ in page.keys if ".tensorstash/lock" in key]
    own._delete_all(iter(locks))


# -- cases ---------------------------------------------------------------------------------------


@contextmanager
def driver_at(place: Remote, url: str, **options: Any) -> Iterator[Driver]:
    """A driver of one case, closed after it."""
    driver = resolve(url, {**place.options, **options})
    try:
        yield driver
    finally:
        driver.close()


def stops(
    holder: Holder,
    place: Remote,
    layout: Layout,
    op: Op,
    others: Sequence[Op],
    *,
    leases: bool = False,
    points: Sequence[int] | None = None,
) -> int:
    """``op`` of a holder that is stopped before each of its requests in turn (or those of
    ``points``), while ``others`` are done and acknowledged, and then goes on; how many requests it
    had. With ``leases`` they wait until its lease is over, and it sleeps; else the lease is taken
    from it."""
    for stop in itertools.count() if points is None else points:
        url = place.fresh()
        with driver_at(place, url) as driver:
            array = stash.create(driver, (layout.rows, WIDTH), "i4", **layout.how)
            array[...] = rows_of(layout.rows, 1000)
            if not _case(holder, place, url, driver, op, others, stop, leases):
                return stop
    return -1


def _case(
    holder: Holder,
    place: Remote,
    url: str,
    driver: Driver,
    op: Op,
    others: Sequence[Op],
    stop: int,
    leases: bool,
) -> bool:
    model = stash.load(driver)
    stopped = holder.begin(place, url, op, stop)
    try:
        if stopped and leases:
            with holder.asleep():
                _others(driver, others, model, op)
        elif stopped:
            end_leases(driver)
            _others(driver, others, model, op)
    finally:
        kind, value = holder.end(stopped)
    found = stash.load(driver)
    if not stopped:
        assert kind == "done"
        same(found, after(model, op))
        return False
    case = (stop, op, others, kind)
    first, last = model, after(model, op)
    for other in others:
        first, last = after(first, other), after(last, other)
    allowed = [first]
    if kind == "done":  # before all of the others, or after; where its rows begin says which
        allowed = [last] if value in (None, len(model)) else []
        allowed += [after(first, op)] if value in (None, len(first)) else []
    assert any(np.array_equal(found, one) for one in allowed), (case, found.tolist())
    # Nothing of it shows later either, and the array goes on.
    again = stash.open(driver, "r+")
    assert again.append(rows_of(2, 9000)) == len(found), case
    wanted = after(found, ("append", 2, 9000))
    same(stash.load(driver), wanted)
    again.resize((len(wanted) + 9, WIDTH))
    same(stash.load(driver), after(wanted, ("resize", len(wanted) + 9)))
    return True


def _others(driver: Driver, others: Sequence[Op], model: np.ndarray, op: Op) -> None:
    """Carry out what others do, and see that it is there: before or after the holder's."""
    befores = [model, after(model, op)]
    for other in others:
        befores = [after(before, other) for before in befores]
        do(stash.open(driver, "r+"), other)
        found = stash.load(driver)
        assert any(np.array_equal(found, before) for before in befores), (op, others, found)


def replaced(
    holder: Holder, place: Remote, layout: Layout, op: Op, rows: int, points: Sequence[int] | None
) -> int:
    """``op``, which replaces, removes or grows the array, of a holder that is stopped before each
    of its requests in turn, while another replaces it by one of ``rows`` rows that are no fill."""
    for stop in itertools.count() if points is None else points:
        url = place.fresh()
        with driver_at(place, url) as driver:
            made = stash.create(driver, (layout.rows, WIDTH), "i4", **layout.how)
            made[...] = rows_of(layout.rows, 1000)
            theirs = rows_of(rows, 5000)
            stopped = holder.begin(place, url, op, stop)
            try:
                if stopped:
                    end_leases(driver)
                    stash.save(driver, theirs, **layout.how)
            finally:
                kind, _ = holder.end(stopped)
            there = node.load(driver, "")
            found = None if there is None else stash.load(driver)
            mine = None if op[0] == "remove" else np.zeros((op[1], WIDTH), "i4")
            if op[0] == "append":
                mine = after(theirs if stopped else rows_of(layout.rows, 1000), op)
            allowed = [theirs] if stopped else []
            allowed += [mine] if kind == "done" else []
            assert any(
                one is found or (one is not None and np.array_equal(one, found)) for one in allowed
            ), (stop, op, kind, found)
            if not stopped:
                assert kind == "done"
                return stop
            stash.save(driver, rows_of(5, 9000), **layout.how)  # nothing is in the way of the next
            same(stash.load(driver), rows_of(5, 9000))
    return -1


# -- records -------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {"id": "int64", "x": ((2,), "int32"), "t": stash.ragged("int32"), "s": str}


def told(count: int, first: int) -> dict[str, Any]:
    """Rows that follow from a number each; of zero: fill."""
    numbers = [first + k if first else 0 for k in range(count)]
    return {
        "id": numbers,
        "x": [[n, n + 1 if n else 0] for n in numbers],
        "t": [np.arange(n % 4, dtype="i4") + n for n in numbers],
        "s": [f"row {n}" if n else "" for n in numbers],
    }


def listed(records: Any) -> list[Any]:
    """All rows, to be compared."""
    rows = [records[k] for k in range(len(records))]
    return [(int(r["id"]), r["x"].tolist(), r["t"].tolist(), str(r["s"])) for r in rows]


def wanted_rows(count: int, first: int) -> list[Any]:
    rows = told(count, first)
    return [
        (int(rows["id"][k]), [int(v) for v in rows["x"][k]], rows["t"][k].tolist(), rows["s"][k])
        for k in range(count)
    ]


def change(records: stash.Records, op: Op) -> None:
    """What another does to records."""
    if op[0] == "extend":
        records.extend(told(op[1], op[2]))
    elif len(records):
        for name, values in told(len(records), 0).items():
            records[name][:] = values


def changed(rows: list[Any], op: Op) -> list[Any]:
    """What that makes of them."""
    return rows + wanted_rows(op[1], op[2]) if op[0] == "extend" else wanted_rows(len(rows), 0)


def record_stops(
    holder: Holder, place: Remote, before: int, op: Op, others: Sequence[Op], **how: Any
) -> int:
    """:func:`stops` of records, in the same way."""
    for stop in itertools.count():
        url = place.fresh()
        with driver_at(place, url) as driver:
            records = stash.create_records(driver, FIELDS, rows_per_chunk=4, **how)
            if before:
                records.extend(told(before, 100))
            model = wanted_rows(before, 100)
            stopped = holder.begin(place, url, op, stop)
            try:
                if stopped:
                    end_leases(driver)
                    for other in others:
                        change(stash.open_records(driver, "r+"), other)
            finally:
                kind, value = holder.end(stopped)
            before_all, after_all = model, [*model, *(mine := wanted_rows(op[1], op[2]))]
            for other in others:
                before_all, after_all = changed(before_all, other), changed(after_all, other)
            found = listed(stash.open_records(driver))
            if not stopped:
                assert found == model + mine
                return stop
            allowed = [before_all]
            if kind == "done":
                allowed = [after_all if value == before else before_all + mine]
            assert found in allowed, (stop, op, others, kind, value, found)
            stash.open_records(driver, "r+").extend(told(3, 500))
            assert listed(stash.open_records(driver)) == found + wanted_rows(3, 500)
    raise AssertionError


def patient(place: Remote) -> Remote:
    """Without a lease that could end by itself while a slow machine is busy."""
    return replace(place, given={**place.given, "lease": 600.0})
