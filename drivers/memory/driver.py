"""Keys to the items of a mapping, and conditions between the threads that use it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tensorstash.cached import PerProcess
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
from tensorstash.drivers.thread_lock import ThreadLocks, ThreadTurn
from tensorstash.errors import Conflict, DriverError, Invalid, StashError, Unsupported, counted

_PICKLE_LIMIT = 1 << 20
_IMAGE = os.urandom(8)  # with the process number: tells this process from any other

_stores: dict[str, MutableMapping[str, Any]] = {}


class _Process:
    """What one process uses mappings under."""

    def __init__(self) -> None:
        self.guard = threading.RLock()  # a mapping of the user's may itself use this driver
        self.guards: dict[int, Any] = {}  # of mappings that are no dict, by their id


_processes = PerProcess(_Process)
_locks = ThreadLocks()


class _Short(bytes):
    """A value of 0 or 1 bytes. Python shares plain ones, so versions would look alike."""

    __slots__ = ()


_STORED = {bytes, _Short, type(None)}


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


class _Digest(bytes):
    """A tag that follows from the bytes, where the mapping may make new ones at each read. It
    keeps none of them alive, and notices what their owner changes in place."""

    __slots__ = ()


def named(name: str) -> MutableMapping[str, Any]:
    """The store that this process has under ``name``, empty if it is new."""
    return _stores.setdefault(name, {})


def _digest(value: Buffer) -> _Digest:
    return _Digest(hashlib.blake2b(value, digest_size=16).digest())


class MemoryDriver(Driver):
    """Keys are keys of a mapping (default: a new ``dict``), values ``bytes``.

    Conditions hold between the threads of this process that use this driver. A pickle
    carries up to 1 MiB of contents: elsewhere it is a copy, in this process a named store
    stays itself.
    """

    scheme = "memory"
    capabilities = Capabilities(shared=False, local=True, gap_bytes=0, maps=True, folders=False)

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
        self._plain = type(self._mapping) is dict
        if not self._plain:
            self.capabilities = replace(
                self.capabilities,
                content_tags=True,
                one_thread=_bound(self._mapping, self._guard()),
            )

    @property
    def url(self) -> str:
        """``memory://name``; a mapping of the user's has no name."""
        return "memory://" + f"{self._name or ''}/{self._prefix}".strip("/")

    # -- reading ------------------------------------------------------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The stored object itself, or a view of bytes ``span`` of it."""
        value = self._value(key)
        if type(value) is not bytes:
            if value is None:
                return None
            value = _buffer(value, key)
        return value if span is None else pick(value, span)

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or a view of bytes ``span`` of it) and its tag."""
        value = self._value(key)
        return None if value is None else (pick(_buffer(value, key), span), self._tag(value, key))

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Views of parts of one stored object."""
        value = self._value(key)
        found = None if value is None else self._tag(value, key)
        if tag is not None and found != tag:
            raise Changed(key)
        if found is None:
            return None
        whole = _buffer(value, key)
        return [pick(whole, span) for span in spans], found

    def map(self, key: str) -> memoryview | None:
        """The stored object's own memory."""
        value = self._value(key)
        return None if value is None else memoryview(_buffer(value, key)).toreadonly()

    def in_memory(self, keys: Sequence[str]) -> Sequence[bytes | None] | None:
        """The stored objects; not of mappings that are no dict, nor of what was put there by
        others and is no ``bytes``."""
        if type(self) is not MemoryDriver or not self._plain:
            return None
        get, prefix = self._mapping.get, self._prefix
        found = [get(prefix + key) for key in keys if check_key(key)]
        return found if {*map(type, found)} <= _STORED else None

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored object."""
        value = self._value(key)
        return None if value is None else self._tag(value, key)

    def is_lasting(self, tag: Tag) -> bool:
        """Of a ``dict``: the tag keeps the object, which is put but once."""
        return self._plain

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store a copy of ``value``, whose memory the caller may reuse."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        place = self._prefix + check_key(key)
        # Copied even when it is bytes: the same object put again must be another version.
        copy = bytes(memoryview(value)) if len(value) > 1 or not self._plain else _Short(value)
        tag = self._tag(copy, key)
        with turn(self._guard()):
            if if_absent or if_tag is not None:
                current = self._value(key)
                if current is None:
                    holds = if_absent
                else:
                    holds = not if_absent and self._tag(current, key) == if_tag
                if not holds:
                    raise Conflict(
                        f"{key!r} was written by someone else first; read it again", key=key
                    )
            try:
                self._mapping[place] = copy
            except Exception as error:
                raise self._failed("store", key, error) from error
        return tag

    def delete(self, key: str) -> None:
        """Remove the value; no error when absent."""
        place = self._prefix + check_key(key)
        with turn(self._guard()):
            self._drop(place, key)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every key that starts with ``prefix``."""
        with turn(self._guard()):
            for place in self._places(prefix):
                self._drop(place, prefix)

    def rename(self, prefix: str, target: Driver, target_prefix: str) -> bool:
        """Of a ``dict`` to a ``dict``: all keys are there before the first one goes, documents
        before what they show, so that no reader takes what is gone for fill."""
        if not isinstance(target, MemoryDriver) or not (self._plain and target._plain):
            return False
        skip = len(self._prefix) + len(check_prefix(prefix))
        with turn(self._guard()):
            places = self._places(prefix)
            if not places or target._places(target_prefix):
                return False
            above = target._prefix + target_prefix
            if target._mapping is self._mapping and above.startswith(self._prefix + prefix):
                return False
            moved = {above + place[skip:]: self._mapping[place] for place in places}
            target._mapping.update(moved)
            for place in sorted(places, key=_shows_nothing):
                self._mapping.pop(place, None)
        return True

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
        name = id(self._mapping), self._prefix + check_key(key)
        return _locks.hold(key, self.url, timeout, name=name)

    # -- within -------------------------------------------------------------------

    def _places(self, prefix: str) -> Sequence[str]:
        check_prefix(prefix)
        start = self._prefix + prefix
        with turn(self._guard()):
            try:
                places = [*self._mapping] if self._plain else _texts(self._mapping.keys())
                return [place for place in places if place.startswith(start)]
            except Exception as error:
                raise self._failed("list", prefix, error) from error

    def _drop(self, place: str, key: str) -> None:
        try:
            if self._plain:
                self._mapping.pop(place, None)
            else:
                with suppress(KeyError):
                    del self._mapping[place]
        except Exception as error:
            raise self._failed("delete", key, error) from error

    def _value(self, key: str) -> Any:
        place = self._prefix + check_key(key)
        try:
            if self._plain:
                return self._mapping.get(place)
            with turn(self._guard()):
                return self._mapping.get(place)
        except Exception as error:
            raise self._failed("read", key, error) from error

    def _tag(self, value: Any, key: str) -> Tag:
        return _Version(value) if self._plain else _digest(_buffer(value, key))

    def _guard(self) -> Any:
        """The lock of all steps that must not overlap; of a mapping that is no dict, also of
        those that read: few can be used by two threads at once."""
        process = _processes.here()
        if self._plain:
            return process.guard
        place = id(self._mapping)
        return process.guards.get(place) or process.guards.setdefault(place, threading.RLock())

    def _failed(self, verb: str, key: str, error: Exception) -> Exception:
        """A mapping of the user's may raise anything; absence is a ``KeyError`` to it."""
        if isinstance(error, StashError):
            return error
        advice = "see that exception"
        if self.capabilities.one_thread:
            advice = (
                "only the thread that opened it may use it: use it there, without a Loader's "
                "threads, or give one that every thread may use; " + advice
            )
        return DriverError(
            f"cannot {verb} {key!r}: the {type(self._mapping).__name__} that holds it raised "
            f"{type(error).__name__}; {advice}",
            key=key,
            driver=self.scheme,
        )

    def __reduce__(self) -> tuple[Callable[..., MemoryDriver], tuple[Any, ...]]:
        """The contents travel along; :class:`Unsupported` beyond 1 MiB."""
        places = self._places("")
        contents = {}
        for place in places:
            value = self._value(place[len(self._prefix) :])
            if value is not None:  # else deleted meanwhile
                contents[place] = as_bytes(value, place)
        size = sum(map(len, contents.values()))
        if size > _PICKLE_LIMIT:
            raise Unsupported(
                f"{self.url} holds {counted(size, 'byte')}, too many to copy into another process; "
                "save it to a file, or start workers with fork"
            )
        return _restore, (os.getpid(), _IMAGE, self._name, self._prefix, contents, self._plain)


