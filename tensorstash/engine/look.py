"""One call's look at the metadata document of a remote store: whether it is still the one that a
handle knows, asked for in the same window as what the call reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Protocol

from ..driver import Buffer, Driver, Request, Tag
from ..errors import Conflict, NotFound, StashError
from ..metadata.spec import ArraySpec

Found = tuple[Buffer, Tag] | None
"""A document and its tag; ``None``: there is none."""


class Look:
    """Asked for once a call, by whichever thread sends requests first. ``verify`` is called with
    what is stored where that is not of the version ``tag``, and raises where it will not do."""

    def __init__(
        self, driver: Driver, key: str, tag: Tag | None, verify: Callable[[Found], None]
    ) -> None:
        self.driver = driver
        self._request = Request(key, unless=tag, most=driver.metadata_limit)
        self._verify = verify
        self._changes = threading.Condition()
        self._asked = False
        self._settled = False
        self._error: Exception | None = None

    def request(self) -> Request | None:
        """What to ask for, unless that was done; then :meth:`settle` must follow, or
        :meth:`forget`."""
        with self._changes:
            if self._asked:
                return None
            self._asked = True
            return self._request

    def settle(self, found: Found) -> None:
        """The answer has come."""
        error = None
        try:
            if found is None or found[1] != self._request.unless:
                self._verify(found)
        except Exception as raised:
            error = copy(raised)  # without the frames that it leaves, which hold this
            raise
        finally:
            with self._changes:
                self._settled, self._error = True, error
                self._changes.notify_all()

    def forget(self) -> None:
        """No answer will come; somebody else is to ask."""
        with self._changes:
            if not self._settled:
                self._asked = False
                self._changes.notify_all()

    def again(self) -> None:
        """What was told is of before what is read now: it is to be asked anew."""
        with self._changes:
            self._asked = self._settled = False

    def done(self) -> None:
        """Before anything is stored: wait for the answer, or ask."""
        while True:
            with self._changes:
                while self._asked and not self._settled:
                    self._changes.wait()
                if self._settled:
                    if self._error is not None:
                        raise copy(self._error)
                    return
            self.ask()

    def ask(self) -> None:
        """Ask now, in a window of its own, unless that was done."""
        for _ in answers(self.driver, (), self):
            pass


def answers(
    driver: Driver, requests: Iterable[Request], look: Look | None, loose: bool = False
) -> Iterator[tuple[int, Found]]:
    """What one window answers to ``requests``, by their numbers. ``look`` travels behind them,
    unless another asks already. ``loose``: tags of spans mean nothing."""
    get = driver.get_parts if loose else driver.get_many_tagged
    return get(requests) if look is None else _with(look, get, requests)


def _with(
    look: Look,
    get: Callable[[Iterable[Request]], Iterator[tuple[int, Found]]],
    requests: Iterable[Request],
) -> Iterator[tuple[int, Found]]:
    sent: list[int] = []

    def each() -> Iterator[Request]:
        n = 0
        for request in requests:
            yield request
            n += 1
        if (last := look.request()) is not None:
            sent.append(n)
            yield last

    try:
        for i, found in get(each()):
            if i in sent:
                look.settle(found)
            else:
                yield i, found
    finally:
        if sent:
            look.forget()


class Together:
    """One look for several reads under way at once: the last of them to send its requests asks,
    so that none reads what is stored later."""

    def __init__(self, look: Look, reads: int) -> None:
        self.look = look
        self._to_come = reads
        self._changes = threading.Lock()

    def read(self) -> Look:
        """The look, as one of the reads has it."""
        return _Read(self)

    def is_last(self, read: _Read) -> bool:
        """``read`` has sent its requests; whether all others have."""
        with self._changes:
            self._to_come -= not read.sent
            read.sent = True
            return self._to_come == 0


class _Read(Look):
    """The look, as one of the reads has it."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self.sent = False

    def request(self) -> Request | None:
        together = self._together
        return together.look.request() if together.is_last(self) else None

    def settle(self, found: Found) -> None:
        self._together.look.settle(found)

    def forget(self) -> None:
        self._together.look.forget()

    def again(self) -> None:
        self._together.look.again()

    def done(self) -> None:
        """This read has ended, which perhaps had nothing to ask for. What another asked is not
        waited for: that read may have failed."""
        if self._together.is_last(self):
            self._together.look.ask()


class Guard(Protocol):
    """Who tells whether an array is still the one of ``spec``, where that is not told by its own
    document."""

    def check(self, spec: ArraySpec) -> None:
        """Raise where it is not."""
        ...

    def look(self, spec: ArraySpec) -> Look:
        """The same, to be asked for together with what a call reads, in a remote store."""
        ...


def blame(check: Callable[[], None], error: Exception) -> None:
    """What was read makes no sense, so ``error`` says: raise where that is as it is another's by
    now, which ``check`` tells."""
    try:
        check()
    except (Conflict, NotFound) as changed:
        raise changed from error
    except StashError:
        return
