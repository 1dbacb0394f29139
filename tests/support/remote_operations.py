"""What is done to arrays while the network breaks, and what must be true afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.errors import Conflict, NotFound
from tests.support.remote import Line, numbers, within

SHAPE = (12, 6)
CHUNKED: dict[str, Any] = {"chunks": (4, 3)}
SHARDED: dict[str, Any] = {"chunks": (2, 3), "shards": (4, 6)}
DOCUMENTS = ("a/zarr.json", "zarr.json")
ROWS = numbers((3, 6), seed=1)


def warm(line: Line) -> None:
    """Do what is done once in a process, such as trying the server, before the network breaks."""
    url = line.near.fresh()
    line.near.create((1,), "i8", url=url)
    line.far.open(line.far_url(url), "r+")[0] = 1


class Site:
    """An array that was stored before the network broke, and handles on the far side of it."""

    def __init__(self, wire: Line, seconds: float, layout: dict[str, Any]) -> None:
        self.wire = wire
        self.near_url = wire.near.fresh()
        self.far = wire.far.having(**within(seconds, wire.far.kind))
        self.url = wire.far_url(self.near_url)
        self.model = numbers(SHAPE)
        group = stash.create_group(self.near_url, options=wire.near.options)
        group.create("a", SHAPE, "i8", **layout)[...] = self.model
        self.group = stash.open_group(self.url, "r+", options=self.far.options)
        array = self.group["a"]
        assert isinstance(array, stash.Array)
        self.array = array

    def stored(self, name: str) -> np.ndarray | None:
        """What is there, looked at by a way that is not broken."""
        try:
            return self.wire.near.open(f"{self.near_url}/{name}")[...]
        except NotFound:
            return None


@dataclass(frozen=True)
class Operation:
    """``act`` on a site; a read answers ``answer`` of the model, a write makes the model of the
    array ``name`` into ``after`` of it."""

    act: Callable[[Site], Any]
    answer: Callable[[np.ndarray], Any] | None = None
    after: Callable[[np.ndarray], np.ndarray] = lambda model: model
    name: str = "a"
    layout: Mapping[str, Any] = field(default_factory=lambda: CHUNKED)

    def check_done(self, site: Site, result: Any) -> None:
        if self.answer is not None:
            wanted = self.answer(site.model)
            assert type(result) is type(wanted)
            assert np.array_equal(result, wanted), "wrong data"
            return
        found, wanted = site.stored(self.name), self.after(site.model)
        assert found is not None
        assert np.array_equal(found, wanted), f"stored {found}"

    def check_failed(self, site: Site) -> None:
        """Nothing is half there: each chunk is old or new, and so is the shape."""
        if self.answer is not None:
            return
        found, old, new = site.stored(self.name), site.model, self.after(site.model)
        if self.name == "new":
            assert found is None or not found.any()
            return
        assert found is not None
        if old.shape != new.shape:
            assert any(np.array_equal(found, state) for state in (old, new)), f"stored {found}"
            return
        rows, columns = self.layout.get("shards", self.layout["chunks"])
        for row in range(0, SHAPE[0], rows):
            for column in range(0, SHAPE[1], columns):
                box = np.s_[row : row + rows, column : column + columns]
                states = (old[box], new[box])
                assert any(np.array_equal(found[box], s) for s in states), f"chunk {found[box]}"


def changed(where: Any, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(model: np.ndarray) -> np.ndarray:
        model = model.copy()
        model[where] = value
        return model

    return change


def grown(model: np.ndarray) -> np.ndarray:
    return np.concatenate([model, ROWS])


def put(where: Any, layout: Mapping[str, Any]) -> Operation:
    def act(site: Site) -> None:
        site.array[where] = 7

    return Operation(act, after=changed(where, 7), layout=layout)


READS: dict[str, Operation] = {
    "read all": Operation(lambda site: site.array[...], lambda model: model),
    "read slice": Operation(lambda site: site.array[3:9, 2], lambda model: model[3:9, 2]),
    "read shards": Operation(
        lambda site: site.array[1:7], lambda model: model[1:7], layout=SHARDED
    ),
    "open": Operation(lambda site: site.far.open(f"{site.url}/a").shape, lambda model: SHAPE),
    "list": Operation(
        lambda site: sorted(site.group.driver.list("")),
        lambda model: [*(f"a/c/{i}/{j}" for i in range(3) for j in range(2)), *DOCUMENTS],
    ),
    "info": Operation(lambda site: site.array.info().stored_chunks, lambda model: 6),
    "tree": Operation(lambda site: site.group.tree().count("\n"), lambda model: 1),
}
WRITES: dict[str, Operation] = {
    "merge": put(np.s_[1:7, 1:5], CHUNKED),
    "merge shards": put(np.s_[1:7, 1:5], SHARDED),
    "whole chunks": put(np.s_[4:12], CHUNKED),
    "whole shard": put(np.s_[4:8], SHARDED),
    "append": Operation(lambda site: site.array.append(ROWS), after=grown),
    "append to shards": Operation(
        lambda site: site.array.append(ROWS), after=grown, layout=SHARDED
    ),
    "grow": Operation(
        lambda site: site.array.resize((14, 6)),
        after=lambda model: np.concatenate([model, np.zeros((2, 6), model.dtype)]),
    ),
    "shrink": Operation(lambda site: site.array.resize((5, 6)), after=lambda model: model[:5]),
    "create": Operation(
        lambda site: site.group.create("new", (4,), "i8"),
        after=lambda model: np.zeros(4, "i8"),
        name="new",
    ),
}
OPERATIONS = READS | WRITES


def at_once(
    line: Line, seconds: float, work: Callable[[Site, str, Operation], None]
) -> dict[str, Site]:
    """``work(site, name, operation)`` for each, a thread each; all must end well. Returns the
    sites: one for each write, reads share theirs."""
    makers = {name: operation.layout for name, operation in WRITES.items()}
    makers |= {"read all": CHUNKED, "read shards": SHARDED}
    with ThreadPoolExecutor(3) as pool:
        made = pool.map(lambda layout: Site(line, seconds, dict(layout)), makers.values())
        sites = dict(zip(makers, made, strict=True))
    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        done = {
            name: pool.submit(work, sites.get(name, sites["read all"]), name, operation)
            for name, operation in OPERATIONS.items()
        }
        wrong = {name: repr(end.exception()) for name, end in done.items() if end.exception()}
    assert not wrong, wrong
    return sites


def goes_on(site: Site, operation: Operation) -> None:
    """The network is whole again: the same handle reads what is there, and appends to it."""
    state = site.stored(operation.name)
    if state is None:
        site.group.create("new", (4,), "i8")
        return
    array = site.array if operation.name == "a" else site.group["new"]
    assert isinstance(array, stash.Array)
    assert array.refresh().shape == state.shape, (array.shape, state.shape)
    try:
        start = array.append(state[:2])
    except Conflict as error:  # a slow machine may lose a short lease, and is told what to do
        assert "repeat the call" in str(error), error
        start = array.append(state[:2])
    assert start == len(state), start
    assert np.array_equal(array[...], np.concatenate([state, state[:2]]))
