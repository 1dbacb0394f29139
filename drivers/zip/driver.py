"""Keys to the members of one local zip file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Driver,
    Request,
    Span,
    Tag,
    check_key,
    check_prefix,
    check_size,
    flat,
)
from tensorstash.drivers.posix import flock
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.drivers.zip import archive, compact, unpack, writer
from tensorstash.drivers.zip.errors import translated
from tensorstash.drivers.zip.records import LONGEST, Directory, Member, version
from tensorstash.errors import Conflict, Corrupt, Invalid, counted

_ABSENT = (FileNotFoundError, NotADirectoryError)
_WHOLE = Span(0)
# Not blocking matters for one thing only: a FIFO in the archive's place must not hang its reader.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_BATCH = 16 << 20


class ZipDriver(Driver):
    """Keys are members of one local zip file, below a folder in it; safe between threads and
    processes of one host, where the file system offers ``flock``.

    Values are stored as they are, so parts are read by themselves. Members that another
    program deflated are read too, from the beginning. A tag is a random number that stands with
    the member's entry; of others' members ``(inode, offset, checksum, size)``.
    """

    scheme = "zip"
    capabilities = Capabilities(local=True, folders=False)

    def __init__(self, path: str | os.PathLike[str], inner: str = "") -> None:
        """The file at ``path`` need not exist: the first put makes it."""
        name = os.fspath(path)
        if not name or "\0" in name:
            raise Invalid(f"{name!r} names no file; give a path like zip:///data/x.zip")
        # A link stands for what it leads to: one archive has one lock, and is written anew in its
        # own place, whichever way it was named.
        self.path = os.path.realpath(name) if os.path.islink(name) else os.path.abspath(name)
        self._prefix = inner.strip("/") and check_key(inner.strip("/")) + "/"
        self._known: tuple[tuple[int, ...], Directory] | None = None
        self._swept = 0

    @property
    def url(self) -> str:
        """``zip:///abs/path``, with the folder in it as ``zip://inner::/abs/path``."""
        inner = self._prefix.rstrip("/")
        return f"zip://{inner}::{self.path}" if inner else f"zip://{self.path}"

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) with the tag of that version."""
        return self._get(key, span, None)

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """One after the other; what is larger than it can be is not read."""
        for i, (key, span, _, most) in enumerate(requests):
            found = self._get(key, span, most)
            yield i, None if found is None else found[0]

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """One after the other; what is larger than it can be is not read."""
        for i, (key, span, unless, most) in enumerate(requests):
            if unless is not None and self.tag(key) == unless:
                yield i, (b"", unless)
            else:
                yield i, self._get(key, span, most)

    def get_into(self, key: str, out: memoryview) -> int | None:
        """Read a whole value straight into ``out``, where it has room."""
        with self._opened("read", key) as (fd, known):
            member = self._find(known, key)
            if member is None or fd is None:
                return None
            if member.size <= len(out):
                unpack.read_into(fd, member, out[: member.size], self.path)
            return member.size

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one member, which no later put changes."""
        with self._opened("read", key) as (fd, known):
            member = self._find(known, key)
            version = None if member is None or fd is None else _tag(os.fstat(fd).st_ino, member)
            if tag is not None and version != tag:
                raise Changed(key)
            if member is None or fd is None:
                return None
            return unpack.read(fd, member, spans, self.path), version

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored version, from the directory alone."""
        with self._opened("look up", key) as (fd, known):
            member = self._find(known, key)
            return None if member is None or fd is None else _tag(os.fstat(fd).st_ino, member)

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Append the value and make it the one that counts, alone among all writers."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        place = self._place(key)
        with self._locked("put", key) as (fd, known):
            current = self._find(known, key)
            tag = None if current is None else _tag(os.fstat(fd).st_ino, current)
            if (if_absent and tag is not None) or (if_tag is not None and tag != if_tag):
                raise Conflict(f"{key!r} was written by someone else first; read it again", key=key)
            inode, known = self._write(fd, known, [(place, flat(value))], ())
            return _tag(inode, known.members[place])

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Append values in batches of 16 MiB, each batch with one directory."""
        batch: list[tuple[str, Buffer]] = []
        nbytes = 0
        for key, value in items:
            data = bytes(value)
            batch.append((key, data))
            nbytes += len(data)
            if nbytes >= _BATCH:
                self._put_batch(batch)
                batch, nbytes = [], 0
        self._put_batch(batch)

    def delete(self, key: str) -> None:
        """Take the value out of the directory."""
        self.delete_many([key])

    def delete_many(self, keys: Iterable[str]) -> None:
        """Take the values out of the directory, in one step."""
        wanted = [*keys]
        with self._opened("delete", "") as (_, known):
            if all(self._find(known, key) is None for key in wanted):
                return
        with self._locked("delete", wanted[0]) as (fd, known):
            self._write(fd, known, (), [self._place(key) for key in wanted])

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with ``prefix``, as of this call."""
        return iter([key for key, _ in self._below(prefix)])

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes)`` from the directory."""
        return iter(self._below(prefix))

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``; looks at every name in the directory."""
        names = [key[len(prefix) :].partition("/") for key, _ in self._below(prefix)]
        keys = sorted(name for name, slash, _ in names if not slash)
        return keys, sorted({name for name, slash, _ in names if slash})

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> flock.LockFile:
        """Hold the name ``key`` alone, by a lock file beside the archive while it is held."""
        name = blake2b(self._place(key).encode(), digest_size=6).hexdigest()
        path = f"{self.path}.{name}.lock"

        def take() -> Descriptor | None:
            with translated("lock", key, self.url):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                return flock.take_file(path, wait=False)

        return flock.LockFile(path, key, self.url, timeout, take)

    def __reduce__(self) -> tuple[Callable[..., ZipDriver], tuple[str, str]]:
        """Travels as the path."""
        return ZipDriver, (self.path, self._prefix)

    # -- within -------------------------------------------------------------------

    def _place(self, key: str) -> str:
        """The member that ``key`` is, where it can be the name of one."""
        place = self._prefix + check_key(key)
        if not place.isascii() or len(place) > LONGEST:
            try:
                size = len(place.encode())
            except UnicodeError:
                raise Invalid(f"key {key[:200]!r} cannot be a name in a zip") from None
            if size > LONGEST:
                raise Invalid(
                    f"key {key[:80]!r}... has {counted(size, 'byte')}, and a name in a zip "
                    f"at most {LONGEST}; "
                    "use shorter names"
                )
        return place

    def _find(self, known: Directory, key: str) -> Member | None:
        """The member of ``key``; ``None`` where there is none for certain."""
        place = self._place(key)
        if known.doubtful and (why := known.doubtful.get(place)) is not None:
            raise Corrupt(
                f"{key!r} in {self.url} cannot be read: it {why}; restore a copy", key=key
            )
        member = known.members.get(place)
        if member is None and known.lost:
            raise Corrupt(
                f"cannot tell whether {key!r} is in {self.url}: {known.lost}; restore a copy",
                key=key,
            )
        return member

    def _get(self, key: str, span: Span | None, most: int | None) -> tuple[Buffer, Tag] | None:
        with self._opened("read", key) as (fd, known):
            member = self._find(known, key)
            if member is None or fd is None:
                return None
            if span is None:
                check_size(key, member.size, most)
            spans = (_WHOLE if span is None else span,)
            [value] = unpack.read(fd, member, spans, self.path, most)
            return value, _tag(os.fstat(fd).st_ino, member)

    def _below(self, prefix: str) -> Sequence[tuple[str, int]]:
        start = self._prefix + check_prefix(prefix)
        with self._opened("list", prefix) as (_, known):
            if known.lost:
                raise Corrupt(
                    f"cannot list {self.url}: {known.lost}; restore a copy, or open arrays in it "
                    "by their paths for what is left of them"
                )
            # What cannot be read is named too: who goes by names would take it for absent.
            found = [(name, 0) for name in known.doubtful if name.startswith(start)]
            found += [(n, m.size) for n, m in known.members.items() if n.startswith(start)]
        cut = len(self._prefix)
        return [(name[cut:], size) for name, size in found if len(name) > cut]

    @contextmanager
    def _opened(self, verb: str, key: str) -> Iterator[tuple[int | None, Directory]]:
        """The file and its directory, which is read again when the file has changed."""
        with translated(verb, key, self.url):
            try:
                file = Descriptor(self.path, _READ)
            except _ABSENT:
                yield None, Directory({}, 0)
                return
            with file:
                fd = file.fileno()
                last = self._known  # other threads replace it
                if last is not None and last[0] == writer.stamp(fd):
                    known = last[1]
                else:
                    locked = flock.take(file, exclusive=False)
                    try:
                        known = self._current(fd)
                    finally:
                        if locked:
                            flock.drop(file)
                yield fd, known

    @contextmanager
    def _locked(self, verb: str, key: str) -> Iterator[tuple[int, Directory]]:
        """The file, of which this is now the only writer, and its directory."""
        with translated(verb, key, self.url):
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            file = flock.take_file(self.path, wait=True)
            assert file is not None
            with file:
                try:
                    yield file.fileno(), self._current(file.fileno())
                finally:
                    flock.drop(file)

    def _current(self, fd: int) -> Directory:
        """The directory of the file as it is; nobody writes meanwhile."""
        stamp, known = writer.stamp(fd), self._known
        if known is None or known[0] != stamp:
            before = known[1] if known is not None and known[0][0] == stamp[0] else None
            self._known = known = stamp, archive.read(fd, self.path, before)
        return known[1]

    def _put_batch(self, batch: Sequence[tuple[str, Buffer]]) -> None:
        if batch:
            with self._locked("put", batch[0][0]) as (fd, known):
                for key, _ in batch:
                    self._find(known, key)
                self._write(fd, known, [(self._place(key), value) for key, value in batch], ())

    def _write(
        self,
        fd: int,
        known: Directory,
        items: Sequence[tuple[str, Buffer]],
        gone: Iterable[str],
    ) -> tuple[int, Directory]:
        """Change the archive; returns its inode and directory after that."""
        if known.fixed:
            raise Corrupt(
                f"{self.url} is left as it is: {known.fixed}; unpack it, and store it anew"
            )
        if self._swept != os.getpid():
            self._swept = os.getpid()
            compact.sweep(self.path)
        known = writer.change(fd, known, items, gone)
        stamp = writer.stamp(fd)
        try:
            known, stamp = compact.compact(fd, self.path, known) or (known, stamp)
        except OSError:
            # No room for two: the one that is there is whole. Until as much again is dead, it is
            # not tried at each put, for each time it may write as much as there is room.
            known = replace(known, live=known.end)
        self._known = stamp, known
        return stamp[0], known


def _tag(inode: int, member: Member) -> Tag:
    # Of ours it outlives that the archive is written anew.
    return version(member) or (inode, member.offset, member.crc, member.size)
