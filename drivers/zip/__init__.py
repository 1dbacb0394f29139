"""A dataset in one zip file: ``zip:///path/data.zip``, or ``zip://inner/path::/path/data.zip``.

Each put appends a member where the directory of the archive was and writes the directory anew
behind it, so that after every put and delete the file is a whole zip for any program. The
directory costs about 80 bytes a key at every put: beyond some 10,000 keys, use shards. What was
replaced or deleted stays as dead bytes until it is more than half of the file, which is then
written anew beside its place and renamed.

A process killed amid a put leaves a file without a directory. Other programs call it damaged
(``zip -FF`` repairs it); this driver finds what was stored, deletions excepted, and its next
put repairs the file. On anything but a local file, ``zip://inner::s3://bucket/data.zip``,
fsspec's zip filesystem reads, and nothing writes.
"""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Driver,
    Span,
    Tag,
    check_key,
    check_prefix,
    pick,
)
from tensorstash.drivers import flock
from tensorstash.drivers.descriptor import Descriptor
from tensorstash.drivers.zip import archive, writer
from tensorstash.drivers.zip.archive import Directory, Member
from tensorstash.errors import Conflict, Corrupt, DriverError, Invalid, NoSpace, Unsupported

_ABSENT = (FileNotFoundError, NotADirectoryError)


def connect(rest: str, **options: Any) -> Driver:
    """The archive at the path ``rest``, or after ``::`` the archive and before it the folder
    within. Options are for an archive that is not a local file, and go to fsspec."""
    inner, chained, place = rest.partition("::")
    if not chained:
        inner, place = "", rest
    place = place.removeprefix("file://")
    if "://" not in place:
        if options:
            raise Invalid(f"a local zip takes no option, not {sorted(options)[0]!r}")
        return ZipDriver(place, inner)
    from tensorstash.drivers import fsspec

    factory = fsspec.find("zip")
    assert factory is not None
    return factory(rest, **options)


