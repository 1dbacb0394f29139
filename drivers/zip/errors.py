"""What an error of the file system means to whoever keeps values in an archive."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tensorstash.errors import DriverError, Invalid, NoSpace


@contextmanager
def translated(verb: str, key: str, url: str) -> Iterator[None]:
    """Raise errors of the file system, met while ``verb`` is done to ``key``, as ours."""
    try:
        yield
    except UnicodeError as error:
        raise Invalid(f"key {key!r} cannot be a name in a zip") from error
    except OSError as error:
        if isinstance(error, DriverError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        failed = (NoSpace if full else DriverError)(
            f"cannot {verb} {key!r} in {url}: {os.strerror(error.errno or 0)}; "
            + ("free some space, what was stored is intact" if full else "check the path"),
            key=key,
            driver="zip",
        )
        failed.errno = error.errno
        raise failed from error
