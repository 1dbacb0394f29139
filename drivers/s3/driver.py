"""The driver's contract, carried out by requests in the event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Check,
    Driver,
    Put,
    Request,
    Span,
    Tag,
    Traffic,
    check_prefix,
)
from tensorstash.drivers import loop
from tensorstash.drivers.s3 import listing, lock, pool
from tensorstash.drivers.s3.client import Found, Page
from tensorstash.drivers.s3.keys import HIDDEN, is_key, is_lock, lock_place, owned
from tensorstash.drivers.s3.options import Limits, Settings
from tensorstash.drivers.s3.requests import Requests
from tensorstash.errors import Conflict, Invalid, Unsupported, counted

_GAP = 64 << 10
# Of 64 requests that are under way together, one more takes 20 ms / 64 and 0.3 ms of CPU, which at
# 100 MB/s is worth 60 KB: measured, see docs/decisions/0009.
_LARGEST_PUT = 5 << 30
_AT_ONCE = 1000  # keys of one delete request
_LIMITS = Limits()

_T = TypeVar("_T")

Connection = Callable[[], Mapping[str, Any]]


class S3Driver(Driver):
    """Keys are objects below a path of a bucket; safe between threads, processes and hosts.

    A tag is an ETag. Conditions are kept by the server, which is tried once in each process
    before they are relied on; a server that does not keep them is refused. With ``unsafe`` it
    is not tried: conditional puts compare and store in two steps, and locks exclude the
    threads of this process only, so that no more than one process may write.

    The driver keeps objects of its own in folders ``.tensorstash``, which are no keys: locks
    (``lock.py``), beside the key that they lock, and while it tries a server, one object.
    """

    scheme = "s3"

    def __init__(
        self,
        settings: Settings,
        root: str,
        *,
        connection: Connection | None = None,
        client: str = "auto",
        unsafe: bool = False,
        denied_is_absent: bool = False,
        limits: Limits = _LIMITS,
    ) -> None:
        """See :func:`tensorstash.drivers.s3.connect`. ``root`` is empty or ends in ``/``."""
        self.capabilities = Capabilities(
            conditional_put=not unsafe,
            locks=not unsafe,
            gap_bytes=_GAP,
            concurrency=settings.concurrency,
            content_tags=True,
            leases=not unsafe,
        )
        self._settings = settings
        self._root = root
        self._connection = connection
        self._client = client
        self._unsafe = unsafe
        self._denied_is_absent = denied_is_absent
        self._limits = limits
        # By process; those of ancestors stay, so that nothing of theirs is closed here.
        self._requests: dict[int, Requests] = {}

    @property
    def url(self) -> str:
        """``s3://bucket/path``."""
        return f"s3://{self._settings.bucket}/{self._root}".rstrip("/")

    @property
    def identity(self) -> str:
        """The URL, and the server that it is asked of."""
        settings = self._here().settings
        environment = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
        server = settings.endpoint or next(filter(None, environment), "")
        profile = settings.profile or os.environ.get("AWS_PROFILE") or ""
        return f"{self.url} {server} {profile}".rstrip()

    @property
    def traffic(self) -> Traffic:
        """What this driver sent and received in this process."""
        found = self._requests.get(os.getpid())
        return Traffic() if found is None else found.traffic

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) and its ETag."""
        return self._read(owned(key), span)

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """``(i, value)`` in the order of arrival, from a bounded window of requests."""
        for i, found in self.get_many_tagged(each._replace(unless=None) for each in requests):
            yield i, None if found is None else found[0]

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """``(i, (value, tag))`` in the order of arrival, from a bounded window of requests."""
        for i, found in self._found(requests):
            yield i, None if found is None else (found.data, found.etag)

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one version, one request each, all under way at once."""
        if not spans:
            raise Invalid(f"get_ranges of {key!r} without spans")
        if len(spans) == 1:
            found = self.get_tagged(key, spans[0])
            if found is None and tag is None:
                return None
            if found is None or (tag is not None and found[1] != tag):
                raise Changed(key)
            return [found[0]], found[1]
        parts: list[Buffer] = [b""] * len(spans)
        absent = 0
        for i, part in self._found(Request(key, span) for span in spans):
            if part is None:
                absent += 1
            else:
                if tag is not None and part.etag != tag:
                    raise Changed(key)
                parts[i], tag = part.data, part.etag
            if absent and tag is not None:
                raise Changed(key)
        return None if tag is None else (parts, tag)

    def tag(self, key: str) -> Tag | None:
        """The stored object's ETag, from a request for its first byte: unlike the answer to a
        HEAD, that tells a missing bucket from a missing object."""
        return self._run(self._here().tag(owned(key)))

    def modified(self, key: str) -> float | None:
        """The object's ``Last-Modified``."""
        head = self._run(self._here().head(owned(key)))
        return None if head is None else head.modified

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value`` and return its ETag."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        data = _data(value)
        if not if_absent and if_tag is None:
            return self._run(self._here().put(owned(key), data))
        return self._swap(owned(key), data, if_tag)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Unconditional puts from a bounded window; items are taken as earlier ones are
        stored."""
        here = self._here()

        async def put(item: tuple[str, bytes]) -> int:
            await here.put(*item)
            return 0

        def size_of(item: tuple[str, bytes] | int) -> int:
            return item if isinstance(item, int) else len(item[1])

        pairs = ((owned(key), _data(value)) for key, value in items)
        for _ in loop.window(put, pairs, self._settings.concurrency, size_of):
            pass

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        """Conditional and other puts from a bounded window, as :meth:`put_many`."""
        here = self._here()

        async def store(put: Put) -> str | None:
            key, data = owned(put.key), _data(put.value)
            if not put.if_absent and put.if_tag is None:
                return await here.put(key, data)
            if put.if_tag is not None and not isinstance(put.if_tag, str):
                return None  # no ETag: of another driver's value
            try:
                return await here.put_if(key, data, put.if_tag)
            except Conflict:
                return None

        def size_of(thing: Put | str | None) -> int:
            return len(thing.value) if isinstance(thing, Put) else 0

        if self._unsafe:  # compares and stores in two steps, by turns
            return super().put_each(puts)
        return loop.window(store, puts, self._settings.concurrency, size_of)

    def put_anew(self, key: str, value: Buffer, tag: Tag) -> Tag:
        """Store the same bytes in another number of parts, by which their ETag changes."""
        if self._unsafe or not isinstance(tag, str):
            return super().put_anew(key, value, tag)
        return self._run(self._here().put_anew(owned(key), _data(value), tag))

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        """1,000 keys a request where the server keeps conditions then, else one; several requests
        at once. The first of a process tries that out."""
        if self._unsafe:
            yield from super().delete_each(pairs)
            return
        here = self._here()
        kind = self._run(here.deletes())
        if kind == "none":
            raise Unsupported(f"the server of {self.url} deletes whatever the condition says")
        source = iter(pairs)
        batches = iter(lambda: [*islice(source, _AT_ONCE if kind == "many" else 1)], [])

        async def drop(batch: list[tuple[str, Tag]]) -> list[tuple[str, Tag]]:
            keys = [owned(key) for key, _ in batch]
            gone = await here.delete_if(keys, [str(tag) for _, tag in batch])
            return [pair for pair, went in zip(batch, gone, strict=True) if not went]

        for _, kept in loop.window(drop, batches, self._settings.concurrency):
            yield from kept

    def delete(self, key: str) -> None:
        """Remove the object; no error when absent."""
        self._run(self._here().delete([owned(key)]))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete 1,000 keys a request, several requests at once."""
        self._delete_all(owned(key) for key in keys)

    def delete_prefix(self, prefix: str) -> None:
        """Delete what is listed below ``prefix`` and the driver's own objects there."""
        check_prefix(prefix)
        self._delete_all(key for page in self._pages(prefix) for key, _ in page.keys)

    def prune(self, prefix: str) -> None:
        """Delete the locks below ``prefix`` that nobody holds."""
        check_prefix(prefix)
        store = lock.Store(self._read_lock, self._swap)
        for page in self._pages(prefix):
            for key, _ in page.keys:
                if is_lock(key) and lock.retire(store, key):
                    self._run(self._here().delete([key]))

    def kept(self, key: str) -> str | None:
        """The folder of locks, at any depth."""
        return HIDDEN if HIDDEN in f"{self._root}{key}".split("/") else None

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, in the server's order, a page of 1,000 at a time."""
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes stored)`` of every key below ``prefix``, from the listing alone."""
        check_prefix(prefix)
        return (one for page in self._pages(prefix) for one in page.keys if is_key(one[0]))

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        """Every wanted key below ``prefix`` with its ETag, from the listing alone."""
        for page in self._pages(check_prefix(prefix)):
            for (key, _), etag in zip(page.keys, page.etags, strict=True):
                if is_key(key) and wanted(key):
                    yield key, etag

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``: the server sums up what lies deeper."""
        check_prefix(prefix)
        skip = len(prefix)
        keys: list[str] = []
        folders: list[str] = []
        for page in self._pages(prefix, True):
            keys += [key[skip:] for key, _ in page.keys if is_key(key)]
            folders += [name[skip:-1] for name in page.folders if is_key(name[:-1])]
        return sorted(keys), sorted(folders)

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        """Hold the name ``key`` alone, by a lease that is renewed while it is held (see
        ``lock.py``); of a holder that died it is free after ``lease`` seconds."""
        place, url = lock_place(key), self.url
        if self._unsafe:
            return lock.turns((url, place), key, url, timeout)
        store = lock.Store(self._read_lock, self._swap)
        return lock.lease(store, place, key, url, self._limits.lease, timeout)

    # -- handles ------------------------------------------------------------------

    def close(self) -> None:
        """Let go of this process' connections to the bucket once they are idle."""
        found = self._requests.get(os.getpid())
        if found is not None:
            loop.current().run(found.close())

    def __reduce__(self) -> tuple[Callable[..., S3Driver], tuple[Any, ...]]:
        """Without keys: elsewhere they come from ``connection`` or the usual chain."""
        how = {
            "connection": self._connection,
            "client": self._client,
            "unsafe": self._unsafe,
            "denied_is_absent": self._denied_is_absent,
        }
        settings, limits = self._settings.without_secrets(), asdict(self._limits)
        return _restore, (self._settings.bucket, self._root, settings, limits, how)

    # -- within -------------------------------------------------------------------

    def _here(self) -> Requests:
        """This process' requests; made, and libraries imported, by the first."""
        pid = os.getpid()
        found = self._requests.get(pid)
        if found is None:
            settings = self._settings.with_connection(self._connection)
            kind = pool.choose(self._client)
            made = Requests(
                kind, settings, self._root, self.url, self._limits, self._denied_is_absent
            )
            found = self._requests.setdefault(pid, made)
        return found

    def _run(self, coro: Coroutine[Any, Any, _T]) -> _T:
        return loop.current().run(coro)

    def _found(self, requests: Iterable[Request]) -> Iterator[tuple[int, Found | None]]:
        here = self._here()

        async def get(request: Request) -> Found | None:
            key, span, unless, most = request
            unless = unless if isinstance(unless, str) else None
            return await here.get(key, span, unless, most if span is None else None)

        def size_of(thing: Request | Found | None) -> int:
            return len(thing.data) if isinstance(thing, Found) else 0

        checked = (each._replace(key=owned(each.key)) for each in requests)
        return loop.window(get, checked, self._settings.concurrency, size_of)

    def _read(self, place: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        found = self._run(self._here().get(place, span, None))
        return None if found is None else (found.data, found.etag)

    def _read_lock(self, place: str) -> tuple[Buffer, Tag] | None:
        # Whatever else may lie there, no more of it than a lock has.
        return self._read(place, Span(0, lock.LARGEST))

    def _swap(self, place: str, data: bytes, tag: Tag | None) -> str:
        """Put where the object is absent (``None``) or still ``tag``."""
        if len(data) > _LARGEST_PUT:
            raise Unsupported(
                f"{counted(len(data), 'byte')} for {place!r} are more than one conditional "
                f"put to S3 may hold "
                "(5 GiB); use smaller chunks",
            )
        here = self._here()
        if tag is not None and not isinstance(tag, str):
            raise Conflict(f"{place!r} in {self.url} has another tag: no ETag", key=place)
        if not self._unsafe:
            return self._run(here.put_if(place, data, tag))
        with lock.turns((self.url, f"{place}\0put"), place, self.url, None):
            if self._run(here.tag(place)) != tag:
                raise Conflict(
                    f"{place!r} in {self.url} was written by someone else first; read it again",
                    key=place,
                )
            return self._run(here.put(place, data))

    def _pages(self, prefix: str, folders: bool = False) -> Iterator[Page]:
        here = self._here()
        return listing.pages(
            lambda after: self._run(here.page(prefix, folders, after)), prefix, self.url
        )

    def _delete_all(self, keys: Iterator[str]) -> None:
        here = self._here()
        batches = iter(lambda: [*islice(keys, _AT_ONCE)], [])
        for _ in loop.window(here.delete, batches, self._settings.concurrency):
            pass


def _restore(
    bucket: str, root: str, settings: dict[str, Any], limits: dict[str, Any], how: dict[str, Any]
) -> S3Driver:
    return S3Driver(Settings(bucket, **settings), root, limits=Limits(**limits), **how)


def _data(value: Buffer) -> bytes:
    return value if type(value) is bytes else bytes(value)
