"""Items made ahead of their consumer by one background thread, which ends with them."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..memory import Budget

Item = TypeVar("Item")

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


class Prefetcher(Iterator[Item], Generic[Item]):
    """The items of a generator, at most ``depth`` of them made before they are asked for.

    The generator runs in a thread of its own, one item after another. The thread ends with the
    generator's last item or error, which is raised here in its place; by :meth:`close`; when this
    iterator is collected as garbage; and when the interpreter ends. It does not pass a fork.
    """

    def __init__(
        self,
        make: Callable[[Stop], Generator[Item, None, None]],
        depth: int,
        held: Held | None = None,
    ) -> None:
        """``make``: the generator, which is to call ``check`` of what it is given, now and
        then; it must not hold this iterator. ``held``: notes what is made, and says when there is
        memory for no more."""
        self._held = held
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._wanted: SimpleQueue[Any] = SimpleQueue()
        for _ in range(depth):
            self._wanted.put(None)
        stop = Stop()
        run = copy_context().run
        # Called by C when this iterator goes: an interrupt in a finalizer would be lost.
        ends: list[Callable[[Any], Any]] = [stop.requests.append, self._wanted.put]
        gone = [weakref.ref(self, each) for each in ends]
        self._thread = threading.Thread(
            target=run,
            args=(_make, make(stop), stop, self._wanted, self._ready, held, gone),
            name="tensorstash-feed",
            # One that is not is waited for before anything could tell it that the program ends.
            daemon=True,
        )
        self._end = partial(_end, os.getpid(), stop, self._wanted)
        _remember(self._thread, self._end)
        self._thread.start()

    def __next__(self) -> Item:
        made, item = self._ready.get()
        if made:
            if self._held is not None:
                self._held.note(self._ready.qsize())
            self._wanted.put(None)
            return item  # type: ignore[no-any-return]
        if self._held is not None:
            self._held.note(0)
        self._ready.put((False, None))  # whoever asks once more
        if item is None:
            raise StopIteration
        try:
            raise item
        finally:
            del item  # its traceback keeps this frame

    def close(self) -> None:
        """End the thread, and wait until it has; there are no more items then."""
        self._end()
        self._thread.join()
        ready, self._ready = self._ready, SimpleQueue()
        if self._held is not None:
            self._held.note(0)
        for queue in (ready, self._ready):  # another thread may wait at the old one
            queue.put((False, None))


def _make(
    items: Generator[Any, None, None],
    stop: Stop,
    wanted: SimpleQueue[None],
    ready: SimpleQueue[Any],
    held: Held | None,
    gone: object,
) -> None:
    try:
        while True:
            wanted.get()
            if stop.asked:
                return
            if held is not None and held.crowded(ready.qsize()):
                continue  # whoever takes one of those that are ready asks for one again
            ready.put((True, next(items)))
            if held is not None:
                held.note(ready.qsize())
    except (StopIteration, Stopped):
        ready.put((False, None))
    except BaseException as error:
        ready.put((False, error))
        del error
    finally:
        items.close()


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
