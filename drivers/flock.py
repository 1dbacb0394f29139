"""Locks of the ``file`` driver: ``flock`` on directories and on lock files.

A flock belongs to an open file, not to a process: it goes when its holder dies, holds
between the threads of one process too, and would live on in a forked child that
inherited the file. So locks are dropped by name, and children close what they inherit.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

_UNAVAILABLE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_UNAVAILABLE |= {errno.EBADF, errno.EINVAL, errno.EISDIR}  # NFS, asked to lock a directory

_held: set[int] = set()


def _forget() -> None:
    # The parent may be killed while it holds one: the child must not keep it locked.
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def take(fd: int, *, exclusive: bool, wait: bool = True) -> bool:
    """Lock the open file; ``False`` where the file system has no such locks.
    ``BlockingIOError`` when another holds it and we shall not ``wait``."""
    _held.add(fd)
    try:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(fd, mode if wait else mode | fcntl.LOCK_NB)
    except BaseException as error:
        _held.discard(fd)
        if isinstance(error, OSError) and error.errno in _UNAVAILABLE:
            return False
        raise
    return True


def drop(fd: int) -> None:
    """Unlock, also for children that share the open file; before it is closed."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    _held.discard(fd)


def take_file(path: str, *, wait: bool, create: bool = True) -> int | None:
    """Lock the file at ``path`` and answer its descriptor; ``None`` when another holds it.
    Raises ``OSError`` (``ENOLCK`` where the file system has no such locks)."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o666)
        try:
            if not take(fd, exclusive=True, wait=wait):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), path)
            if _is_at(fd, path):
                return fd
            drop(fd)  # its holder unlinked it while we waited: lock the one there now
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def drop_file(fd: int, path: str) -> None:
    """Unlink the locked file, so that nothing stays behind, then unlock and close it."""
    with suppress(OSError):
        # Unless someone removed it by hand and another lock file stands there now.
        if _is_at(fd, path):
            os.unlink(path)
    drop(fd)
    os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
