"""Bringing changes into stored objects so that no other writer's are lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..driver import Buffer, Check, Driver, Put, Request, Tag, get_at_most
from ..errors import Conflict, Corrupt
from ..fill import is_fill
from ..metadata.node import remembers
from ..threads import key_lock
from ..turn import turn
from .chunks import Changed, Chunks
from .fence import Fence
from .look import Look, answers

_PATIENCE = 60.0  # seconds of losing every race before a writer gives up
_CONTRADICTIONS = 40  # times in a row that nothing is there, and yet a put says that something is


class Merge(NamedTuple):
    """A change to one object. ``merged(stored)`` is what shall be stored in place of what is, or
    ``None`` to leave an absent object absent; it may be called again. ``covers``: nothing is
    wanted of what is stored, unless the array has grown. ``place`` is for messages. ``most``: bytes
    that what is stored can have."""

    key: str
    place: tuple[int, ...]
    merged: Callable[[Buffer | None], Buffer | None]
    covers: bool
    most: int


_PART = 128 << 10  # bytes of a chunk, of which to encode a part pays


@dataclass(frozen=True)
class Masked:
    """A change to a chunk that says what it changes: ``values`` where ``mask`` is true."""

    values: NDArray[Any]
    mask: NDArray[np.bool]

    def __call__(self, chunk: NDArray[Any]) -> None:
        """Bring the values into ``chunk``."""
        np.copyto(chunk, self.values, where=self.mask)


@dataclass(frozen=True)
class Run:
    """A change to a chunk that says where: ``values`` go to ``place``, which are the bytes ``span``
    where these follow each other."""

    values: NDArray[Any]
    place: tuple[slice, ...]
    span: tuple[int, int] | None

    def __call__(self, chunk: NDArray[Any]) -> None:
        """Bring the values into ``chunk``."""
        chunk[self.place] = self.values


@dataclass
class Guess:
    """Whether objects at the array's edge are likely to be ``absent`` still, as in an array that
    is being filled: in a remote store, a put that is then refused costs less than asking first."""

    absent: bool = False


def merge_one(driver: Driver, merge: Merge, check: Check, guess: Guess) -> None:
    """Replace what is stored on the condition that it is still stored; else merge again with
    what is. ``check`` is called before every put; where it is a :class:`Fence`, what is stored
    gets another tag even if its bytes stay."""
    key = merge.key
    settle = check.settle if isinstance(check, Fence) else check
    if _is_likely_absent(driver, merge, guess) and _put_absent(driver, merge, check, guess):
        return
    gives_up = time.monotonic() + _PATIENCE
    wait = 0.0005
    contradictions = 0
    with turn(key_lock(driver.url, key)):  # this process' threads take turns; others may race us
        while True:
            found = _stored(driver, merge)
            if merge.covers:
                guess.absent = found is None
            data = merge.merged(None if found is None else found[0])
            if data is None:
                return
            settle()
            try:
                conditional = driver.capabilities.conditional_put
                if found is None or not conditional or not isinstance(check, Fence):
                    driver.replace(key, data, None if found is None else found[1])
                    return
                store = driver.put_anew if _same(data, found[0]) else driver.replace
                check.landed(key, found, store(key, data, found[1]))
                return
            except Conflict:
                if isinstance(check, Fence):
                    check.close()  # it may be a newer holder's, even where it looks like nobody's
                contradictions = contradictions + 1 if found is None else 0
                if contradictions == _CONTRADICTIONS:
                    raise Conflict(
                        f"nothing is read at key {key!r} (chunk {merge.place}), yet a put finds "
                        "something there; look at what has taken its place, and remove it",
                        key=key,
                    ) from None
                if time.monotonic() > gives_up:
                    raise Conflict(
                        f"chunk {merge.place} at key {key!r} was changed by other writers for "
                        f"{_PATIENCE:.0f} s without a break; write whole chunks, or fewer "
                        "writers a chunk",
                        key=key,
                    ) from None
                time.sleep(random.uniform(0, wait))
                wait = min(wait * 2, 0.05)


def merge_again(
    chunks: Chunks,
    index: tuple[int, ...],
    beyond: Callable[[NDArray[Any], tuple[int, ...]], Iterable[NDArray[Any]]],
    change: Callable[[NDArray[Any]], None],
    write_fill: bool,
) -> bool:
    """:func:`merge_one` for a chunk of a local store, which is kept decoded: whoever changes it
    again, row by row, has it read and decoded once. ``beyond``: what of it becomes fill.
    ``write_fill``: also where it is nothing else, and none is stored. ``False``: it is to be done
    in the other way, as where another writer was faster."""
    driver, pipeline = chunks.driver, chunks.pipeline_of(index)
    pipeline.check()
    able = driver.capabilities
    apart = not able.local or not able.conditional_put or chunks.sharding is not None
    if apart or not Changed.keeps(pipeline):
        return False
    key, fill = chunks.key(index), chunks.spec.fill
    with turn(key_lock(driver.url, key)):
        try:
            held = chunks.changed.pop()
        except IndexError:
            held = None
        if held is None or held.spec.shape != pipeline.spec.shape:
            held = Changed.made(pipeline.spec, chunks.changed)
        if held.key != key or driver.tag(key) != held.tag:
            try:
                held.read(key, pipeline, get_at_most(driver, key, chunks.most(index)))
            except Corrupt:  # the other way tells where
                return False
        span = None  # where rows are added, most of the chunk is fill, and soon encoded
        if isinstance(change, Run) and pipeline.spec.nbytes >= _PART:
            span = change.span
        for cells in beyond(held.values, chunks.spec.grid.origin(index)):
            cells[...], span = fill, None
        change(held.values)
        if held.tag is None and not write_fill and is_fill(held.values, fill):
            return True
        data = None
        if span is not None and held.stored is not None:
            data = pipeline.encode_change(held.values, held.stored, *span)
        if data is None:
            data = pipeline.encode(held.values)
        try:
            held.tag = driver.replace(key, data, held.tag)
        except Conflict:
            return False
        held.stored = None if span is None else data
        if remembers(driver, held.tag):
            chunks.changed[:] = [held]  # only now: of a change that failed nothing is kept
    return True


def _request(merge: Merge) -> Request:
    return Request(merge.key, None, None, merge.most)


def _stored(driver: Driver, merge: Merge) -> tuple[Buffer, Tag] | None:
    """What is stored; nothing, under its tag, in place of more than a chunk can have, where
    nothing is wanted of it."""
    try:
        return get_at_most(driver, merge.key, merge.most)
    except Corrupt:
        if not merge.covers:
            raise
        tag = driver.tag(merge.key)
        return None if tag is None else (b"", tag)


def _is_likely_absent(driver: Driver, merge: Merge, guess: Guess) -> bool:
    """Whether it is worth a put on the condition that nothing is there, without asking first."""
    capabilities = driver.capabilities
    remote = capabilities.conditional_put and not capabilities.local
    return remote and merge.covers and guess.absent


def _put_absent(driver: Driver, merge: Merge, check: Check, guess: Guess) -> bool:
    """Store without asking first; whether nothing was stored."""
    data = merge.merged(None)
    if data is None:
        return False
    check()
    try:
        driver.put(merge.key, data, if_absent=True)
    except Conflict:
        guess.absent = False
        if isinstance(check, Fence):
            check.close()
        return False
    return True


def merge_many(
    driver: Driver,
    merges: Sequence[Merge],
    check: Check,
    guess: Guess,
    look: Look | None = None,
) -> list[Merge]:
    """As :func:`merge_one` for many objects of a remote store: one window reads what is stored,
    another puts what becomes of it. Returns those that another writer was faster to change.
    ``look`` travels with the first window, and has ended before the second begins."""
    likely: list[Merge] = []
    asked: list[Merge] = []
    for merge in merges:
        (likely if _is_likely_absent(driver, merge, guess) else asked).append(merge)
    try:
        found = dict(answers(driver, map(_request, asked), look))
        if look is not None:
            look.done()
    except Corrupt:  # one has too many bytes: each on its own, to repair or to refuse that one
        if look is not None:
            look.done()
        return list(merges)
    anew = isinstance(check, Fence) and check.leased and driver.capabilities.content_tags
    if isinstance(check, Fence) and any(found.values()):
        check.settle()
    there = [found[i] is not None for i, merge in enumerate(asked) if merge.covers]
    if there:
        guess.absent = not any(there)
    sent: list[Merge] = []
    lost: list[Merge] = []
    before: dict[int, tuple[Buffer, Tag]] = {}

    def puts() -> Iterator[Put]:
        for merge in likely:
            data = merge.merged(None)
            if data is None:
                lost.append(merge)
                continue
            check()
            sent.append(merge)
            yield Put(merge.key, data, if_absent=True)
        for i, merge in enumerate(asked):
            stored = found.pop(i)
            data = merge.merged(None if stored is None else stored[0])
            if data is None:
                continue
            if anew and stored is not None and _same(data, stored[0]):
                lost.append(merge)  # one by one
                continue
            check()
            if stored is not None and isinstance(check, Fence):
                before[len(sent)] = stored
            sent.append(merge)
            yield driver.replacing(merge.key, data, None if stored is None else stored[1])

    for i, tag in driver.put_each(puts()):
        if tag is None:
            lost.append(sent[i])
        elif i in before and isinstance(check, Fence):
            check.landed(sent[i].key, before[i], tag)
    if any(merge in lost for merge in likely):
        guess.absent = False
    if lost and isinstance(check, Fence):
        check.close()
    return lost


def _same(one: Buffer, other: Buffer) -> bool:
    return len(one) == len(other) and bytes(one) == bytes(other)


# -- a write of many objects -----------------------------------------------------------


Stored: TypeAlias = tuple[str, Buffer | None]
"""A key and what shall be stored there; ``None``: nothing, for it would be all fill."""

Item = TypeVar("Item")


class Job(NamedTuple, Generic[Item]):
    """How an item of a write becomes one object: ``whole``, where nothing is wanted of what is
    stored, else by ``merge``. ``place``: the object's index, for messages. ``ahead``: the items
    again, of which the next few are encoded."""

    whole: Callable[[Item], Stored | None]
    merge: Callable[[Item], Merge]
    covers: Callable[[Item], bool]
    place: Callable[[Item], tuple[int, ...]]
    ahead: Callable[[Iterator[Item]], Iterator[Item]] = iter
