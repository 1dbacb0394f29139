"""Files below one directory: ``file:///abs/path``, or a plain path.

A value is one file, replaced whole: it is written beside its place under a temporary name
and renamed into it (or, when nothing is there yet, written without a name and linked).
Symbolic links that someone placed below the root are followed when reading and listing, so
part of a store may live on another disk; a put replaces a link, a delete removes it, and
neither touches its target. POSIX only.

Beside values a directory may hold, for a moment, the files of ``partial.py``: they are no
keys, and what a killed process left of them goes with the next listing or
``delete_prefix``.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from stat import S_ISREG
from typing import Any, ClassVar

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
)
from tensorstash.drivers import flock, os_errors, partial, posix, replace
from tensorstash.drivers.descriptor import Descriptor, opened
from tensorstash.errors import DriverError, Invalid, Unsupported

# Not blocking matters for one thing only: a FIFO in a hostile tree must not hang its reader.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_ABSENT = (FileNotFoundError, NotADirectoryError)
_NOT_REMOVED = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_SCRATCH = 65536
_SCRATCH_KEPT = 32 << 20
_local = threading.local()
_WHOLE = Span(0)
_SPARE = bytearray(1)  # takes the byte past the end of a caller's buffer; never looked at


def connect(rest: str, *, fsync: bool = False) -> FileDriver:
    """The files below the directory ``rest``, which the first put creates.

    With ``fsync`` a put returns only when its value is on the disk, so that it survives a
    power cut. The path is taken literally: no ``~``, no ``%20``.
    """
    return FileDriver(rest, fsync=fsync)


class FileDriver(Driver):
    """Keys are paths of files below ``root``; safe between threads, processes and, where
    the file system offers ``flock``, hosts.

    A tag is ``(inode, modification time in ns, size)``. ``list_dir`` may name a folder that
    no longer holds any key: directories go with ``delete_prefix``, not with ``delete``.
    """

    scheme = "file"
    capabilities = Capabilities(local=True, maps=True)
    _advice: ClassVar[Mapping[int, str]] = os_errors.ADVICE

    def __init__(self, root: str | os.PathLike[str], *, fsync: bool = False) -> None:
        """See :func:`connect`; a relative ``root`` is taken from the current directory, now."""
        path = os.fspath(root)
        if not path or "\0" in path:
            raise Invalid(f"{path!r} names no directory; give a path like file:///data/x")
        self.root = os.path.abspath(path)
        self.fsync = fsync
        self._base = self.root.rstrip("/") + "/"

    @property
    def url(self) -> str:
        """``file:///abs/path``, the path as it is."""
        return f"file://{self.root}"

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) as ``bytes``, with the tag of that version."""
        found = self.get_ranges(key, (_WHOLE if span is None else span,))
        return None if found is None else (found[0][0], found[1])

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one version, all from one open file; :class:`Changed` when that
        is not version ``tag``."""
        try:
            with self._open(key) as file:
                fd = file.fileno()
                status = os.fstat(fd)
                if S_ISREG(status.st_mode):
                    version = replace.tag_of(status)
                    if tag is not None and version != tag:
                        raise Changed(key)
                    size = status.st_size
                    return [posix.read(fd, *span.resolve(size)) for span in spans], version
        except _ABSENT:
            pass
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error
        if tag is not None:
            raise Changed(key)
        return None

    def get_into(self, key: str, out: memoryview) -> int | None:
        """Read a whole value straight into ``out``; answers its size, or ``None``."""
        try:
            with self._open(key) as file:
                fd = file.fileno()
                room = len(out)
                # The spare byte tells a value that fills `out` from a longer one in one call.
                size = os.readv(fd, (out, _SPARE))
                # A short read is not yet the end: a bad sector further on, a signal or the
                # kernel's 2 GiB cap look the same. Only a read of nothing proves it.
                while size < room and (more := os.readv(fd, (out[size:], _SPARE))):
                    size += more
                if size > room:
                    return max(size, os.fstat(fd).st_size)
                # Nothing to read may also be a FIFO, say.
                return size if size or S_ISREG(os.fstat(fd).st_mode) else None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """``(i, value)`` in order; whole values share one buffer, good until the next."""
        # Taken from the thread while in use, so that two readers in one thread never share it;
        # fresh memory for every call would cost a page fault each 4 KiB.
        scratch: memoryview = getattr(_local, "scratch", None) or memoryview(bytearray(_SCRATCH))
        _local.scratch = None
        for i, (key, span, _, most) in enumerate(requests):
            if span is not None:
                yield i, self.get(key, span)
                continue
            size = self.get_into(key, scratch)
            if size is not None:
                check_size(key, size, most)
            while size is not None and size > len(scratch):
                scratch = memoryview(bytearray(max(size, 2 * len(scratch))))
                size = self.get_into(key, scratch)
            yield i, None if size is None else scratch[:size]
        # Not where the caller stops midway: it may still hold what was yielded last.
        if len(scratch) <= _SCRATCH_KEPT:
            _local.scratch = scratch

    def map(self, key: str) -> memoryview | None:
        """The file as it is now, mapped: a put puts another file in its place, and this one stays
        for as long as it is mapped. Whoever shortens it in place, which no put does, kills the
        process that looks at what is gone."""
        try:
            with self._open(key) as file:
                return posix.mapped(file.fileno())
        except _ABSENT:
            return None
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENODEV:
                raise Unsupported(
                    f"{self._base + key!r} is on a file system that maps no files; read it instead"
                ) from error
            raise self._failed("map", key, error) from error

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored version, from one ``stat``."""
        try:
            return replace.tag_at(self._base + check_key(key))
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value`` atomically and answer its tag; directories are made as needed."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        path, _, _ = self._place(key)
        data = value if type(value) is bytes else memoryview(value).cast("B")
        try:
            return replace.put(path, data, key, self.fsync, if_absent=if_absent, if_tag=if_tag)
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            raise self._failed("write", key, error) from error

    def delete(self, key: str) -> None:
        """Remove the file. Its directory stays: removing that races with other writers."""
        _, folder, name = self._place(key)
        try:
            self._unlink(folder, (name,))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            raise self._failed("delete", key, error) from error

    def delete_prefix(self, prefix: str) -> None:
        """Remove the directory ``prefix`` and all below it; of the root, only what is in it.
        What others write meanwhile stays, in its directories."""
        top = (self._base + check_prefix(prefix)).rstrip("/") or "/"
        folders = [top]
        try:
            if prefix and os.path.islink(top):
                os.unlink(top)
                return
            for folder in folders:  # grows while it is walked
                names = []
                with suppress(FileNotFoundError, NotADirectoryError):
                    with os.scandir(folder) as found:
                        entries = [*found]  # some file systems skip names when others go
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif partial.is_ours(entry.name):
                            partial.sweep(entry.path)
                        else:
                            names.append(entry.name)
                    self._unlink(folder, names)
            for folder in reversed(folders if prefix else folders[1:]):
                try:
                    os.rmdir(folder)
                except OSError as error:
                    if error.errno not in _NOT_REMOVED:
                        raise
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            raise self._failed("delete", prefix, error) from error

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, in no order."""
        return self._walk(check_prefix(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes stored)`` of every key below ``prefix``; reads no value."""
        for key in self.list(prefix):
            try:
                yield key, os.stat(self._base + key).st_size
            except FileNotFoundError:  # deleted since it was listed
                continue
            except OSError as error:
                raise self._failed("look at", key, error) from error

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Files and directories directly below ``prefix``, from one directory scan."""
        keys: list[str] = []
        folders: list[str] = []
        for name, is_folder in self._scan(check_prefix(prefix)):
            (folders if is_folder else keys).append(name)
        return sorted(keys), sorted(folders)

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> flock.LockFile:
        """Hold the name ``key`` alone among all processes; released when its holder dies.

        Waits at most ``timeout`` seconds (``None``: for ever), then raises
        :class:`~tensorstash.errors.TimedOut`, which names the holder. Readers and puts are not
        held up.
        """
        # A file of its own, since a flock belongs to an inode: the value's inode changes
        # while its holder publishes, and the directory's is what every conditional put takes.
        _, folder, name = self._place(key)
        path = os.path.join(folder, partial.lock_name(name))
        take = functools.partial(self._take_lock, path, folder, key)
        return flock.LockFile(path, key, self.url, timeout, take)

    # -- within -------------------------------------------------------------------

    def _open(self, key: str) -> Any:
        """The owner of the open file, to be closed by ``with``."""
        return opened(self._base + check_key(key), _READ)

    def _place(self, key: str) -> tuple[str, str, str]:
        """``(path, directory, name)`` of a key that may be written."""
        path = self._base + check_key(key)
        folder, _, name = path.rpartition("/")
        if partial.is_ours(name):
            raise Invalid(
                f"key {key!r} is a name that {self.scheme}:// keeps for itself; use another"
            )
        return path, folder or "/", name

    def _take_lock(self, path: str, folder: str, key: str) -> Descriptor | None:
        try:
            while True:
                try:
                    return flock.take_file(path, wait=False)
                except FileNotFoundError:
                    replace.make_folder(folder, self.fsync)
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOLCK:
                raise replace.no_lock(path) from error
            raise self._failed("lock", key, error) from error

    def _unlink(self, folder: str, names: Iterable[str]) -> None:
        with Descriptor(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as home:
            fd = home.fileno()
            # A delete between another writer's compare and its rename would be undone.
            locked = flock.take(home, exclusive=False)
            try:
                for name in names:
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=fd)
            finally:
                if locked:
                    flock.drop(home)
            if self.fsync:
                os.fsync(fd)

    def _walk(self, prefix: str) -> Iterator[str]:
        below = [prefix]
        while below:
            prefix = below.pop()
            for name, is_folder in self._scan(prefix):
                if is_folder:
                    below.append(f"{prefix}{name}/")
                else:
                    yield prefix + name

    def _scan(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """``(name, is a directory)`` of what lies directly below ``prefix``."""
        try:
            with os.scandir(self._base + prefix) as entries:
                for entry in entries:
                    name = entry.name
                    if "\\" in name:
                        continue  # no key may hold it
                    if name[0] == "." and partial.is_ours(name):
                        partial.sweep(entry.path)
                    elif entry.is_symlink() and _loops(entry.path):
                        continue
                    elif entry.is_dir():
                        yield name, True
                    elif entry.is_file():
                        yield name, False
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, UnicodeError) as error:
            raise self._failed("list", prefix, error) from error

    def _failed(self, verb: str, key: str, error: OSError | UnicodeError) -> DriverError | Invalid:
        if isinstance(error, UnicodeError):
            return Invalid(f"key {key!r} cannot be a file name; it has half a surrogate pair")
        return os_errors.failure(verb, self._base + key, key, error, self.scheme, self._advice)


def _loops(path: str) -> bool:
    """Whether the link at ``path`` leads to itself or to a directory it lies in."""
    try:
        target = os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    while (above := os.path.dirname(path)) != path:
        if os.path.samestat(os.stat(above), target):
            return True
        path = above
    return False
