"""Values in this process' memory: ``memory://name``, or a ``dict`` of yours.

Named stores live until the process ends or their keys are deleted, and nest like paths:
``memory://run/raw`` is the part of ``memory://run`` below ``raw/``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Driver,
    Span,
    Tag,
    as_bytes,
    check_key,
    check_prefix,
    pick,
    turn,
)
from tensorstash.drivers.thread_lock import ThreadTurn
from tensorstash.errors import Conflict, DriverError, Invalid, StashError, Unsupported

_PICKLE_LIMIT = 1 << 20
_IMAGE = os.urandom(8)  # with the process number: tells this process from any other

_stores: dict[str, MutableMapping[str, Any]] = {}


class _Process:
    """Locks of one process. A forked child starts afresh: what its parent's other threads
    held at the fork would never be released there."""

    def __init__(self) -> None:
        self.guard = threading.RLock()  # a mapping of the user's may itself use this driver
        self.locks: WeakValueDictionary[tuple[int, str], threading.Lock] = WeakValueDictionary()


_processes: dict[int, _Process] = {}


def _process() -> _Process:
    pid = os.getpid()
    # setdefault is atomic: two first users agree on one.
    return _processes.get(pid) or _processes.setdefault(pid, _Process())


class _Short(bytes):
    """A value of 0 or 1 bytes. Python shares plain ones, so versions would look alike."""

    __slots__ = ()


class _Version:
    """A tag: equal only for one and the same stored object, which it keeps alive, so that
    no later object can be taken for it."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Version) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def connect(rest: str, *, mapping: MutableMapping[str, Any] | None = None) -> MemoryDriver:
    """The process-wide store that ``rest`` names up to its first ``/``, and below it the
    part that the remainder names; or the driver of a ``mapping`` of the user's."""
    if mapping is not None:
        return MemoryDriver(mapping)
    name, _, inner = rest.strip("/").partition("/")
    if inner:
        check_key(inner)
        inner += "/"
    return MemoryDriver(_stores.setdefault(name, {}), name=name, prefix=inner)


