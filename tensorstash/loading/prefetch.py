"""Items made ahead of their consumer by one background thread, which ends with them."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from itertools import repeat
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Generic, TypeVar

from ..memory import Budget
from ..turn import take, turn

Item = TypeVar("Item")

_OF_LATE = 4  # items, about, of which times are a mean
_LATEST = 5  # calls of late
_HANDED = 100e-6  # seconds that an item from another thread costs
_PART = 0.1  # of the time that an item takes to make: less is not worth a thread
_LINGER = 10.0  # seconds that an interpreter which ends waits for a read that is under way


class Stop:
    """Tells a generator that nobody wants its items any more."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    @property
    def asked(self) -> bool:
        """Whether it is to stop."""
        return bool(self.requests)

    def check(self) -> None:
        """End the generator, where it was asked to stop."""
        if self.asked:
            raise Stopped


class Held:
    """Notes batches that are ready and not taken, of about ``nbytes()`` each."""

    def __init__(self, budget: Budget, nbytes: Callable[[], int]) -> None:
        self._account = budget.account("prefetched")
        self._size = nbytes
        self._nbytes = 0

    def note(self, count: int) -> None:
        """So many are ready."""
        if count:
            self._nbytes = self._nbytes or max(1, self._size())
        self._account.set(count * self._nbytes)

    def crowded(self, count: int) -> bool:
        """Whether there is no memory for one more than ``count``; there always is for one."""
        if not count or not self._account.limited:
            return False
        room = self._account.room()
        return room is not None and (count + 1) * self._nbytes > room


class Stopped(Exception):
    """Ends a generator that was asked to stop."""


class _Making(Generic[Item]):
    """The generator, which one thread at a time has make the next item."""

    def __init__(
        self, make: Callable[[Stop], Generator[Item, None, None]], held: Held | None
    ) -> None:
        self.stop = Stop()
        self.lock = threading.Lock()
        self.wanted: SimpleQueue[None] = SimpleQueue()
        self.ready: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        self.spare: SimpleQueue[None] = SimpleQueue()
        """One for each item that may be asked for besides those that are wanted and ready."""
        self.seconds = 0.0
        """What an item takes to make, of late."""
        self._items = make(self.stop)
        self._run = copy_context().run
        self._held = held

    def next(self) -> tuple[bool, Any]:
        """``(True, item)``; ``(False, error)`` where there are no more: ``None`` at their end. For
        who has the turn."""
        began = perf_counter()
        try:
            item = self._run(next, self._items)
        except (StopIteration, Stopped):
            return False, None
        except BaseException as error:
            return False, error
        self.seconds += (perf_counter() - began - self.seconds) / _OF_LATE
        return True, item

    def ahead(self) -> bool:
        """Make one that somebody may ask for; whether there may be more."""
        if self._held is not None and self._held.crowded(self.ready.qsize()):
            self.spare.put(None)  # whoever takes one of those that are ready asks again
            return True
        with turn(self.lock):
            if self.stop.asked:
                return False
            made = [self.next()]  # the traceback of an error keeps this frame
            more = made[0][0]
            if more:  # noted before: whoever takes the last one notes that, too
                self.note(self.ready.qsize() + 1)
            self.ready.put(made.pop())
            return more

    def note(self, count: int) -> None:
        """So many are ready."""
        if self._held is not None:
            self._held.note(count)

    def close(self) -> None:
        """End the generator."""
        with turn(self.lock):
            self._items.close()


