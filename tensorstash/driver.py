"""The driver contract: keys to bytes.

A driver stores immutable values under keys (``"c/0/1"``, ``"zarr.json"``). Five methods
are required; the others have defaults that real backends override to save round trips.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .errors import Conflict, Corrupt, Invalid, Unsupported, counted
from .limits import METADATA
from .turn import take as take
from .turn import turn as turn

REPAIR = "; restore it, or overwrite it whole"
"""How a message about a damaged value ends."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes a driver or codec hands over. Treat as read-only."""

Tag: TypeAlias = Hashable
"""Names one version of one value (an ETag, an inode and time, ...). Compare with ``==`` only."""

_HUGE = 1 << 50  # bytes; no value is as large


class Span(NamedTuple):
    """Bytes ``start:stop`` of a value, clipped to it. A negative start counts from the end
    (``Span(-16)`` is the last 16 bytes, or the whole value when it is shorter)."""

    start: int
    stop: int | None = None

    def resolve(self, nbytes: int) -> tuple[int, int]:
        """The absolute ``(start, stop)`` within a value of ``nbytes``; ``start <= stop``."""
        start = max(nbytes + self.start, 0) if self.start < 0 else min(self.start, nbytes)
        stop = nbytes if self.stop is None else min(self.stop, nbytes)
        return start, max(start, stop)

    @property
    def bounded(self) -> Span:
        """The same bytes, told in numbers that servers and files take (below 2^50)."""
        stop = None if self.stop is None else max(-_HUGE, min(self.stop, _HUGE))
        return Span(max(-_HUGE, min(self.start, _HUGE)), stop)


class Request(NamedTuple):
    """A value to be read, whole or in part, by :meth:`Driver.get_many` or
    :meth:`Driver.get_many_tagged`.

    ``unless``, for the latter: a version that the asker holds already; while it is the stored
    one, its tag is returned and no bytes are moved. ``most``, where no span is wanted: the bytes
    that the value can have; of a larger one no more is read, and
    :class:`~tensorstash.errors.Corrupt` is raised (:func:`check_size`).
    """

    key: str
    span: Span | None = None
    unless: Tag | None = None
    most: int | None = None


class Put(NamedTuple):
    """One value to be stored by :meth:`Driver.put_each`; conditions as in :meth:`Driver.put`."""

    key: str
    value: Buffer
    if_absent: bool = False
    if_tag: Tag | None = None


