"""Leases kept by a thread of their own.

The thread takes the lease, prolongs it and lets it go; whoever holds the lease only waits for it.
So an interrupt of the holder, wherever it comes, breaks off no request on its way: the thread
learns that it is not wanted any more and lets go of what it may have taken, in that order.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any

from tensorstash.driver import Check
from tensorstash.drivers.waiting import Waiting
from tensorstash.errors import DriverError

_GRACE = 1.0  # seconds that who is interrupted waits for the lease to be let go

_log = logging.getLogger("tensorstash")


class Lease(ABC):
    """A lock that lapses unless its holder prolongs it, as a server keeps it. All but ``check``
    are called by one thread."""

    period: float
    """Seconds between prolongations."""

    @abstractmethod
    def take(self) -> bool:
        """Take it, if it is free."""

    @abstractmethod
    def prolong(self) -> bool:
        """Prolong it; ``False`` when it was lost. What it raises is no loss yet."""

    @abstractmethod
    def release(self) -> None:
        """Let the next one in, if it may be ours. Raises nothing: it lapses anyway."""

    @abstractmethod
    def check(self) -> None:
        """Raise :class:`~tensorstash.errors.Conflict` when it was lost."""


class LeaseLock:
    """``lease`` held in a ``with`` block, within a turn of this process' threads."""

    def __init__(
        self, lease: Lease, waiting: Waiting, turn: AbstractContextManager[Any] | None = None
    ) -> None:
        self._lease = lease
        self._waiting = waiting
        self._turn = turn or nullcontext()
        self._pid = os.getpid()
        self._over: SimpleQueue[Any] = SimpleQueue()
        self._came: SimpleQueue[list[BaseException]] = SimpleQueue()
        # Called by C when this object goes, should an interrupt keep it from __exit__.
        gone = weakref.ref(self, self._over.put)
        self._thread = threading.Thread(
            target=_keep,
            args=(lease, waiting, self._over, self._came, gone),
            name="tensorstash-lease",
            daemon=True,
        )

    def __enter__(self) -> Check:
        self._waiting.begin()
        self._turn.__enter__()
        try:
            self._thread.start()
            refused = self._came.get()
        except BaseException as error:
            self._over.put(None)
            try:
                with suppress(RuntimeError):  # it was not started yet
                    self._thread.join(_GRACE)
            finally:
                self._turn.__exit__(None, None, None)
            if isinstance(error, RuntimeError):
                raise DriverError(
                    "no thread can be started to keep a lock; end some, or raise the limit "
                    "(ulimit -u)"
                ) from error
            raise
        if refused:
            self._leave()
            raise refused.pop()  # in no variable: its traceback keeps this frame
        return self._lease.check

    def __exit__(self, *exc: object) -> None:
        if os.getpid() == self._pid:  # no forked child holds it
            self._over.put(None)
            self._leave()

    def _leave(self) -> None:
        try:
            self._thread.join()
        finally:
            self._turn.__exit__(None, None, None)


def _keep(
    lease: Lease,
    waiting: Waiting,
    over: SimpleQueue[Any],
    came: SimpleQueue[list[BaseException]],
    gone: object,
) -> None:
    ours = False
    failed: list[BaseException] = []
    try:
        ours = True  # perhaps: the reply to the first request may be lost
        while not lease.take():
            ours = False
            if _within(over, waiting.pause()):
                return
            ours = True
        came.put([])
        while not _within(over, lease.period):
            try:
                if not lease.prolong():
                    return
            except Exception as error:  # it is tried again while the lease lasts
                _log.debug("a lease was not prolonged: %s", error)
    except BaseException as error:
        failed.append(error)
    finally:
        if ours:
            lease.release()
        came.put(failed)
        del failed  # else this frame keeps it, if nobody takes the error, and is kept by it


def _within(over: SimpleQueue[Any], seconds: float) -> bool:
    """Whether it is over within so many seconds."""
    try:
        over.get(timeout=seconds)
    except Empty:
        return False
    return True