class Prefetcher(Iterator[Item], Generic[Item]):
    """The items of a generator, at most ``depth`` of them made before they are asked for.

    A thread of its own makes them, one after another. It ends with the generator's last item or
    error, which is raised here in its place; by :meth:`close`; when this iterator is collected as
    garbage; and when the interpreter ends. It does not pass a fork.

    To be handed an item by another thread costs a fraction of a millisecond, in which both want the
    interpreter's lock. So where items may be made ``anywhere``, whoever asks when none is ready and
    none is being made makes it itself; and where next to nothing is done between one item and the
    next, so that there is nothing to be gained, none is made ahead.
    """

    def __init__(
        self,
        make: Callable[[Stop], Generator[Item, None, None]],
        depth: int,
        held: Held | None = None,
        anywhere: bool = True,
    ) -> None:
        """``make``: the generator, which is to call ``check`` of what it is given, now and
        then; it must not hold this iterator. ``held``: notes what is made, and says when there is
        memory for no more. ``anywhere``: in whichever thread; else in the thread alone."""
        self._making = making = _Making(make, held)
        for _ in range(depth):
            making.spare.put(None)
        self._anywhere = anywhere
        self._turns = threading.Lock()  # of those who ask
        self._maker: int | None = None  # the thread of them that makes an item
        self._left: float | None = None  # when the last item was
        self._between: deque[float] = deque(maxlen=_LATEST)  # seconds from an item to the next call
        self._ask()
        # Called by C when this iterator goes: an interrupt in a finalizer would be lost.
        ends: list[Callable[[Any], Any]] = [making.stop.requests.append, making.wanted.put]
        gone = [weakref.ref(self, each) for each in ends]
        self._thread = threading.Thread(
            target=_make,
            args=(making, gone),
            name="tensorstash-feed",
            # One that is not is waited for before anything could tell it that the program ends.
            daemon=True,
        )
        self._end = partial(_end, os.getpid(), making.stop, making.wanted)
        _remember(self._thread, self._end)
        self._thread.start()

    def __next__(self) -> Item:
        with turn(self._turns):
            return self._next()

    def _next(self) -> Item:
        making = self._making
        worth = self._noted() > max(_HANDED, _PART * making.seconds) or not self._anywhere
        own = self._own(making) if self._anywhere else None
        if own is None:
            if making.ready.empty():
                # Who holds the lock may have made the last item that was asked for, and not let go
                # of the lock yet.
                self._ask(1)
            made, item = making.ready.get()
            making.spare.put(None)
            if made:
                making.note(making.ready.qsize())
        else:
            made, item = own
        del own  # an error that is raised must not be kept by this frame
        if made:
            if worth:
                self._ask()
            self._left = perf_counter()
            return item  # type: ignore[no-any-return]
        making.note(0)
        making.ready.put((False, None))  # whoever asks once more
        if item is None:
            raise StopIteration
        try:
            raise item
        finally:
            del item  # its traceback keeps this frame

    def _own(self, making: _Making[Item]) -> tuple[bool, Any] | None:
        """An item that this thread makes; ``None`` where one is ready, or is being made."""
        if not making.ready.empty():
            return None
        taken = [take(making.lock, 0)]
        try:
            if taken[0] is None or not making.ready.empty() or making.stop.asked:
                return None
            self._maker = threading.get_ident()
            found = [making.next()]  # as in `ahead`
        finally:
            self._maker = None
            taken.clear()  # a traceback may keep this frame
        if not found[0][0]:
            self._end()  # the thread's work, too
        return found.pop()

    def _noted(self) -> float:
        """Seconds that are between an item and the call for the next."""
        if self._left is None:
            return 1.0  # who knows
        # Not their mean: who is interrupted once, on a busy machine, does no more than before.
        self._between.append(perf_counter() - self._left)
        return sorted(self._between)[len(self._between) // 2]

    def _ask(self, count: int | None = None) -> None:
        """Have the thread make as many as may be ready, or ``count`` of them."""
        making = self._making
        with suppress(Empty):
            for _ in repeat(None) if count is None else repeat(None, count):
                making.spare.get_nowait()
                making.wanted.put(None)

    def close(self) -> None:
        """End the thread, and wait until it has; there are no more items then."""
        self._end()
        if self._maker == threading.get_ident():
            return  # by a signal's handler: the thread ends when what it interrupted has
        self._thread.join()
        making = self._making
        ready, making.ready = making.ready, SimpleQueue()
        making.note(0)
        for queue in (ready, making.ready):  # another thread may wait at the old one
            queue.put((False, None))


def _make(making: _Making[Any], gone: object) -> None:
    try:
        while True:
            making.wanted.get()
            if making.stop.asked or not making.ahead():
                return
    finally:
        making.close()
        making.ready.put((False, None))


def _end(pid: int, stop: Stop, wanted: SimpleQueue[None]) -> None:
    stop.requests.append(None)
    if pid == os.getpid():
        wanted.put(None)


_threads: weakref.WeakKeyDictionary[threading.Thread, Callable[[], Any]] = (
    weakref.WeakKeyDictionary()
)
_registered: list[bool] = []


def _remember(thread: threading.Thread, end: Callable[[], Any]) -> None:
    _threads[thread] = end
    if not _registered:
        _registered.append(True)
        atexit.register(_end_all)


def _end_all() -> None:
    """Before the interpreter is taken apart under its threads."""
    threads = list(_threads.items())
    for _, end in threads:
        end()
    for thread, _ in threads:
        thread.join(_LINGER)
