"""The folder of the disk cache: finding, storing and evicting files, without a lock.

Files are complete under their names and never changed, so readers need no lock; those who
write and evict at once may do each other's work twice, never harm. What all processes wrote
since the last look over the folder is the length of one file that they append to, a byte for
each 4 KiB: a counter that is shared, survives a kill, and needs no lock either.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

from tensorstash.cached import PerProcess
from tensorstash.driver import Buffer, Span, Tag
from tensorstash.drivers.diskcache import entry
from tensorstash.drivers.diskcache.entry import Entry

_log = logging.getLogger("tensorstash")

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_SUFFIX = ".tsc"
_LEDGER = ".tensorstash-written"
_PARTIAL = ".tensorstash-partial"
# A user may have other files in the folder: what is removed has a name that only we give.
_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{30}-(-?\d+_(-?\d+)?)?\.tsc")
_WRITING = re.compile(r"[0-9a-f]{24}")
_BLOCK = 4096  # what a file takes on the disk is a multiple of this
_TOUCH = 60.0
_ABANDONED = 300.0
_PAUSE = 60.0


@dataclass(slots=True)
class CacheCounts:
    """What a disk cache did in this process."""

    hits: int = 0
    """Requests answered from the disk, by a value that was compared with the stored version
    first unless it is immutable."""
    misses: int = 0
    """Requests whose bytes came from the driver: nothing was kept, or an older version."""
    bytes_served: int = 0
    """Bytes that the hits answered."""
    damaged: int = 0
    """Cache files found damaged, and removed."""


class CacheFolder:
    """Versions of values below ``path``, together at most ``limit`` bytes, the least recently
    used leaving first. No method raises for what the disk does: it is a cache."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._base = path.rstrip("/") + "/"
        self._counts = PerProcess(CacheCounts)
        self._resume = 0.0
        self._warned = False
        self._swept = False

    @property
    def counts(self) -> CacheCounts:
        """Of this process; a forked child starts at zero."""
        return self._counts.here()

    def find(
        self, url: str, key: str, kept: Span | None, span: Span | None, most: int
    ) -> Entry | None:
        """The entry kept for bytes ``kept`` of a value, and of these the bytes ``span`` where
        they are no more than ``most``."""
        path, name = self._place(url, key, kept)
        try:
            fd = os.open(path, _READ)
        except OSError:
            return None
        try:
            found = entry.read(fd, name, span, most)
            if abs(time.time() - found.used) > _TOUCH:
                with suppress(OSError):
                    os.utime(fd)
            return found
        except (ValueError, OSError) as error:
            self.counts.damaged += 1
            _log.debug("cache file of %r in %s is removed: %s", key, self.path, error)
            self._unlink(path)
            return None
        finally:
            os.close(fd)

    def store(self, url: str, key: str, span: Span | None, tag: Tag, body: Buffer) -> None:
        """Keep a version, in place of the one before. Not what takes more than half the limit,
        nor a version whose tag has no literal; nothing for a minute after the disk refused."""
        text = entry.tag_text(tag)
        if text is None or 2 * len(body) > self.limit or time.monotonic() < self._resume:
            return
        path, name = self._place(url, key, span)
        head = entry.head(name, text, body)
        blocks = _blocks(len(head) + len(body))
        if 2 * blocks * _BLOCK > self.limit:
            return
        try:
            if not self._swept:
                self._sweep()
            # Counted first: what is killed next is counted without being there, not the reverse.
            written = self._count(blocks)
            self._write(path, head, body)
            if 16 * _BLOCK * written >= self.limit and self._take_ledger():
                self._evict()
        except OSError as error:
            self._resume = time.monotonic() + _PAUSE
            if not self._warned:
                self._warned = True
                _log.warning(
                    "the cache in %s cannot be written and is not filled for now: %s",
                    self.path,
                    error.strerror or error,
                )

    def drop(self, url: str, key: str, spans: bool) -> None:
        """Forget the whole value; with ``spans``, what is kept of parts of it too."""
        path, _ = self._place(url, key, None)
        self._unlink(path)
        if spans:
            folder, _, name = path.rpartition("/")
            stem = name[: name.index("-") + 1]
            for file in _files(folder):
                if file.name.startswith(stem):
                    self._unlink(file.path)

    def drop_below(self, url: str, prefix: str) -> None:
        """Forget every value of ``url`` whose key starts with ``prefix``."""
        start = _named(url, prefix)
        for file in self._all():
            with suppress(OSError, ValueError):
                fd = os.open(file.path, _READ)
                try:
                    name = entry.name_in(fd)
                finally:
                    os.close(fd)
                if name.startswith(start):
                    self._unlink(file.path)

    # -- within -------------------------------------------------------------------

    def _place(self, url: str, key: str, span: Span | None) -> tuple[str, bytes]:
        """Where the entry is, and the name that stands in it."""
        part = "" if span is None else f"{span.start}_{'' if span.stop is None else span.stop}"
        value = _named(url, key)
        digest = blake2b(value, digest_size=16).hexdigest()
        return f"{self._base}{digest[:2]}/{digest[2:]}-{part}{_SUFFIX}", b"%b\0%b" % (
            value,
            part.encode(),
        )

    def _count(self, blocks: int) -> int:
        """Add ``blocks`` to those written since the last look; returns their number."""
        path = self._base + _LEDGER
        try:
            fd = os.open(path, _APPEND, 0o600)
        except FileNotFoundError:
            os.makedirs(self.path, 0o700, exist_ok=True)
            fd = os.open(path, _APPEND, 0o600)
        try:
            entry.write(fd, bytes(blocks))
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _write(self, path: str, head: bytes, body: Buffer) -> None:
        partial = f"{self._base}{_PARTIAL}/{os.urandom(12).hex()}"
        try:
            fd = os.open(partial, _NEW, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(partial), 0o700, exist_ok=True)
            fd = os.open(partial, _NEW, 0o600)
        try:
            try:
                entry.write(fd, head, body)
            finally:
                os.close(fd)
            try:
                os.rename(partial, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                os.rename(partial, path)
        except BaseException:
            self._unlink(partial)
            raise

    def _take_ledger(self) -> bool:
        """Start counting anew; of several at once one gets true, and evicts."""
        try:
            os.unlink(self._base + _LEDGER)
        except FileNotFoundError:
            return False
        return True

    def _evict(self) -> None:
        """Make an eighth of the limit free: half of it is written before the next time."""
        total = self._sweep()
        found: list[tuple[float, int, str]] = []
        for file in self._all():
            with suppress(FileNotFoundError):
                status = file.stat(follow_symlinks=False)
                found.append((status.st_mtime, _blocks(status.st_size) * _BLOCK, file.path))
        total += sum(size for _, size, _ in found)
        found.sort()
        for _, size, path in found:
            if total <= self.limit - self.limit // 8:
                break
            self._unlink(path)
            total -= size

    def _sweep(self) -> int:
        """Remove what killed writers left; returns the bytes of what may still be written. A
        writer that lives and is this slow finds its file gone, and its value is not kept."""
        self._swept = True
        total = 0
        with suppress(FileNotFoundError), os.scandir(self._base + _PARTIAL) as files:
            for file in files:
                if not _WRITING.fullmatch(file.name) or not file.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if abs(time.time() - status.st_mtime) > _ABANDONED:
                        os.unlink(file.path)
                    else:
                        total += _blocks(status.st_size) * _BLOCK
        return total

    def _all(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as found:
                folders = [
                    folder.path
                    for folder in found
                    if _FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False)
                ]
        except OSError:
            return
        for folder in folders:
            yield from _files(folder)

    def _unlink(self, path: str) -> None:
        with suppress(OSError):
            os.unlink(path)


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """The cache files in one folder: others may lie there, and are none of ours."""
    with suppress(OSError), os.scandir(folder) as found:
        for file in found:
            if _FILE.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                yield file


def _named(url: str, key: str) -> bytes:
    # Half a surrogate pair is for the driver to refuse.
    return f"{url}\0{key}".encode("utf-8", "surrogatepass")


def _blocks(nbytes: int) -> int:
    return -(-nbytes // _BLOCK)
