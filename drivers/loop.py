"""One event loop in one daemon thread of this process, for drivers whose clients are
asynchronous."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple

from tensorstash.cached import PerProcess
from tensorstash.driver import turn
from tensorstash.errors import DriverError

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Args = TypeVarTuple("_Args")

_LEAST = 4
_HELD_BYTES = 128 << 20
_EXIT_SECONDS = 5.0
_OURS = "tensorstash"


class Loop:
    """An event loop, started by its first use. Made by :func:`current` only."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._guard = threading.Lock()
        self._made: _OwnedLoop
        self._loop: _OwnedLoop | None = None
        self._thread: threading.Thread | None = None
        self._at_exit: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def started(self) -> _OwnedLoop:
        """The event loop, running."""
        if self._loop is None:
            with turn(self._guard):
                if self._loop is None:
                    self._start()
        assert self._loop is not None
        return self._loop

    def _start(self) -> None:
        """Resumed by the next user, should it be interrupted."""
        if self._thread is None:
            self._made = _OwnedLoop()
            self._thread = threading.Thread(
                target=_run_once, args=(self._made, [True]), name="tensorstash-loop", daemon=True
            )
            atexit.register(self._stop)
        if not self._thread.is_alive():
            self._thread.start()
        self._loop = self._made

    def at_exit(self, make_coro: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """``make_coro`` is awaited in the loop when the process ends in good order."""
        self._at_exit.append(make_coro)

    def run(self, coro: Coroutine[Any, Any, _T], timeout: float | None = None) -> _T:
        """What ``coro`` returns, awaited in the loop while this thread waits; it is cancelled
        when this thread is interrupted, or after ``timeout`` seconds (``TimeoutError``)."""
        loop = self.started()
        call: _Call[_T] = _Call(loop, coro)
        try:
            loop.call_soon_threadsafe(call.start)
            task = call.done.get(timeout=timeout)
        except BaseException as error:
            loop.call_soon_threadsafe(call.cancel)
            if isinstance(error, Empty):
                raise TimeoutError(f"not done after {timeout} s") from None
            raise
        try:
            return task.result()
        finally:
            del task  # it keeps its error, whose traceback keeps this frame

    def soon(self, coro: Coroutine[Any, Any, None]) -> None:
        """Have ``coro`` awaited in the loop and do not wait for it."""
        loop = self.started()
        loop.call_soon_threadsafe(_Call(loop, coro).start)

    def _stop(self) -> None:
        """Leave nothing behind that could enter Python while, or after, it ends."""
        if os.getpid() != self.pid or self._loop is None or self._thread is None:
            return
        end = time.monotonic() + _EXIT_SECONDS
        with suppress(Exception):
            self.run(self._finish(self._loop), _EXIT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_EXIT_SECONDS)
        while self._loop.visited() and time.monotonic() < end:
            time.sleep(0.001)
        if not self._thread.is_alive():
            self._loop.close()

    async def _finish(self, loop: _OwnedLoop) -> None:
        """Cut off what is under way, then do what is to be done at the exit."""
        me = asyncio.current_task()
        loop.ending = True
        left = [one for one in asyncio.all_tasks() if one.get_name() == _OURS and one is not me]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_EXIT_SECONDS / 2)
        for make_coro in self._at_exit:
            with suppress(Exception):
                await make_coro()


_loops = PerProcess(Loop)


def current() -> Loop:
    """This process' loop. In a forked child another one than the parent's."""
    return _loops.here()


