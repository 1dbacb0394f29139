"""Values of the ``file`` driver written where they lie, and maps of them that are kept open.

Rows are written by ``pwrite``: what fails is an error (a full disk, a bad one), where a store to a
map would kill the process, and the file's time moves with every write. The files stay open; each
write compares inode and size of what is at the path by then, and looks afterwards whether the file
is still linked anywhere: what another put in its place meanwhile is written to as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from stat import S_ISLNK
from typing import Any

from tensorstash.driver import (
    REPAIR,
    Buffer,
    Driver,
    Opened,
    OpenFile,
    Parts,
    check_key,
    check_prefix,
    flat,
)
from tensorstash.drivers.file import reading, writing
from tensorstash.drivers.file.errors import check_regular
from tensorstash.drivers.file.links import Links
from tensorstash.drivers.posix.descriptor import opened
from tensorstash.errors import (
    Conflict,
    Corrupt,
    Denied,
    DriverError,
    Invalid,
    StashError,
    Unsupported,
    counted,
)

_MOST = 128  # files that are kept open; a map of one has a descriptor of its own before Python 3.13
_ATTEMPTS = 100
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW


class _Held:
    """An open file, what it was when it was opened, and its map, once one was needed."""

    __slots__ = ("__weakref__", "file", "map", "version", "writable")

    def __init__(self, file: Any, status: os.stat_result, writable: bool) -> None:
        self.file = file
        self.version = status.st_ino, status.st_dev, status.st_size
        self.writable = writable
        self.map: memoryview | None = None

    def is_at(self, status: os.stat_result) -> bool:
        return self.version == (status.st_ino, status.st_dev, status.st_size)


# Of all drivers of this process, by path. No lock guards them, which a fork could inherit: each
# step is one of a dict, and a file that is let go while another thread uses it closes after that.
_held: dict[str, _Held] = {}
_unsynced: dict[str, None] = {}


def let_go(path: str) -> None:
    """Keep no file at or below ``path``, which is about to be deleted, open."""
    if not _held:
        return
    _held.pop(path, None)
    below = path if path.endswith("/") else path + "/"
    for other in [*_held]:
        if other.startswith(below):
            _held.pop(other, None)


def _keep(path: str, held: _Held) -> _Held:
    _held.pop(path, None)
    _held[path] = held
    while len(_held) > _MOST:
        with suppress(StopIteration, RuntimeError, KeyError):  # another thread did
            del _held[next(iter(_held))]
    return held


class InPlaceFiles(Driver):
    """The part of the driver that shares the memory of files, or writes within them."""

    root: str
    fsync: bool
    _base: str
    _links: Links
    _writes: bool

    def map(self, key: str) -> memoryview | None:
        """The file as it is now, mapped: a put puts another file in its place, and this one stays
        for as long as it is mapped. What is written in place shows. Whoever shortens it in place,
        which no put does, kills the process that looks at what is gone."""
        found = self._open(key)
        if found is None:
            return None
        file, status = found
        with file:
            return self._mapped(key, file, status.st_size)

    def view(self, key: str) -> memoryview | None:
        """As :meth:`map`, of a file that is kept open while it is the one at its path."""
        path = self._base + check_key(key)
        try:
            if self._links.inside:
                self._refuse_outside("read", key)
            held = _held.get(path)
            if held is None or not held.is_at(os.stat(path)):
                held = None
        except Denied:
            raise
        except (OSError, UnicodeError):  # whoever opens it tells why
            held = None
        if held is None:
            found = self._open(key)
            if found is None:
                return None
            held = _keep(path, _Held(*found, writable=False))
        if held.map is None:
            held.map = self._mapped(key, held.file, held.version[2])
        return held.map

    def put_parts(self, values: Iterable[Parts]) -> None:
        """Write within files; one that is not there is made at its full size first, aside, so that
        nobody sees it shorter and a full disk is told before anything is written."""
        for value in values:
            key = value.key
            path = self._base + check_key(key)
            try:
                self._put_parts(path, value)
            except StashError:
                raise
            except (OSError, UnicodeError) as error:
                raise self._unwritten("write", key, error) from error

    def opened(self, key: str, nbytes: int, fill: bytes | None) -> Opened | None:
        """The file, unless each write must wait for the disk; mapped for who reads."""
        memory = self.view(key) if fill is None else None
        if memory is None and (fill is None or self.fsync):
            return None
        if fill is not None:
            self.put_parts([Parts(key, nbytes, fill, ())])
        path = self._base + key
        held = _held.get(path)
        if held is None or (held.map is not memory if fill is None else not held.writable):
            return None
        inode, device, size = held.version
        file = OpenFile(os.fsencode(path), held.file.fileno(), inode, device, size, memory)
        return file, held, partial(_unsynced.setdefault, path)

    def flush(self, prefix: str) -> None:
        """``fsync`` the files written to, the documents, and the folders that lead there."""
        below = self._base + check_prefix(prefix)
        synced = {path for path in [*_unsynced] if path.startswith(below)}
        folders = {os.path.dirname(path) for path in synced} | {below.rstrip("/") or "/"}
        folders |= {self.root}
        for folder in [*folders]:
            while folder.startswith(self._base):
                folders.add(folder)
                folder = os.path.dirname(folder)
        for path in [*synced, *sorted(folders)]:
            for each in (path,) if path in synced else (os.path.join(path, "zarr.json"), path):
                _unsynced.pop(each, None)
                try:
                    with opened(each, os.O_RDONLY | _FLAGS & ~os.O_NOFOLLOW) as file:
                        os.fsync(file.fileno())
                except FileNotFoundError:
                    continue  # deleted since, or no document
                except OSError as error:
                    if path in synced:
                        _unsynced[path] = None
                    raise self._failed("flush", each[len(self._base) :], error) from error

    # -- within -------------------------------------------------------------------

    def _put_parts(self, path: str, value: Parts) -> None:
        nbytes, parts = value.nbytes, value.parts
        for _ in range(_ATTEMPTS):
            try:
                status = os.stat(path, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                if self._made(path, value):
                    break
                continue
            held = _held.get(path)
            if (
                held is None
                or not held.writable
                or status.st_nlink != 1
                or held.version != (status.st_ino, status.st_dev, status.st_size)
                or status.st_size != nbytes
            ):
                held = self._writable(path, value, status)
                if held is None:
                    break
            number = held.file.fileno()
            for start, data in parts:
                _write(number, data, start)
            if self.fsync:
                os.fsync(number)
            if os.fstat(number).st_nlink:
                break
        else:
            raise Conflict(
                f"{value.key!r} is replaced faster than it can be written to", key=value.key
            )
        _unsynced[path] = None

    def _made(self, path: str, value: Parts) -> bool:
        """Make the file, where there is none; whether it holds all of ``value`` then."""
        self._place(value.key)
        whole = _whole(value)
        data = writing.Filled(value.nbytes, value.fill) if whole is None else whole
        try:
            top = "/" not in value.key
            writing.put(path, data, value.key, self.fsync, if_absent=True, if_tag=None, top=top)
        except Conflict:  # another was first
            return False
        self._writes = True
        return whole is not None

    def _writable(self, path: str, value: Parts, status: os.stat_result) -> _Held | None:
        """The file at ``path``, open for writing; ``None`` where it was replaced by all of
        ``value``, for it had another size."""
        key = value.key
        self._place(key)
        if S_ISLNK(status.st_mode):
            raise self._through("write", key, path)
        file = opened(path, os.O_RDWR | _FLAGS)
        status = os.fstat(file.fileno())
        check_regular(status.st_mode)
        if status.st_nlink > 1:
            raise Denied(
                f"cannot write in place to {path!r}: it has {status.st_nlink} links, and every "
                "other would change too; put a copy in its place",
                key=key,
                driver=self.scheme,
            )
        if status.st_size != value.nbytes:
            whole = _whole(value)
            if whole is None:
                raise Corrupt(
                    f"{counted(status.st_size, 'byte is', 'bytes are')} stored at key {key!r}, "
                    f"{value.nbytes} make a chunk" + REPAIR,
                    key=key,
                )
            top = "/" not in key
            writing.put(path, whole, key, self.fsync, if_absent=False, if_tag=None, top=top)
            return None
        return _keep(path, _Held(file, status, writable=True))

    def _mapped(self, key: str, file: Any, size: int) -> memoryview:
        try:
            return reading.mapped(file.fileno(), size)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise Unsupported(
                    f"{self._base + key!r} is on a file system that maps no files; read it instead"
                ) from error
            raise self._failed("map", key, error) from error

    # -- what the driver has ------------------------------------------------------

    def _open(self, key: str) -> tuple[Any, os.stat_result] | None:
        raise NotImplementedError

    def _place(self, key: str) -> tuple[str, str, str]:
        raise NotImplementedError

    def _refuse_outside(self, verb: str, key: str) -> None:
        raise NotImplementedError

    def _through(self, verb: str, key: str, link: str) -> Denied:
        raise NotImplementedError

    def _unwritten(self, verb: str, key: str, error: OSError | UnicodeError) -> StashError:
        raise NotImplementedError

    def _failed(self, verb: str, key: str, error: OSError | UnicodeError) -> DriverError | Invalid:
        raise NotImplementedError


def _whole(value: Parts) -> Buffer | None:
    """The bytes that make all of a value, where they are one part."""
    if len(value.parts) == 1:
        _, data = value.parts[0]
        if memoryview(data).nbytes == value.nbytes:
            return flat(data)
    return None


def _write(number: int, data: Any, start: int) -> None:
    view = memoryview(data)
    done = os.pwrite(number, view, start)
    while done < view.nbytes:
        done += os.pwrite(number, view.cast("B")[done:], start + done)
