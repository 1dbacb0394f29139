"""Keys to the keys of a zarr store, which runs in zarr's own event loop."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Check,
    Driver,
    Request,
    Span,
    Tag,
    check_key,
    check_prefix,
    check_size,
    pick,
)
from tensorstash.drivers.failures import failure, is_absence
from tensorstash.drivers.file import foreign
from tensorstash.drivers.thread_lock import ThreadLocks
from tensorstash.drivers.window import Window
from tensorstash.errors import DriverError, Invalid, StashError, Unsupported

_T = TypeVar("_T")
Answer: TypeAlias = tuple[Buffer, Tag] | None
Connection: TypeAlias = Callable[[], Mapping[str, Any]]

_HERE = {"MemoryStore", "LocalStore", "ZipStore"}
"""Stores without requests, and without secrets."""
_PICKLE_LIMIT = 1 << 20

_MUCH = 64 << 20


class ZarrDriver(Driver):
    """Keys are keys of a zarr store. What a put promises is up to the store.

    The store runs in zarr's own event loop, in which others may be using it. In a forked child
    a copy of it is used. It is pickled where it is one of zarr's own that hold no secrets, and
    else made anew by ``connection``. With ``unsafe``, ``append`` and ``resize`` exclude the
    threads of this process only.
    """

    scheme = "zarr"

    def __init__(
        self,
        store: Store | None,
        prefix: str = "",
        connection: Connection | None = None,
        unsafe: bool = False,
    ) -> None:
        """``prefix`` (empty or ending in ``/``) goes before every key."""
        self._pid = os.getpid()
        self._prefix = prefix
        self._connection = connection
        self._unsafe = unsafe
        self._locks = ThreadLocks()
        given: Any = self._another() if store is None else store
        self._folder = foreign.of_store(given, prefix)
        self._stores: dict[int, Store] = {self._pid: given}
        self._opened: set[int] = set()
        here = type(given).__name__ in _HERE
        self.capabilities = Capabilities(
            writable=given.supports_writes and not given.read_only,
            conditional_put=False,
            locks=False,
            shared=type(given).__name__ != "MemoryStore",
            local=here,
            concurrency=1 if here else 16,
            content_tags=True,
            lists=given.supports_listing,
        )
        self._window: Window[Request, Answer] = Window(self.capabilities.concurrency)

    @property
    def url(self) -> str:
        """``zarr://`` with the kind of the store: its own name for itself may hold a secret."""
        kind = type(self._stores[self._pid]).__name__
        return f"zarr://{kind}/{self._prefix}".rstrip("/")

    @property
    def store(self) -> Store:
        """The store of this process."""
        pid = os.getpid()
        if pid not in self._stores:
            self._stores.setdefault(pid, self._another())
        store = self._stores[pid]
        if pid not in self._opened:
            if not store._is_open:
                with suppress(ValueError):  # another thread was first
                    sync(store._ensure_open())
            self._opened.add(pid)
        return store

    # -- reading ------------------------------------------------------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The value, or bytes ``span`` of it."""
        check_key(key)
        span = None if span is None else span.bounded
        if span is None or span == (0, None):
            return self._ask("get", key, self._get(key, None))
        much = span.stop is not None and not 0 < span.stop - span.start < _MUCH
        if span.start < 0 or much:
            # Stores differ in what they make of a suffix that is longer than the value, and some
            # take memory for all that is asked for.
            size = self._size(key)
            if size is None:
                return None
            start, stop = span.resolve(size)
            if start == stop:
                return b""
            span = Span(start, stop)
        wanted = (
            OffsetByteRequest(span.start)
            if span.stop is None
            else RangeByteRequest(span.start, span.stop)
        )
        try:
            return self._ask("get", key, self._get(key, wanted))
        except StashError:
            # Some refuse a range that begins beyond the end.
            size = self._size(key)
            if size is None or span.start < size:
                raise
            return b""

    def get_tagged(self, key: str, span: Span | None = None) -> Answer:
        """The value and its tag; where only the bytes tell the version, all of them are read."""
        fixed = self._fixed()
        value = self.get(key, span if fixed is not None else None)
        if value is None:
            return None
        return (value, fixed) if fixed is not None else (pick(value, span), _digest(value))

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """Many at once, where the store makes requests."""
        window: Window[Request, Buffer | None] = self._window  # type: ignore[assignment]
        return window.each(self._get_plain, requests)

    def get_many_tagged(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """Many at once, where the store makes requests."""
        return self._window.each(self._get_unless, requests)

    def _get_plain(self, request: Request) -> Buffer | None:
        key, span, _, most = request
        return self.get(key, span) if span is not None or most is None else self._whole(key, most)

    def _get_unless(self, request: Request) -> Answer:
        key, span, unless, most = request
        if unless is not None and self._fixed() == unless:
            return None if self._size(check_key(key)) is None else (b"", unless)
        if span is None and most is not None:
            value = self._whole(key, most)
            found = None if value is None else (value, self._fixed() or _digest(value))
        else:
            found = self.get_tagged(key, span)
        return (b"", unless) if found is not None and found[1] == unless else found

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one value, which is read whole where it may change."""
        if self._fixed() is not None:
            return super().get_ranges(key, spans, tag)
        found = self.get_tagged(key)
        if found is None or (tag is not None and found[1] != tag):
            if tag is not None:
                raise Changed(key)
            return None
        return [pick(found[0], span) for span in spans], found[1]

    def tag(self, key: str) -> Tag | None:
        """What names the stored version."""
        check_key(key)
        fixed = self._fixed()
        if fixed is not None:
            return None if self._size(key) is None else fixed
        found = self.get_tagged(key)
        return None if found is None else found[1]

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value``. Conditions are refused: a store's own are not told from success."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        check_key(key)
        if if_absent or if_tag is not None:
            raise Unsupported(
                f"{self.url} cannot store {key!r} on a condition; use file, s3 or redis for that"
            )
        self._writable("put", key)
        if self._folder is not None:
            self._folder.clear_for(key)
        data = bytes(value)
        for attempt in range(_TRIES):
            # A folder may go between its making and its use, when others delete it.
            if self._ask("put", key, self._set(key, data), last=attempt == _TRIES - 1):
                break
        return _digest(data)

    def delete(self, key: str) -> None:
        """Remove the value; no error when absent."""
        check_key(key)
        self._writable("delete", key)
        if self._folder is not None:
            self._folder.delete(key)
        else:
            self._ask("delete", key, self._delete(key))

    def delete_prefix(self, prefix: str) -> None:
        """Remove every key below ``prefix``, and the folders that held them."""
        self._writable("delete", check_prefix(prefix))
        if self._folder is not None:
            self._folder.delete_prefix(prefix)
        elif keys := [*self.list(prefix)]:
            self.delete_many(keys)
            with suppress(DriverError):  # where folders are left, unless someone stores again
                self._ask("delete", prefix, self.store.delete_dir(self._prefix + prefix))

    def remove_link(self, prefix: str) -> bool:
        """Where the store is a folder, remove the symbolic link that ``prefix`` is."""
        return self._folder is not None and self._folder.remove_link(prefix)

    def linked(self, prefix: str) -> str | None:
        """Where the store is a folder, the first symbolic link on the way to ``prefix``."""
        return None if self._folder is None else self._folder.linked(prefix)

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with ``prefix``, as of this call."""
        check_prefix(prefix)
        cut = len(self._prefix)
        found = self._ask("list", prefix, self._listed(self.store.list_prefix, prefix)) or []
        return (key[cut:] for key in found if key.startswith(self._prefix + prefix))

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``. A store does not tell keys from folders, so each name
        is asked for; one that is both counts as a key."""
        check_prefix(prefix)
        names = self._ask("list", prefix, self._listed(self.store.list_dir, prefix)) or []
        known = {name.strip("/") for name in names} - {""}
        keys = {name for name in known if self._ask("exists", name, self._exists(prefix + name))}
        return sorted(keys), sorted(known - keys)

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        """With ``unsafe``: alone among the threads of this process. Else :class:`Unsupported`."""
        return self._locks.hold_unsafe(key, self.url, self._unsafe, timeout)

    def close(self) -> None:
        """Let go of threads. The store is its owner's, and stays open."""
        self._window.close()

    # -- within -------------------------------------------------------------------

    def _whole(self, key: str, most: int) -> Buffer | None:
        """A value of at most ``most`` bytes. Files and members of a zip are read no further; what
        other stores make of a range differs, so their values are looked at when they are here."""
        files = type(self.store).__name__ in ("LocalStore", "ZipStore")
        wanted = RangeByteRequest(0, most + 1) if files else None
        value = self._ask("get", check_key(key), self._get(key, wanted))
        if value is not None:
            check_size(key, len(value), most)
        return value

    async def _get(self, key: str, wanted: ByteRequest | None) -> bytes | None:
        found = await self.store.get(self._prefix + key, default_buffer_prototype(), wanted)
        return None if found is None else found.to_bytes()

    async def _set(self, key: str, data: bytes) -> bool:
        await self.store.set(self._prefix + key, cpu.Buffer.from_bytes(data))
        return True

    async def _exists(self, key: str) -> bool:
        return await self.store.exists(self._prefix + key)

    async def _delete(self, key: str) -> None:
        if await self._exists(key):  # of a folder some stores would remove all that is in it
            await self.store.delete(self._prefix + key)

    async def _listed(self, names: Callable[[str], Any], prefix: str) -> Sequence[str]:
        return [name async for name in names(self._prefix + prefix)]

    def _size(self, key: str) -> int | None:
        return self._ask("size", key, self.store.getsize(self._prefix + key))

    def _ask(
        self, verb: str, key: str, work: Coroutine[Any, Any, _T], last: bool = True
    ) -> _T | None:
        """What the store returns; ``None`` when nothing is stored there for certain."""
        try:
            _ = self.store  # opened from here: the loop in which work runs cannot wait for that
            return sync(work)
        except Exception as error:
            if is_absence(error) and (verb != "put" or not last):
                return None
            if verb == "put" and not last and isinstance(error, FileExistsError):
                return None  # so `Path.mkdir` calls a folder that went just then
            raise failure(verb, f"{self.url}/{key}", key, self.scheme, error) from error

    def _fixed(self) -> Tag | None:
        """The one version that the store shows, if it is one that never changes."""
        store: Any = self.store
        kind = type(store).__name__
        if not store.read_only:
            return None
        if kind == "IcechunkStore":
            return ("snapshot", store.session.snapshot_id)
        if kind == "ZipStore" and store._is_open:
            found = os.fstat(store._zf.fp.fileno())
            return ("zip", found.st_ino, found.st_mtime_ns, found.st_size)
        return None

    def _writable(self, verb: str, key: str) -> None:
        if not self.capabilities.writable:
            raise Unsupported(f"cannot {verb} {key!r}: {self.url} is read only; copy it to write")

    def _another(self) -> Store:
        """The store for this process, where it is another than the one it was given in."""
        if self._connection is not None:
            found = self._connection()
            if not isinstance(found, Mapping) or not isinstance(found.get("store"), Store):
                raise Invalid("connection returns {'store': a zarr store}, nothing else")
            return found["store"]  # type: ignore[no-any-return]
        given = self._stores[self._pid]
        if type(given).__name__ == "MemoryStore":
            return given  # the child's copy of the parent's memory
        if type(given).__name__ == "ZipStore" and not given.read_only:
            raise Unsupported("a zip that is being written cannot be written by a child as well")
        return pickle.loads(pickle.dumps(given))  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        """:class:`Unsupported` where the store may hold secrets, or more than 1 MiB."""
        if self._connection is not None:
            return ZarrDriver, (None, self._prefix, self._connection, self._unsafe)
        if type(self.store).__name__ not in _HERE or len(pickle.dumps(self.store)) > _PICKLE_LIMIT:
            raise Unsupported(
                f"{self.url} may hold secrets or much data, and is not pickled; give the option "
                "connection, a function that returns {'store': ...} in each process"
            )
        return ZarrDriver, (self.store, self._prefix, None, self._unsafe)


_TRIES = 20


def _digest(value: Buffer) -> Tag:
    return blake2b(value, digest_size=20).hexdigest()