def window(
    make_coro: Callable[[_Item], Coroutine[Any, Any, _T]],
    items: Iterable[_Item],
    limit: int,
    size_of: Callable[[_Item | _T], int] | None = None,
) -> Iterator[tuple[int, _T]]:
    """``(i, result)`` of ``make_coro(item)`` for the i-th item, in the order of arrival.

    Items are taken in the caller's thread, one for each result that it asks for, so that at
    most ``limit`` are under way or wait to be asked for; fewer (but 4) where the largest item
    or result so far, by ``size_of`` in bytes, makes that more than 128 MiB. The first error ends
    the rest. What is under way when the caller leaves is cancelled.
    """
    here = current()
    work: _Window[_Item, _T] = _Window(here.started(), make_coro)
    source = enumerate(items)
    room, largest, under_way, more = limit, 1, 0, True

    def measure(thing: _Item | _T) -> None:
        nonlocal room, largest
        assert size_of is not None
        size = size_of(thing)
        if size > largest:
            largest = size
            room = max(min(limit, _HELD_BYTES // largest), min(limit, _LEAST))

    try:
        while True:
            while more and under_way < room:
                found = next(source, None)
                if found is None:
                    more = False
                    break
                if size_of is not None:
                    measure(found[1])
                work.submit(found)
                under_way += 1
            if not under_way:
                return
            i, result, error = work.done.get()
            under_way -= 1
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback keeps this frame
            if size_of is not None:
                measure(result)
            yield i, result
            if os.getpid() != here.pid:
                under_way = 0
                raise DriverError(
                    "a batch begun before a fork cannot go on in the child; begin it again there"
                )
    finally:
        if under_way and os.getpid() == here.pid:
            work.cancel()


def _run_once(loop: _OwnedLoop, turns: list[bool]) -> None:
    # A start that was interrupted may be done again while the first is on its way.
    if turns:
        turns.clear()
        loop.run_forever()


class _OwnedLoop(asyncio.SelectorEventLoop):
    """Looks closed in a forked child, so that finalizers of the parent's connections, should
    any run there, leave the parent's sockets and selector alone."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._visitors: dict[object, None] = {}
        self.ending = False
        """The process ends. Whoever calls now, or waits for what is cut off, is a daemon thread:
        it gets no answer, which it might print, and waits until it is gone."""
        super().__init__()

    def call_soon_threadsafe(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        me = object()
        self._visitors[me] = None
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            # A statement, for at a call the GIL may be lost: gone from here, gone from Python.
            del self._visitors[me]

    def visited(self) -> bool:
        """Whether a thread is about to return from :meth:`call_soon_threadsafe`.

        A client written in Rust calls it in threads of its own, and we know its answer before
        they have returned. If the interpreter ends meanwhile, CPython before 3.14 unwinds the
        stack of a thread that asks for the GIL again; in Rust that aborts the process.
        """
        return bool(self._visitors)

    def is_closed(self) -> bool:
        return os.getpid() != self._pid or super().is_closed()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if os.getpid() == self._pid:
            super().call_exception_handler(context)

    def __del__(self, *_: Any) -> None:
        """Nothing: the loop lives as long as its process."""


class _Call(Generic[_T]):
    """One coroutine on its way into the loop and back."""

    __slots__ = ("_coro", "_loop", "_task", "done")

    def __init__(self, loop: _OwnedLoop, coro: Coroutine[Any, Any, _T]) -> None:
        self.done: SimpleQueue[asyncio.Task[_T]] = SimpleQueue()
        self._loop = loop
        self._coro = coro
        self._task: asyncio.Task[_T] | None = None

    def start(self) -> None:
        if self._loop.ending:
            self._coro.close()
            return
        self._task = self._loop.create_task(self._coro, name=_OURS)
        self._task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[_T]) -> None:
        if not (self._loop.ending and task.cancelled()):
            self.done.put(task)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # interrupted before it was begun
            self._coro.close()


class _Window(Generic[_Item, _T]):
    """What the consumer's thread and the loop's thread share of one window."""

    def __init__(
        self,
        loop: _OwnedLoop,
        make_coro: Callable[[_Item], Coroutine[Any, Any, _T]],
    ) -> None:
        self.done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
        self._loop = loop
        self._make_coro = make_coro
        self._waiting: deque[tuple[int, _Item]] = deque()
        self._woken = False
        self._left = False
        self._tasks: set[asyncio.Task[None]] = set()

    # in the consumer's thread

    def submit(self, item: tuple[int, _Item]) -> None:
        self._waiting.append(item)
        if not self._woken:  # one wake-up of the loop serves all that is submitted before it
            self._woken = True
            self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._leave)

    # in the loop's thread

    def _start(self) -> None:
        self._woken = False
        while self._waiting and not (self._left or self._loop.ending):
            task = self._loop.create_task(self._one(*self._waiting.popleft()), name=_OURS)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _leave(self) -> None:
        self._left = True
        for task in [*self._tasks]:
            task.cancel()

    async def _one(self, i: int, item: _Item) -> None:
        try:
            result = await self._make_coro(item)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.done.put((i, None, error))
        else:
            self.done.put((i, result, None))
