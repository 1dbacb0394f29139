"""Files of the ``file`` driver that are no values: puts in progress, held locks.

``.<name>.<host>-<pid>-<time>.partial`` is a value being written, ``.<name>.tensorstash-lock`` (of
a node's document ``.<name>.lock``) a lock being held. A killed process leaves them. Those that
write sweep them where they list or delete, and only where all shows that they are ours and nobody's
any more: other programs' files that look like them are values, or stay.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from functools import cache
from hashlib import sha256
from stat import S_ISREG

from tensorstash.drivers.posix import flock
from tensorstash.drivers.posix.descriptor import Descriptor

LOCKED = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Names whose locks are known to other programs' users too: the documents of nodes."""

_PARTIAL = re.compile(
    r"\.[^/]{1,32}\.([0-9a-f]{8})-([1-9][0-9]{0,8})-([0-9a-f]{16})\.partial", re.DOTALL
)
_LOCK = re.compile(
    rf"\.(?:(?:{'|'.join(map(re.escape, LOCKED))})\.lock|.+\.tensorstash-lock)", re.DOTALL
)
_STALE_SECONDS = 86400
_CLOCKS_SECONDS = 86400  # that a file system's clock and ours may be apart
_READ = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


_last = 0


def stamp() -> int:
    """Now, in ns; later than any before even when the clock is set back. Two threads may
    get the same one, but then both their files exist, and so differ in inode."""
    global _last
    _last = max(time.time_ns(), _last + 1)
    return _last


def stamps(count: int) -> int:
    """The first of so many such times, each a nanosecond after the one before."""
    global _last
    first = stamp()
    _last = max(_last, first + count)
    return first


def name(of: str, stamp: int) -> str:
    """The name under which this process writes the file ``of``, begun at ``stamp`` (ns)."""
    return f".{of[:32]}.{writer()}-{stamp:016x}.partial"


def writer() -> str:
    """This process, in the names of what it writes."""
    return f"{_host()}-{os.getpid()}"


def lock_name(of: str) -> str:
    """The name of the lock file that stands for ``of``."""
    return f".{of}.lock" if of in LOCKED else f".{of}.tensorstash-lock"


def is_ours(name: str) -> bool:
    """Whether a file of that name is one of these, and so no value."""
    if name[0] != "." or not name.endswith((".partial", "lock")):
        return False
    return (_PARTIAL.fullmatch(name) or _LOCK.fullmatch(name)) is not None


def sweep(home: int, name: str) -> None:
    """Remove the file ``name`` of the open folder ``home`` when it is ours and whoever made it is
    gone. Never an error: the folder may be read-only, and a writer whose file was taken for dead
    writes it again."""
    with suppress(OSError):
        match = _PARTIAL.fullmatch(name)
        if match is not None:
            host, pid, stamp = match.groups()
            if _is_left(home, name, host, int(pid), int(stamp, 16)):
                os.unlink(name, dir_fd=home)
        elif _LOCK.fullmatch(name):
            _sweep_lock(home, name)


def _is_left(home: int, name: str, host: str, pid: int, stamp: int) -> bool:
    """Whether the name, the file and its owner agree that we began it, and that its writer is
    gone."""
    status = os.stat(name, dir_fd=home, follow_symlinks=False)
    if not S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if abs(status.st_mtime_ns - stamp) > _CLOCKS_SECONDS * 10**9:
        return False
    return (host == _host() and not _alive(pid)) or _is_stale(status)


def _sweep_lock(home: int, name: str) -> None:
    with Descriptor(name, _READ, home) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode) or status.st_size:
            return
        if flock.take(file, exclusive=True, wait=False):
            try:
                # Its holder may have unlinked it, and another lock file may stand there now.
                if os.path.samestat(status, os.stat(name, dir_fd=home, follow_symlinks=False)):
                    os.unlink(name, dir_fd=home)
            finally:
                flock.drop(file)


def _is_stale(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _STALE_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@cache
def _host() -> str:
    """Eight digits for the machine and the container: where a process number means ours."""
    words = [os.uname().nodename]
    for path in ("/etc/machine-id", "/proc/self/ns/pid"):
        with suppress(OSError):
            words.append(os.readlink(path) if os.path.islink(path) else _text(path))
    return sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:8]


def _text(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()