def _buffer(value: object, key: str) -> Buffer:
    """A stored object, put there by us or by the mapping's owner, as bytes."""
    if isinstance(value, bytes | bytearray):
        return value
    return as_bytes(value, key)


def _shows_nothing(place: str) -> bool:
    """Whether ``place`` is no document of metadata."""
    return not place.rpartition("/")[2].startswith((".z", "zarr.json"))


def _texts(keys: Iterable[Any]) -> list[str]:
    """Keys as texts: ``dbm`` answers the bytes of them. Others are none of ours."""
    texts = []
    for key in keys:
        with suppress(UnicodeDecodeError):
            text = key.decode() if isinstance(key, bytes) else key
            if isinstance(text, str):
                texts.append(text)
    return texts


def _bound(mapping: MutableMapping[str, Any], guard: Any) -> bool:
    """Whether a mapping refuses every thread but the one that opened it, as SQLite's do."""
    if isinstance(mapping, UserDict):
        return False
    refused: list[bool] = []

    def ask() -> bool:
        try:
            with turn(guard):
                mapping.get("zarr.json")
        except Exception:
            return True
        return False

    other = threading.Thread(target=lambda: refused.append(ask()), name="tensorstash-ask")
    try:
        other.start()
    except RuntimeError:  # no thread can be started: nor will others be
        return True
    other.join()
    return refused == [True] and not ask()


def _restore(
    pid: int,
    image: bytes,
    name: str | None,
    prefix: str,
    contents: dict[str, bytes],
    plain: bool = True,
) -> MemoryDriver:
    # Elsewhere the contents stay apart from a store of that name there: merging would bring
    # back deleted keys and keep outdated ones.
    mapping: MutableMapping[str, Any] = contents if plain else UserDict(contents)
    if name is not None and (pid, image) == (os.getpid(), _IMAGE):
        mapping = _stores.setdefault(name, mapping)
    return MemoryDriver(mapping, name=name, prefix=prefix)
