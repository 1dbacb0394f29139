"""What an error of the file system means to whoever stores values in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from tensorstash.errors import Denied, DriverError, NoSpace

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM}
ADVICE = {
    errno.EACCES: "check the permissions of it and its directories",
    errno.EPERM: "check the permissions of it and its directories",
    errno.ENOSPC: "free some space and write again, what was stored is intact",
    errno.EDQUOT: "free some quota and write again, what was stored is intact",
    errno.EFBIG: "raise the file size limit (ulimit -f) or use smaller chunks",
    errno.EBUSY: "others keep deleting its directory, stop them",
    errno.EROFS: "open it with mode 'r', or write elsewhere",
    errno.EIO: "the disk failed, see the kernel log and restore a copy",
    errno.ENOTDIR: "a part of this path is a file, not a directory, or a link that leads nowhere",
    errno.EISDIR: "a directory is in the way of this file, move it away",
    errno.ENXIO: "only regular files hold values, remove it and write the value again",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ELOOP: "its symbolic links form a loop, remove them",
    errno.EMFILE: "close files or raise the limit (ulimit -n)",
    errno.ENFILE: "close files or raise the system's limit (fs.file-max)",
    errno.ENOMEM: "free memory, or let go of views that map files (sysctl vm.max_map_count)",
}


_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class NoRegularFile(OSError):
    """Something else lies where a value should."""


def check_regular(mode: int) -> None:
    """:class:`NoRegularFile`, or ``IsADirectoryError``, unless ``mode`` is that of a file whose
    bytes are a value."""
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        kind = _KINDS.get(stat.S_IFMT(mode), "special file")
        raise NoRegularFile(errno.ENXIO, f"It is a {kind}")


def failure(
    verb: str,
    path: str,
    key: str,
    error: OSError,
    driver: str,
    advice: Mapping[int, str] = ADVICE,
) -> DriverError:
    """``error``, met while ``verb`` was done to ``path``, with advice; it keeps its number."""
    code = error.errno or 0
    kind = NoSpace if code in _FULL else Denied if code in _DENIED else DriverError
    what = error.strerror if isinstance(error, NoRegularFile) else os.strerror(code)
    failed = kind(
        f"cannot {verb} {path!r}: {what}; {advice.get(code, 'see what the file system reports')}",
        key=key,
        driver=driver,
    )
    failed.errno = code
    return failed
