"""Files of the ``file`` driver that are no values: puts in progress, held locks.

``.<name>.<host>-<pid>-<number>.partial`` is a value being written, ``.<name>.lock`` a lock
being held. A killed process leaves them; whoever lists or deletes next removes them.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from functools import cache
from hashlib import sha256

from tensorstash.drivers import flock

_NAME = re.compile(r"\..+\.(?:([0-9a-f]{8})-([0-9]{1,9})-[0-9a-f]+\.partial|lock)", re.DOTALL)
_STALE_SECONDS = 86400


def name(of: str, number: int) -> str:
    """The name under which this process writes the file ``of``."""
    return f".{of[:32]}.{_host()}-{os.getpid()}-{number:x}.partial"


def lock_name(of: str) -> str:
    """The name of the lock file that stands for ``of``."""
    return f".{of}.lock"


def is_ours(name: str) -> bool:
    """Whether ``name`` is one of these names, and so no key."""
    return name[0] == "." and _NAME.fullmatch(name) is not None


def sweep(path: str) -> None:
    """Remove the file when whoever made it is gone. Never an error: the directory may be
    read-only, and a writer whose file was taken for dead writes it again."""
    match = _NAME.fullmatch(os.path.basename(path))
    with suppress(OSError):
        if match is None:
            return
        host, pid = match.groups()
        if host is None:
            fd = flock.take_file(path, wait=False, create=False)
            if fd is not None:
                flock.drop_file(fd, path)
        elif (host == _host() and not _alive(int(pid))) or _is_stale(path):
            os.unlink(path)


def _is_stale(path: str) -> bool:
    return time.time() - os.stat(path, follow_symlinks=False).st_mtime > _STALE_SECONDS


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