class MemoryDriver(Driver):
    """Keys are keys of a mapping (default: a new ``dict``), values ``bytes``.

    Conditions hold between the threads of this process that use this driver. A pickle
    carries up to 1 MiB of contents: elsewhere it is a copy, in this process a named store
    stays itself.
    """

    scheme = "memory"
    capabilities = Capabilities(shared=False, local=True, gap_bytes=0, maps=True)

    def __init__(
        self,
        mapping: MutableMapping[str, Any] | None = None,
        *,
        name: str | None = None,
        prefix: str = "",
    ) -> None:
        """Use ``mapping`` itself, empty or not; ``prefix`` (empty or ending in ``/``) goes
        before every key."""
        self._mapping: MutableMapping[str, Any] = {} if mapping is None else mapping
        self._name = name
        self._prefix = prefix

    @property
    def url(self) -> str:
        """``memory://name``; a mapping of the user's has no name."""
        return "memory://" + f"{self._name or ''}/{self._prefix}".strip("/")

    # -- reading ------------------------------------------------------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The stored object itself, or a view of bytes ``span`` of it."""
        try:
            value = self._mapping.get(self._prefix + check_key(key))
        except Exception as error:
            raise self._failed("read", key, error) from error
        if type(value) is not bytes:
            if value is None:
                return None
            value = _buffer(value, key)
        return value if span is None else pick(value, span)

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or a view of bytes ``span`` of it) and its tag."""
        value = self._value(key)
        return None if value is None else (pick(_buffer(value, key), span), _Version(value))

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Views of parts of one stored object."""
        value = self._value(key)
        if tag is not None and (value is None or _Version(value) != tag):
            raise Changed(key)
        if value is None:
            return None
        whole = _buffer(value, key)
        return [pick(whole, span) for span in spans], _Version(value)

    def map(self, key: str) -> memoryview | None:
        """The stored object's own memory."""
        value = self._value(key)
        return None if value is None else memoryview(_buffer(value, key)).toreadonly()

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored object."""
        value = self._value(key)
        return None if value is None else _Version(value)

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store a copy of ``value``, whose memory the caller may reuse."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        place = self._prefix + check_key(key)
        # Copied even when it is bytes: the same object put again must be another version.
        copy = bytes(memoryview(value)) if len(value) > 1 else _Short(value)
        with turn(_process().guard):
            if if_absent or if_tag is not None:
                current = self._value(key)
                holds = current is None if if_absent else _Version(current) == if_tag
                if not holds:
                    raise Conflict(
                        f"{key!r} was written by someone else first; read it again", key=key
                    )
            try:
                self._mapping[place] = copy
            except Exception as error:
                raise self._failed("store", key, error) from error
        return _Version(copy)

    def delete(self, key: str) -> None:
        """Remove the value; no error when absent."""
        place = self._prefix + check_key(key)
        with turn(_process().guard):
            self._drop(place, key)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        with turn(_process().guard):
            for place in self._places(prefix):
                self._drop(place, prefix)

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with ``prefix``, as of this call."""
        skip = len(self._prefix)
        return (place[skip:] for place in self._places(prefix))

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``; looks at every key of the mapping once."""
        skip = len(self._prefix) + len(prefix)
        keys: list[str] = []
        folders: set[str] = set()
        for place in self._places(prefix):
            name, slash, _ = place[skip:].partition("/")
            if slash:
                folders.add(name)
            else:
                keys.append(name)
        return sorted(keys), sorted(folders)

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> ThreadTurn:
        """Hold the name ``key`` alone among the threads of this process."""
        process, place = _process(), (id(self._mapping), self._prefix + check_key(key))
        # Weakly kept: a lock is there while someone holds it or waits for it.
        with turn(process.guard):
            lock = process.locks.get(place) or threading.Lock()
            process.locks[place] = lock
        return ThreadTurn(lock, key, self.url, timeout)

    # -- within -------------------------------------------------------------------

    def _places(self, prefix: str) -> Sequence[str]:
        check_prefix(prefix)
        start = self._prefix + prefix
        with turn(_process().guard):
            try:
                return [place for place in [*self._mapping] if place.startswith(start)]
            except Exception as error:
                raise self._failed("list", prefix, error) from error

    def _drop(self, place: str, key: str) -> None:
        try:
            self._mapping.pop(place, None)
        except Exception as error:
            raise self._failed("delete", key, error) from error

    def _value(self, key: str) -> Any:
        try:
            return self._mapping.get(self._prefix + check_key(key))
        except Exception as error:
            raise self._failed("read", key, error) from error

    def _failed(self, verb: str, key: str, error: Exception) -> Exception:
        """A mapping of the user's may raise anything; absence is a ``KeyError`` to it."""
        if isinstance(error, StashError):
            return error
        return DriverError(
            f"cannot {verb} {key!r}: the {type(self._mapping).__name__} that holds it raised "
            f"{type(error).__name__}; see that exception",
            key=key,
            driver=self.scheme,
        )

    def __reduce__(self) -> tuple[Callable[..., MemoryDriver], tuple[Any, ...]]:
        """The contents travel along; :class:`Unsupported` beyond 1 MiB."""
        places = self._places("")
        contents = {place: as_bytes(self._mapping[place], place) for place in places}
        size = sum(map(len, contents.values()))
        if size > _PICKLE_LIMIT:
            raise Unsupported(
                f"{self.url} holds {size} bytes, too many to copy into another process; "
                "save it to a file, or start workers with fork"
            )
        return _restore, (os.getpid(), _IMAGE, self._name, self._prefix, contents)


def _buffer(value: object, key: str) -> Buffer:
    """A stored object, put there by us or by the mapping's owner, as bytes."""
    if isinstance(value, bytes | bytearray):
        return value
    return as_bytes(value, key)


def _restore(
    pid: int, image: bytes, name: str | None, prefix: str, contents: dict[str, bytes]
) -> MemoryDriver:
    # Elsewhere the contents stay apart from a store of that name there: merging would bring
    # back deleted keys and keep outdated ones.
    mapping: MutableMapping[str, Any] = contents
    if name is not None and (pid, image) == (os.getpid(), _IMAGE):
        mapping = _stores.setdefault(name, mapping)
    return MemoryDriver(mapping, name=name, prefix=prefix)
