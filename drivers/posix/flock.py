"""Locks between the processes of a host: ``flock`` on directories and on lock files.

A flock belongs to an open file, not to a process: it goes when its holder dies, holds
between the threads of one process too, and would live on in a forked child that
inherited the file. So locks are dropped by name, and children close what they inherit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakSet

from tensorstash.driver import Check, held
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.drivers.waiting import Waiting, of_file
from tensorstash.errors import TimedOut

_UNAVAILABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_UNAVAILABLE |= {errno.EBADF, errno.EINVAL, errno.EISDIR}  # NFS, asked to lock a directory
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PATIENCE = 60.0  # seconds to wait for who writes; it is done in milliseconds, or was stopped
_PAUSES = (0.0005, 0.02)

_held: WeakSet[Descriptor] = WeakSet()


def _forget() -> None:
    # The parent may be killed while it holds one: the child must not keep it locked.
    for each in [*_held]:
        each.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def take(file: Descriptor, *, exclusive: bool, wait: bool = True) -> bool:
    """Lock the open file; ``False`` where the file system has no such locks. Who holds it is
    about to write, or was stopped: :class:`~tensorstash.errors.TimedOut` after a minute, and
    ``BlockingIOError`` at once where we shall not ``wait``."""
    _held.add(file)
    mode = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    begun: float | None = None
    pause, longest = 0.00002, 0.005
    while True:
        try:
            fcntl.flock(file, mode)
            return True
        except BlockingIOError:
            now = time.monotonic()
            begun = begun or now
            if not wait:
                raise
            if now - begun > _PATIENCE:
                raise _late(file) from None
        except OSError as error:
            if error.errno in _UNAVAILABLE:
                return False
            raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, longest)


def drop(file: Descriptor) -> None:
    """Unlock, also for children that share the open file; before it is closed."""
    fcntl.flock(file, fcntl.LOCK_UN)
    _held.discard(file)


def take_file(path: str, *, wait: bool, create: bool = True) -> Descriptor | None:
    """Lock the file at ``path``; ``None`` when another holds it and we shall not ``wait``.
    Raises ``OSError`` (``ENOLCK`` where the file system has no such locks)."""
    while True:
        file = Descriptor(path, _FLAGS | (os.O_CREAT if create else 0))
        try:
            if not take(file, exclusive=True, wait=wait):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), path)
            if _is_at(file, path):
                return file
            # Else its holder has unlinked it since we opened it: lock the one there now.
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()  # now, for a notebook keeps what it shows of an error, and so the file
            raise


def drop_file(file: Descriptor, path: str) -> None:
    """Unlink the locked file, so that nothing stays behind, then unlock it."""
    try:
        with suppress(OSError):
            # Unless someone removed it by hand and another lock file stands there now, or it was
            # there before, as somebody's own: ours are empty.
            status = os.fstat(file.fileno())
            if not status.st_size and os.path.samestat(status, os.lstat(path)):
                os.unlink(path)
    finally:
        drop(file)


class LockFile:
    """The lock file at ``path``, held in a ``with`` block; there only meanwhile.

    What an interrupt leaves locked is let go when this object goes, by C, so that no interrupt is
    lost in a finalizer; the file it leaves then is empty, and removed by whoever comes next.
    """

    def __init__(
        self,
        path: str,
        key: str,
        url: str,
        timeout: float | None,
        take: Callable[[], Descriptor | None],
    ) -> None:
        """``take``: :func:`take_file`, with whatever goes around it."""
        self._path, self._key, self._url, self._timeout = path, key, url, timeout
        self._take = take
        self._file: Descriptor | None = None
        self._pid = 0

    def __enter__(self) -> Check:
        waiting: Waiting | None = None
        self._pid = os.getpid()
        try:
            while True:
                self._file = self._take()
                if self._file is not None:
                    with suppress(OSError):
                        os.utime(self._file.fileno())  # since when, for those who wait
                    return held
                waiting = waiting or self._waiting()
                time.sleep(waiting.pause())
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            with self._file:
                if os.getpid() == self._pid:  # no forked child holds it
                    drop_file(self._file, self._path)

    def _waiting(self) -> Waiting:
        return Waiting(self._key, self._url, self._timeout, self._holder, _PAUSES)

    def _holder(self) -> str:
        with suppress(OSError):
            status = os.stat(self._path, follow_symlinks=False)
            return of_file(status, since=status.st_mtime)
        return "another writer, which has just let it go"


def _late(file: Descriptor) -> TimedOut:
    path = f"/proc/self/fd/{file.fileno()}"
    with suppress(OSError):
        path = os.readlink(path)
    holder = of_file(os.fstat(file.fileno()))
    return TimedOut(
        f"{path!r} was still locked by {holder} after {_PATIENCE:g} s, where a put takes "
        "milliseconds; see whether that one still runs",
        key=path,
        driver="file",
    )


def _is_at(file: Descriptor, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
