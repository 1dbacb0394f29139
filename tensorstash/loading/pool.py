"""Decoded blocks in memory, from shortly before their first row is wanted until their last."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, Placed, Ragged, gathered, held
from ..errors import NoMemory, Unsupported, counted
from ..memory import PROCESS, Budget
from ..threads import alone
from .order import Numbers
from .prefetch import Stop
from .ranks import EpochPlan
from .source import Fields
from .workers import Task, ThreadTuner, WorkQueue

_AXES = 62  # of a row; NumPy holds 64, and a block and its rows are two
_BUNCH = 1 << 20  # bytes of small blocks that are read together
_WIDE = 16 << 20  # the same where they are read straight into their slots, at no more cost
_GROWS = 4  # times as many blocks as the time before, until it is so many
_MOST = 64  # blocks that are
_LEAST = 4  # and that are worth it: to plan a read of many costs as much as some reads of one
_TURNS = 4  # bunches a thread that may be on their way
_UNEVEN = 16  # times the mean size


class SlotBuffers:
    """Arrays of one epoch that the next may have: to be given fresh pages by the system costs more
    than to decode into them. One set at most is kept, none where there is a limit on memory; none
    travels in pickles."""

    def __init__(self, budget: Budget = PROCESS) -> None:
        self._budget = budget
        self.account = budget.account("pools")
        self._kept: list[tuple[Any, dict[str, NDArray[Any]]]] = []

    def take(self, fields: Fields, count: int, rows: int) -> dict[str, NDArray[Any]]:
        """An array for each field, of shape ``(count, rows, *element)``, with anything in it."""
        key = _key(fields, count, rows)
        try:
            kept, arrays = self._kept.pop()
        except IndexError:
            kept = None
        if kept == key:
            return arrays
        if any(len(shape) > _AXES for shape, _ in fields.values()):
            raise Unsupported(f"rows of more than {_AXES} axes cannot be loaded in batches")
        try:
            return {
                name: np.empty((count, rows, *shape), dtype)
                for name, (shape, dtype) in fields.items()
            }
        except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
            raise NoMemory(
                f"no memory for {counted(count, 'block')} of {counted(rows, 'row')}: "
                f"{error}; use smaller chunks"
            ) from error

    def give(self, fields: Fields, count: int, rows: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Nobody reads or writes ``arrays`` any more."""
        limited = self._budget.limited
        self._kept[:] = [] if limited else [(_key(fields, count, rows), arrays)]
        if limited:
            self.account.set(0)

    def __reduce__(self) -> tuple[type[SlotBuffers], tuple[Budget]]:
        return SlotBuffers, (self._budget,)


def _key(fields: Fields, count: int, rows: int) -> Any:
    return dict(fields), count, rows


class NoRoom(Exception):
    """The blocks of a batch take more than there may be in memory."""


class _Bunch(NamedTuple):
    """Blocks that are read together, each into its slot."""

    blocks: list[int]
    slots: list[int]
    task: Task[None]