class ZipDriver(Driver):
    """Keys are members of one local zip file, below a folder in it; safe between threads and
    processes of one host, where the file system offers ``flock``.

    Values are stored as they are, so parts are read by themselves. Members that another
    program deflated are read too, whole. A tag is ``(inode, offset, checksum, size)``.
    """

    scheme = "zip"
    capabilities = Capabilities(local=True)

    def __init__(self, path: str | os.PathLike[str], inner: str = "") -> None:
        """The file at ``path`` need not exist: the first put makes it."""
        name = os.fspath(path)
        if not name or "\0" in name:
            raise Invalid(f"{name!r} names no file; give a path like zip:///data/x.zip")
        self.path = os.path.abspath(name)
        self._prefix = inner.strip("/") and check_key(inner.strip("/")) + "/"
        self._known: tuple[tuple[int, ...], Directory] | None = None

    @property
    def url(self) -> str:
        """``zip:///abs/path``, with the folder in it as ``zip://inner::/abs/path``."""
        inner = self._prefix.rstrip("/")
        return f"zip://{inner}::{self.path}" if inner else f"zip://{self.path}"

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) with the tag of that version."""
        found = self.get_ranges(key, (Span(0) if span is None else span,))
        return None if found is None else (found[0][0], found[1])

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one member, which no later put changes."""
        place = self._prefix + check_key(key)
        with self._opened("read", key) as (fd, known):
            member = known.members.get(place)
            version = None if member is None or fd is None else _tag(os.fstat(fd).st_ino, member)
            if tag is not None and version != tag:
                raise Changed(key)
            if member is None or fd is None:
                return None
            return self._parts(fd, member, key, spans), version

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored version, from the directory alone."""
        place = self._prefix + check_key(key)
        with self._opened("look up", key) as (fd, known):
            member = known.members.get(place)
            return None if member is None or fd is None else _tag(os.fstat(fd).st_ino, member)

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Append the value and make it the one that counts, alone among all writers."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        place = self._prefix + check_key(key)
        with self._locked("put", key) as (fd, known):
            current = known.members.get(place)
            tag = None if current is None else _tag(os.fstat(fd).st_ino, current)
            if (if_absent and tag is not None) or (if_tag is not None and tag != if_tag):
                raise Conflict(f"{key!r} was written by someone else first; read it again", key=key)
            inode, known = self._write(fd, known, [(place, value)], ())
            return _tag(inode, known.members[place])

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Append values in batches of 16 MiB, each batch with one directory."""
        batch: list[tuple[str, Buffer]] = []
        for key, value in items:
            batch.append((self._prefix + check_key(key), bytes(value)))
            if sum(len(data) for _, data in batch) >= 16 << 20:
                self._put_batch(batch)
                batch = []
        self._put_batch(batch)

    def delete(self, key: str) -> None:
        """Take the value out of the directory."""
        self.delete_many([key])

    def delete_many(self, keys: Iterable[str]) -> None:
        """Take the values out of the directory, in one step."""
        places = {self._prefix + check_key(key) for key in keys}
        with self._opened("delete", "") as (_, known):
            if places.isdisjoint(known.members):
                return
        with self._locked("delete", next(iter(places))) as (fd, known):
            self._write(fd, known, (), places)

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
        name = blake2b((self._prefix + check_key(key)).encode(), digest_size=6).hexdigest()
        path = f"{self.path}.{name}.lock"

        def take() -> Descriptor | None:
            with self._told("lock", key):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                return flock.take_file(path, wait=False)

        return flock.LockFile(path, key, self.url, timeout, take)

    def __reduce__(self) -> tuple[Callable[..., ZipDriver], tuple[str, str]]:
        """Travels as the path."""
        return ZipDriver, (self.path, self._prefix)

    # -- within -------------------------------------------------------------------

    def _below(self, prefix: str) -> Sequence[tuple[str, int]]:
        start = self._prefix + check_prefix(prefix)
        with self._opened("list", prefix) as (_, known):
            members = [*known.members.values()]
        cut = len(self._prefix)
        return [(m.name[cut:], m.size) for m in members if m.name.startswith(start)]

    @contextmanager
    def _told(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except UnicodeError as error:
            raise Invalid(f"key {key!r} cannot be a name in a zip") from error
        except OSError as error:
            if isinstance(error, DriverError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise (NoSpace if full else DriverError)(
                f"cannot {verb} {key!r} in {self.url}: {os.strerror(error.errno or 0)}; "
                + ("free some space, what was stored is intact" if full else "check the path"),
                key=key,
                driver=self.scheme,
            ) from error

    @contextmanager
    def _opened(self, verb: str, key: str) -> Iterator[tuple[int | None, Directory]]:
        """The file and its directory, which is read again when the file has changed."""
        with self._told(verb, key):
            try:
                file = Descriptor(self.path, os.O_RDONLY | os.O_CLOEXEC)
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
        with self._told(verb, key):
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
            self._known = known = stamp, archive.read(fd)
        return known[1]

    def _put_batch(self, batch: Sequence[tuple[str, Buffer]]) -> None:
        if batch:
            with self._locked("put", batch[0][0]) as (fd, known):
                self._write(fd, known, batch, ())

    def _write(
        self,
        fd: int,
        known: Directory,
        items: Iterable[tuple[str, Buffer]],
        gone: Iterable[str],
    ) -> tuple[int, Directory]:
        """Change the archive; answers its inode and directory after that."""
        known = writer.change(fd, known, items, gone)
        stamp = writer.stamp(fd)
        with suppress(OSError):  # no room for two: the one that is there is whole
            known, stamp = writer.compact(fd, self.path, known) or (known, stamp)
        self._known = stamp, known
        return stamp[0], known

    def _parts(self, fd: int, member: Member, key: str, spans: Sequence[Span]) -> Sequence[Buffer]:
        try:
            begin = archive.begins(fd, member)
            if member.method == zipfile.ZIP_STORED and spans != (Span(0),):
                ranges = (span.resolve(member.size) for span in spans)
                return [
                    writer.read_bytes(fd, stop - start, begin + start) for start, stop in ranges
                ]
            data: Buffer = writer.read_bytes(fd, member.stored, begin)
            if member.method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
            elif member.method != zipfile.ZIP_STORED:
                raise Unsupported(
                    f"{key!r} in {self.url} is encrypted or compressed by a method other than "
                    "deflate; store it anew without"
                )
        except (zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(key) from error
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise self._damaged(key)
        return [pick(data, span) for span in spans]

    def _damaged(self, key: str) -> Corrupt:
        return Corrupt(
            f"{key!r} in {self.url} is not what was stored, by its checksum; restore a copy",
            key=key,
        )


def _tag(inode: int, member: Member) -> Tag:
    return inode, member.offset, member.crc, member.size