class Parts(NamedTuple):
    """What :meth:`Driver.put_parts` writes within a stored value of ``nbytes``: ``parts`` are where
    bytes begin and what they become, written in this order. Where nothing is stored, a value of
    nothing but ``fill``, repeated, is stored before."""

    key: str
    nbytes: int
    fill: bytes
    parts: Sequence[tuple[int, Buffer]]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver guarantees. Every claim is checked by the contract suite."""

    writable: bool = True
    conditional_put: bool = True
    """``put(if_absent=...)`` and ``put(if_tag=...)`` hold against every other writer."""
    locks: bool = True
    """``lock`` excludes every other process that can reach the data."""
    shared: bool = True
    """Other processes that connect with the same URL see the same values."""
    local: bool = False
    """A request costs no round trip: loop over keys rather than batching them."""
    gap_bytes: int = 65536
    """Ranges of one value closer than this are fetched as one."""
    concurrency: int = 1
    """Requests worth having under way at once, where they are not ``local``."""
    maps: bool = False
    """``map`` returns the memory that a value lies in."""
    content_tags: bool = False
    """Tags follow from the bytes: the same bytes stored again may carry the same tag."""
    lists: bool = True
    """``list`` names every key that is stored: what it does not name need not be asked for."""
    folders: bool = True
    """``list_dir`` costs what it names; elsewhere as much as to list all that lies below."""
    one_thread: bool = False
    """Serves only the thread that opened it: reading and writing is not spread over others."""
    in_place: bool = False
    """``put_parts`` changes parts of a stored value and moves no others; ``view`` shows them."""
    leases: bool = False
    """``lock`` is a lease: a holder that was stopped goes on after others had the lock, so every
    put and delete under it must be conditional. Elsewhere a stopped holder keeps its lock."""


Check: TypeAlias = Callable[[], None]
"""What :meth:`Driver.lock` yields: raises :class:`~tensorstash.errors.Conflict` when the lock
was lost meanwhile. To be called before each step that must not happen without the lock."""


class Changed(Exception):
    """A stored value has changed since its tag was read. Internal: callers read again."""


@dataclass(slots=True)
class Traffic:
    """What a driver sent and received in this process; see :attr:`Driver.traffic`."""

    requests: int = 0
    """Requests sent, repeated ones included (of a pipeline: each round trip)."""
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    disk_hits: int = 0
    """Values read from a local disk cache."""


class OpenFile(NamedTuple):
    """A file that is open, what it was then, and, for who may read or store to it so, its map."""

    path: bytes
    descriptor: int
    inode: int
    device: int
    size: int
    memory: Any = None


Opened = tuple[OpenFile, Any, Any]  # and its owner, which keeps it open; and what ends a write


class InPlace:
    """What writes within stored values: of drivers that say so in their :class:`Capabilities`."""

    scheme: str = ""
    get_many_tagged: Callable[..., Iterator[tuple[int, tuple[Buffer, Tag] | None]]]

    def view(self, key: str) -> memoryview | None:
        """As :meth:`Driver.map`, but kept open for the next call, and what :meth:`put_parts` writes
        shows in it: for who copies out of it at once."""
        raise Unsupported(f"driver {self.scheme!r} has no memory to share; read {key!r} instead")

    def get_parts(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """As :meth:`Driver.get_many_tagged`, but tags of those with a span mean nothing."""
        return self.get_many_tagged(requests)

    def gather(
        self,
        wanted: Sequence[tuple[str, Sequence[int]]],
        nbytes: int,
        beside: Request | None = None,
    ) -> tuple[Sequence[Buffer | None], tuple[Buffer, Tag] | None]:
        """Of each value that is ``wanted`` (one at least), ``nbytes`` from each of some places on,
        one behind another (fewer, where it is shorter); ``None`` where nothing is stored. These are
        of no one moment. Then what ``beside`` asks for, as :meth:`Driver.get_many_tagged`."""
        asked = [Request(key, Span(at, at + nbytes)) for key, starts in wanted for at in starts]
        found = dict(self.get_parts(asked if beside is None else [*asked, beside]))
        answers: list[Buffer | None] = []
        at = 0
        for _, starts in wanted:
            some = [found[k] for k in range(at, at + len(starts))]
            at += len(starts)
            there = [bytes(each[0]) for each in some if each is not None]
            answers.append(b"".join(there) if there else None)
        return answers, None if beside is None else found[at]

    def put_parts(self, values: Iterable[Parts]) -> None:
        """Write parts of stored values, where they lie: no other byte of a value is moved, so that
        writers of different parts need not know of each other. One part alone may be torn by a kill
        in the middle of it. :class:`~tensorstash.errors.Corrupt` where a value has another size."""
        raise Unsupported(
            f"driver {self.scheme!r} replaces values whole, and writes nothing in place; keep such "
            "arrays in file://, shm:// or redis://"
        )

    def opened(self, key: str, nbytes: int, fill: bytes | None) -> Opened | None:
        """The file that holds a value, for who writes parts of it by other means, who compares it
        before and after as :meth:`put_parts` does; made first where there is none. Without ``fill``
        for who reads, as :meth:`view`. ``None``: no file, or writes must wait for the disk."""
        return None

    def flush(self, prefix: str) -> None:
        """Have what this process wrote by :meth:`put_parts` below ``prefix``, and the documents
        there, survive a power cut, as far as the place lets a client decide."""
        raise Unsupported(f"driver {self.scheme!r} writes nothing in place, so nothing is to flush")


class Driver(InPlace, ABC):
    """The interface of drivers, which store bytes under keys: five methods at the least.

    A put is atomic; an absent value reads as ``None``; a failure raises
    :class:`~tensorstash.errors.DriverError` and is never taken for absence. Keys are
    ``/``-separated, non-empty, without ``.``/``..`` segments or a leading slash
    (:func:`check_key`). A driver must be safe to use from several threads, must work in a
    forked child, and must pickle without secrets.

    Raises:
        DriverError: the backend failed. Conflict: a condition of a put did not hold. Invalid: a
        key is not such a key. ReadOnly: the place cannot be written to.

    >>> driver = stash.create({}, 3, "int8").driver
    >>> tag = driver.put("note", b"one")
    >>> bytes(driver.get("note")), driver.tag("note") == tag, driver.get("nothing") is None
    (b'one', True, True)
    """

    scheme: str = ""
    capabilities: Capabilities = Capabilities()
    metadata_limit: int = METADATA
    """The most bytes of a metadata document that are read."""

    # -- required ---------------------------------------------------------------

    @abstractmethod
    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """Read a value together with the tag of that version.

        Args:
            key: which value.
            span: bytes of it; all by default.

        Returns:
            ``(value, tag)``; ``None`` where nothing is stored.
        """

    @abstractmethod
    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store a value atomically: a reader sees the old value or the new one, whole.

        Args:
            key: where; what is stored there is replaced.
            value: its bytes.
            if_absent: only if nothing is stored there. The check and the store are one step.
            if_tag: only if this version is stored there, in one step too.

        Returns:
            The tag of the new version.

        Raises:
            Conflict: the condition does not hold; nothing is changed.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a value.

        Args:
            key: which; deleting what is absent is no error.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield every key below a prefix, in any order.

        Args:
            prefix: what keys start with: empty, or text that ends in ``/``.

        Returns:
            An iterator over whole keys.
        """

    @abstractmethod
    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """List the names directly below a prefix, without walking the whole tree.

        Args:
            prefix: empty, or text that ends in ``/``.

        Returns:
            ``(keys, folders)``, both sorted and without the prefix.
        """

    # -- defaults, to override where the backend does better ----------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The value, or bytes ``span`` of it, or ``None`` when nothing is stored."""
        return None if (found := self.get_tagged(key, span)) is None else found[0]

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """``(i, value)`` for the i-th request, in the order of arrival. A yielded buffer is
        valid only until the next one is asked for: drivers may reuse its memory."""
        for i, (key, span, _, most) in enumerate(requests):
            value = self.get(key, span)
            if value is not None and span is None:
                check_size(key, len(value), most)
            yield i, value

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """``(i, (value, tag))`` for the i-th request, or ``(i, None)`` where nothing is stored,
        in the order of arrival. Buffers are the caller's to keep. A request whose ``unless`` is
        the stored version is returned with empty bytes and that tag. Requests are taken from
        the iterable as earlier ones are answered, so their number is no matter of memory."""
        for i, (key, span, unless, most) in enumerate(requests):
            if unless is not None and self.tag(key) == unless:
                yield i, (b"", unless)
                continue
            found = self.get_tagged(key, span)
            if found is not None and span is None:
                check_size(key, len(found[0]), most)
            yield i, found

    def get_into(self, key: str, out: memoryview) -> int | None:
        """Read a whole value straight into ``out`` (writable bytes). Returns the value's size,
        or ``None`` when absent; a value larger than ``out`` returns any size above
        ``len(out)`` and leaves ``out`` undefined."""
        if (value := self.get(key)) is None:
            return None
        if len(value) <= len(out):
            out[: len(value)] = value
        return len(value)

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of *one version* of a value, with its tag. :class:`Changed` when
        ``tag`` is given and the value is not of that version, or when it changed midway."""
        parts: list[Buffer] = []
        for span in spans:
            found = self.get_tagged(key, span)
            if found is None:
                if tag is not None or parts:
                    raise Changed(key)
                return None
            if tag is not None and found[1] != tag:
                raise Changed(key)
            tag = found[1]
            parts.append(found[0])
        if tag is None:
            raise Invalid(f"get_ranges of {key!r} without spans")
        return parts, tag

    def map(self, key: str) -> memoryview | None:
        """The memory that a value lies in, read-only; ``None`` when absent. It stays as it is when
        the value is replaced or deleted."""
        raise Unsupported(f"driver {self.scheme!r} has no memory to map; read {key!r} instead")

    def local_path(self, prefix: str) -> str | None:
        """How paths of values begin below ``prefix``, where each is a file: one that is no link is
        read directly, and its tag is ``(inode, mtime in ns, size)``. Else ``None``."""
        return None

    def local_puts(self) -> tuple[str, str, Callable[[int], int]] | None:
        """How the kernel may put files itself (``put.c``): where, as whom, at which times."""
        return None

    def in_memory(self, keys: Sequence[str]) -> Sequence[bytes | None] | None:
        """The values of ``keys`` (``None``: absent) where all lie in memory, else ``None``."""
        return None

    def plain_folder(self, folder: str) -> bool:
        """Where values are files: whether no link leads to ``folder`` (no slash at its end)."""
        return False

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored version without its bytes; ``None`` when absent."""
        return None if (found := self.get_tagged(key)) is None else found[1]

    def is_lasting(self, tag: Tag) -> bool:
        """Whether no later version can have a ``tag`` that a put returned."""
        return False

    def modified(self, key: str) -> float | None:
        """When ``key`` was stored, in seconds since 1970 by the clock there; ``None``: unknown."""
        return None

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes stored)`` for every key that starts with ``prefix``."""
        for key in self.list(prefix):
            if (value := self.get(key)) is not None:
                yield key, len(value)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Unconditional puts, each atomic; together they are not."""
        for key, value in items:
            self.put(key, value)

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        """``(i, tag)`` for the i-th put, in the order of completion; ``None`` where its condition
        did not hold, and nothing was changed there. Each is atomic; together they are not. Any
        other failure is raised, with some of the others carried out. Puts are taken from the
        iterable as earlier ones are done."""
        for i, (key, value, if_absent, if_tag) in enumerate(puts):
            try:
                yield i, self.put(key, value, if_absent=if_absent, if_tag=if_tag)
            except Conflict:
                yield i, None

    def taken(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix`` at which is anything, also what is no value, as a folder."""
        return self.list(prefix)

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        """``(key, tag)`` of every ``wanted`` key that starts with ``prefix``, in any order."""
        names = [key for key in self.list(prefix) if wanted(key)]
        for i, found in self.get_many_tagged(Request(name, Span(0, 1)) for name in names):
            if found is not None:
                yield names[i], found[1]

    def replacing(self, key: str, value: Buffer, tag: Tag | None) -> Put:
        """Return a put that replaces version ``tag`` (``None``: nothing), as far as can be."""
        if not self.capabilities.conditional_put:
            return Put(key, value)
        return Put(key, value, if_absent=tag is None, if_tag=tag)

    def replace(self, key: str, value: Buffer, tag: Tag | None) -> Tag:
        """Replace version ``tag`` by ``value``; ``Conflict`` if it is not what is stored."""
        _, _, if_absent, if_tag = self.replacing(key, value, tag)
        return self.put(key, value, if_absent=if_absent, if_tag=if_tag)

    def put_anew(self, key: str, value: Buffer, tag: Tag) -> Tag:
        """Put the stored value again, if it is of ``tag``, to get another tag, also of digests."""
        return self.put(key, value, if_tag=tag)

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        """Delete each key that is still of this version; yields those ``(key, tag)`` that are
        stored in another one. :class:`~tensorstash.errors.Unsupported`, with nothing deleted,
        where that cannot be done in one step."""
        raise Unsupported(f"driver {self.scheme!r} deletes whatever is stored; put a value instead")

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete each key."""
        for key in keys:
            self.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every key that starts with ``prefix`` (empty or ending in ``/``)."""
        self.delete_many(list(self.list(prefix)))

    def remove_link(self, prefix: str) -> bool:
        """Remove the symbolic link that stands for the folder ``prefix`` (empty: the root), and
        nothing in what it leads to; ``False`` where there is none, as in most places."""
        return False

    def linked(self, prefix: str) -> str | None:
        """The first folder on the way to ``prefix``, itself included, that is a link; a prefix."""
        return None

    def prune(self, prefix: str) -> None:
        """Remove empty folders and unused locks below ``prefix``; no link is followed."""

    def rename(self, prefix: str, target: Driver, target_prefix: str) -> bool:
        """Move all below ``prefix`` in one step to where nothing is. ``False``: not here."""
        return False

    def remove_root(self) -> None:
        """Remove the folder that is the root, where there is one, and it is empty."""

    def kept(self, key: str) -> str | None:
        """The name in ``key``, or in the driver's path, that it keeps and never lists."""
        return None

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        """Hold the name ``key`` alone, among all processes that can reach the data. Released when
        its holder dies, or is interrupted. Not reentrant. After
        ``timeout`` seconds of waiting :class:`~tensorstash.errors.TimedOut` is raised, which
        says who holds it, as far as that is known. Yields a :data:`Check`: a lock that is a
        lease can be lost by a holder that was stopped for longer than it lasts."""
        raise Unsupported(
            f"driver {self.scheme!r} offers no lock, which append and resize need; "
            "write from one process, or use a driver that locks"
        )

    @property
    def traffic(self) -> Traffic | None:
        """The requests and bytes of this process, if the driver counts them."""
        return None

    def close(self) -> None:
        """Close all connections. The driver may be used again, and then connects again."""

    @property
    def url(self) -> str:
        """The URL of the driver's root, without secrets, for messages and ``repr``."""
        return f"{self.scheme}://"

    @property
    def identity(self) -> str:
        """A name that differs from that of every other place, even if the ``url`` is the same on
        another server. The disk cache stores values under it. Contains no secrets."""
        return self.url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


def check_key(key: str) -> str:
    """Return ``key`` if it stays below its root, or raise ``Invalid``: it is empty, absolute, or
    has an empty, ``.`` or ``..`` segment, a backslash or a NUL."""
    if not key or "\\" in key or "\0" in key or key[0] == "/":
        raise Invalid(f"key {key!r} is not a relative path of plain names")
    if "." in key or "//" in key or key[-1] == "/":
        for name in key.split("/"):
            if name in ("", ".", ".."):
                raise Invalid(f"key {key!r} has the segment {name!r}, which could leave its root")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if it is empty, or a valid key followed by ``/``."""
    if prefix:
        if prefix[-1] != "/":
            raise Invalid(f"prefix {prefix!r} does not end in '/'")
        check_key(prefix[:-1])
    return prefix


def check_size(key: str, nbytes: int, most: int | None) -> None:
    """:class:`~tensorstash.errors.Corrupt` where a value has more bytes than it can have. To be
    called before they are read, where the driver can tell."""
    if most is not None and nbytes > most:
        raise Corrupt(
            f"the value at key {key!r} has {counted(nbytes, 'byte')}, more than the {most} "
            f"it can have" + REPAIR,
            key=key,
        )


def get_at_most(driver: Driver, key: str, most: int) -> tuple[Buffer, Tag] | None:
    """A value and its tag, or ``None``; ``Corrupt`` where it is larger, and unread."""
    [(_, found)] = driver.get_many_tagged([Request(key, None, None, most)])
    return found


def held() -> None:
    """Do nothing: the :data:`Check` of a lock that cannot be lost while its holder lives."""


def pick(value: Buffer, span: Span | None) -> Buffer:
    """Return bytes ``span`` of a value that is in memory, without copying."""
    if span is None:
        return value
    start, stop = span.resolve(len(value))
    return memoryview(value)[start:stop]


def flat(value: Buffer) -> bytes | memoryview:
    """Return the bytes of any buffer as a flat view; copies them only if they are not
    contiguous."""
    if type(value) is bytes:
        return value
    view = memoryview(value)
    return view.cast("B") if view.nbytes and view.c_contiguous else view.tobytes()


def as_bytes(value: Any, key: str) -> bytes:
    """Return the value of ``key`` as ``bytes``, or raise ``Corrupt`` where it is no buffer."""
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise Corrupt(
            f"the value at key {key!r} is {type(value).__name__}, not bytes; store bytes there, "
            "or delete it",
            key=key,
        ) from None


def located(driver: Driver, path: str = "") -> str:
    """Return the URL of ``path`` below ``driver``, for messages and ``repr``."""
    url, path = driver.url, path.strip("/")
    return url if not path else url + path if url.endswith("/") else f"{url}/{path}"


def pause(attempt: int) -> None:
    """Sleep for a random time that grows with every attempt, so that two writers differ."""
    time.sleep(random.uniform(0, min(0.0005 * 2**attempt, 0.05)))
