"""Every error tensorstash raises, grouped by what the caller would do about it.

::

    StashError
    ├── NotFound          (KeyError, FileNotFoundError)  nothing is stored there
    ├── AlreadyExists     (FileExistsError)              something is stored there
    ├── Invalid           (ValueError)                   fix the call
    │   └── InvalidSelection (IndexError)                fix the index
    ├── Unsupported       (NotImplementedError)          right, but not here: another driver, ...
    ├── ReadOnly          (PermissionError)              open with a mode that writes
    ├── Closed            (ValueError)                   open again
    ├── Conflict                                         someone else wrote first: read again, retry
    ├── Corrupt                                          stored bytes are damaged
    ├── NoMemory          (MemoryError)                  too large for this machine: select less
    └── DriverError       (OSError)                      the backend failed
        ├── Denied        (PermissionError)              fix the credentials, or ask for the right
        ├── NoSpace                                      free space, or raise the quota
        ├── TimedOut      (TimeoutError)                 too slow, or locked: wait, raise the limit
        └── Unavailable   (ConnectionError)              it cannot be reached: check it, try again

:class:`StashPerformanceWarning` is no error: what a program does could cost much less.

Every message is one line, names the thing and says what to do next. Each class is
also a builtin where one fits, so ordinary ``except KeyError`` works.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

__all__ = [
    "AlreadyExists",
    "Closed",
    "Conflict",
    "Corrupt",
    "Denied",
    "DriverError",
    "Invalid",
    "InvalidSelection",
    "NoMemory",
    "NoSpace",
    "NotFound",
    "ReadOnly",
    "StashError",
    "StashPerformanceWarning",
    "TimedOut",
    "Unavailable",
    "Unsupported",
]


_SHOWN = 400
"""Characters that are shown of either end of a line: what a message quotes may have any length."""

_LISTED = 20


def _cut(line: str) -> str:
    return line if len(line) <= 2 * _SHOWN else f"{line[:_SHOWN]} ... {line[-_SHOWN:]}"


def counted(count: int, one: str, many: str = "") -> str:
    """A count and what it counts, for messages: ``"1 axis"``, ``"2 axes"``. ``many``: of more
    than one, where that is not ``one`` and an ``s``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def listed(names: Iterable[str]) -> str:
    """``names`` for a message: the first twenty, each cut to fit."""
    first = [short(name) for name in islice(names, _LISTED + 1)]
    more = ", ..." if len(first) > _LISTED else ""
    return (", ".join(first[:_LISTED]) or "none") + more


def short(value: Any) -> str:
    """``repr(value)``, on one line and cut to fit a message."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:_SHOWN]  # cut anyway, and stored ones may be of any length
    try:
        text = " ".join(repr(value)[:_SHOWN].split())
    except ValueError:  # an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    except RecursionError:
        text = f"<{type(value).__name__} too deep to show>"
    return text if len(text) <= 60 else f"{text[:57]}..."


class StashError(Exception):
    """The base class of all errors that tensorstash raises.

    >>> try:
    ...     stash.open({})
    ... except stash.StashError as error:
    ...     print(type(error).__name__)
    NotFound
    """

    def __str__(self) -> str:
        # KeyError and OSError format their arguments in ways that hide a plain sentence.
        text = str(self.args[0]) if self.args else self.__class__.__name__
        if len(text) <= 2 * _SHOWN:
            return text
        # One line, but for those of a worker's traceback, which torch adds.
        return "\n".join(map(_cut, text.split("\n")))


class NotFound(StashError, KeyError, FileNotFoundError):
    """Nothing is stored under that name. Raised by opening, by ``g[name]``, ``attrs[name]``, and by
    calls on a handle whose array was deleted."""


class AlreadyExists(StashError, FileExistsError):
    """Something is stored under that name already. Raised by creating without ``overwrite``."""


class Invalid(StashError, ValueError):
    """An argument or a metadata document is wrong; the message names it and what would be right."""


class InvalidSelection(Invalid, IndexError):
    """An index does not fit the array; raised wherever NumPy would raise ``IndexError``."""


class Unsupported(StashError, NotImplementedError):
    """The call is valid, but this driver, codec or format does not offer it."""


class ReadOnly(StashError, PermissionError):
    """A write through a handle that was opened for reading; open it with ``mode="r+"``."""


class Closed(StashError, ValueError):
    """The handle or writer was closed; open it again."""


class Conflict(StashError):
    """Another writer was first: what is stored is not what this call expected.

    Raised too by handles on an array that was replaced by another. ``key`` names the stored object,
    where that is known.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), {"key": self.key})


class Corrupt(StashError):
    """Stored bytes are not what was written.

    ``key`` names the stored object, ``chunk`` the chunk's index in the array's grid of chunks
    (the shard's in that of shards, where it is the shard's own index that is damaged; ``None``
    for metadata), ``codec`` the codec that noticed.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str = "",
        chunk: tuple[int, ...] | None = None,
        codec: str = "",
    ) -> None:
        super().__init__(message)
        self.key = key
        self.chunk = chunk
        self.codec = codec

    def __reduce__(self) -> tuple[object, ...]:
        fields = {"key": self.key, "chunk": self.chunk, "codec": self.codec}
        return _rebuild, (type(self), str(self), fields)


class NoMemory(StashError, MemoryError):
    """The call needs more memory than this machine has. An append or a resize has changed nothing;
    a write may have stored some of its chunks."""


class DriverError(StashError, OSError):
    """The storage failed: a disk, a server, a network. Never means that nothing is stored.

    ``key`` names the object that was asked for, ``driver`` the driver, where they are known.
    """

    def __init__(self, message: str, *, key: str = "", driver: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.driver = driver

    def __reduce__(self) -> tuple[object, ...]:
        fields = {"key": self.key, "driver": self.driver}
        return _rebuild, (type(self), str(self), fields, {"errno": self.errno})


class Denied(DriverError, PermissionError):
    """The server or file system refuses these credentials, this user, or this use."""


class NoSpace(DriverError):
    """There is no space left: on the disk, in memory or in the quota. Nothing was stored."""


class TimedOut(DriverError, TimeoutError):
    """No reply within the time limit, or another process held a lock for longer than this call was
    to wait; the message names the holder, as far as it is known."""


class Unavailable(DriverError, ConnectionError):
    """The server could not be reached, or failed at every retry."""


class StashPerformanceWarning(UserWarning):
    """A program works as it is meant to, but in a way that costs many times what another would,
    which the message names. Issued once a process, and filtered like any other warning.

    >>> import warnings
    >>> warnings.simplefilter("ignore", stash.errors.StashPerformanceWarning)
    """


def _rebuild(
    cls: type[StashError],
    message: str,
    fields: dict[str, object],
    attributes: dict[str, object] | None = None,
) -> StashError:
    """Errors cross process borders (DataLoader workers): keep their fields when unpickled."""
    error = cls(message, **fields)
    for name, value in (attributes or {}).items():
        setattr(error, name, value)
    return error