class Pool:
    """The blocks that :meth:`plan` was told of, read by up to ``threads`` threads in the order
    in which they are wanted, at most a few more than were already.

    Fields that are plain arrays are read straight into slots, one a block, of one array a field,
    so that rows of any blocks are taken by one copy. A slot is used again after the last use of
    its block. For one thread to use.
    """

    def __init__(
        self,
        plan: EpochPlan,
        tuner: ThreadTuner,
        queue: WorkQueue,
        stop: Stop,
        buffers: SlotBuffers,
    ) -> None:
        """Of ``plan``: there is room for more blocks than its ``slots``, at the cost of a copy.
        ``queue`` has threads that read ahead where ``tuner`` has them. ``buffers`` is where memory
        for slots comes from, and goes to when this is closed."""
        source, blocks = plan.source, plan.order.blocks
        self._source = source
        self._buffers = buffers
        self._blocks = blocks
        self._last_use = plan.order.last_use()
        self._queue = queue
        self._tuner = tuner
        self._stop = stop
        self._most = int(np.diff(blocks.bounds).max(initial=1))
        self._size, self._widest = together(plan, buffers.account.limited)
        self._limit = min(_TURNS * queue.threads * self._widest, plan.prefetch_blocks)
        self._slot = np.full(len(blocks), -1, np.int64)
        self._planned = np.zeros(len(blocks), bool)
        self._coming: deque[int] = deque()
        self._bunches: dict[int, _Bunch] = {}
        self._held: list[tuple[int, int]] = []
        self._free: list[int] = []
        self._slots: dict[str, NDArray[Any]] = {}
        self._used = 0
        self._slot_bytes = self._most * max(1, source.row_bytes)
        # A slot is as large as the largest block: where that is many times a usual one, memory
        # for slots would be most of it empty, and blocks are kept as they are read.
        mean = int(blocks.bounds[-1]) / max(1, len(blocks))
        self._fixed = dict(source.fixed) if self._most <= _UNEVEN * mean + 1 else {}
        self._rest: dict[str, list[Any]] = {}
        self._names: list[str] = []
        self._room(max(1, min(plan.slots, len(blocks))))
        self.loaded = 0

    def plan(self, blocks: Numbers) -> None:
        """The blocks of rows that will be wanted, in their order."""
        fresh = blocks[~self._planned[blocks]]
        if len(fresh):
            names, first = np.unique(fresh, return_index=True)
            self._coming.extend(names[np.argsort(first)].tolist())
            self._planned[names] = True

    def take(self, blocks: Numbers, within: Numbers) -> Columns:
        """The rows at these places, in memory of their own."""
        self._begin()
        slot = self._slot[blocks]
        if slot.min() < 0:
            for block in dict.fromkeys(blocks[slot < 0].tolist()):
                if self._slot[block] < 0:  # it may have come with one before it
                    self._require(block)
            slot = self._slot[blocks]
        flat = slot * self._most + within
        found: Columns = {}
        for name in self._names:
            if name in self._flat:
                found[name] = self._flat[name].take(flat, axis=0)
            else:
                found[name] = gathered(self._rest[name], slot.tolist(), within.tolist())
        return found

    def release(self, position: int) -> None:
        """Every row before ``position`` was taken."""
        held = self._held
        while held and held[0][0] <= position:
            _, block = heapq.heappop(held)
            slot = int(self._slot[block])
            self._slot[block] = -1
            self._planned[block] = False
            self._free.append(slot)
            for kept in self._rest.values():
                kept[slot] = None

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self._coming.clear()
        self._queue.hold()
        self._bunches.clear()  # their tasks keep this pool
        self._buffers.give(self._fixed, self._count, self._most, self._slots)

    # -- reading ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Have threads read what is wanted next."""
        queue = self._queue
        if not self._tuner.together:
            return
        while self._coming and len(self._bunches) < self._limit and self._fits(self._size):
            if blocks := self._next():
                queue.add(self._bunch(blocks).task)
        queue.go()

    def _next(self) -> list[int]:
        """Blocks that are wanted next and not on their way, small ones several."""
        found: list[int] = []
        while self._coming and len(found) < self._size:
            block = self._coming.popleft()
            if self._slot[block] < 0 and block not in self._bunches:
                found.append(block)
        self._size = more_together(self._size, self._widest)
        return found

    def _bunch(self, blocks: list[int]) -> _Bunch:
        slots = [self._place() for _ in blocks]
        made = _Bunch(blocks, slots, Task(partial(self._read, blocks, slots)))
        self._bunches |= dict.fromkeys(blocks, made)
        return made

    def _require(self, block: int) -> None:
        """Have this block in its slot, now."""
        self._stop.check()
        if block in self._bunches:
            blocks, slots, task = self._bunches[block]
            self._queue.finish(task)
        else:
            next_ = self._coming and self._coming[0] == block and self._fits(self._size)
            if not next_ and not self._fits(1):
                raise NoRoom
            blocks, slots, task = self._bunch(self._next() if next_ else [block])
            alone(task.do)
            task.result()
        self._tuner.took(task.seconds, len(blocks))
        self.loaded += len(blocks)
        for member, slot in zip(blocks, slots, strict=True):
            del self._bunches[member]
            self._slot[member] = slot
            self._planned[member] = True
            heapq.heappush(self._held, (int(self._last_use[member]), member))
        self._begin()

    def _read(self, blocks: list[int], slots: list[int]) -> None:
        """Runs in any thread."""
        if len(blocks) == 1:
            rows = self._blocks.rows(blocks[0])
            slot, size = slots[0], len(rows)
            into = {name: array[slot][:size] for name, array in self._slots.items()}
            self._keep(self._source.take(rows, into), into, slots, [0, size])
            return
        parts = [self._blocks.rows(block) for block in blocks]
        sizes = [len(part) for part in parts]
        cuts = np.concatenate([[0], np.cumsum(sizes)])
        first = np.array(slots) * self._most - cuts[:-1]
        places = np.repeat(first, sizes) + np.arange(cuts[-1])
        out = {name: Placed(array, places) for name, array in self._flat.items()}
        columns = self._source.take_into(np.concatenate(parts), out)
        self._keep(columns, out, slots, cuts.tolist())

    def _keep(
        self, columns: Columns, fixed: dict[str, Any], slots: Sequence[int], cuts: list[int]
    ) -> None:
        for name, column in columns.items():
            if name not in fixed:
                kept = self._rest.setdefault(name, [None] * self._count)
                for slot, start, stop in zip(slots, cuts[:-1], cuts[1:], strict=True):
                    kept[slot] = held(column if len(slots) == 1 else _own(column[start:stop]))
        if not self._names:
            self._names = list(columns)

    # -- slots --------------------------------------------------------------------------------

    def _fits(self, blocks: int) -> bool:
        """Whether there is memory for so many blocks more."""
        account, new = self._buffers.account, blocks - len(self._free)
        if new <= 0 or not account.limited:
            return True
        room = account.room()
        return room is None or (self._used + new) * self._slot_bytes <= room

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        if self._used == self._count:
            # Some may be reading into the memory that is left behind.
            waiting = self._queue.hold()
            self._room(2 * self._count)
            self._queue.add(*waiting)
        self._used += 1
        self._buffers.account.set(self._used * self._slot_bytes)
        return self._used - 1

    def _room(self, count: int) -> None:
        """Slots for ``count`` blocks. Memory that was never read into costs none."""
        before = self._slots
        self._count = count
        self._slots = self._buffers.take(self._fixed, count, self._most)
        self._flat = {
            name: array.reshape(count * self._most, *array.shape[2:])
            for name, array in self._slots.items()
        }
        for name, array in before.items():
            self._slots[name][: len(array)] = array
        for kept in self._rest.values():
            kept.extend([None] * (count - len(kept)))


def together(plan: EpochPlan, sparing: bool = False) -> tuple[int, int]:
    """How many blocks are read at a time: at first, for who wants one batch should not wait for
    many, and at most. ``sparing``: no more than that, as memory is limited."""
    blocks = plan.order.blocks
    size = max(1, int(np.diff(blocks.bounds).max(initial=1)) * plan.source.row_bytes)

    def of(nbytes: int) -> int:
        found = min(_MOST, nbytes // size)
        return found if found >= _LEAST else 1

    first = of(_BUNCH)
    if sparing or not plan.source.places:
        return first, first
    return first, max(first, min(of(_WIDE), plan.prefetch_blocks // 2))


def more_together(size: int, most: int) -> int:
    """How many blocks the read after one of ``size`` takes."""
    return min(_GROWS * size, most)


def _own(piece: Any) -> Any:
    """A part of a column that keeps nothing else of it in memory."""
    if isinstance(piece, Ragged):
        return Ragged(piece.values.copy(), piece.offsets, piece.shapes.copy())
    return piece.copy() if isinstance(piece, np.ndarray) else piece
