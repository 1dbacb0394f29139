"""Open files that no interrupt leaves open.

Between the return of ``os.open`` and whatever keeps the number, an interrupt may come, and then
nobody can close the file. So here a file is opened and given its owner in one call of C; the
owner is an object of C that closes the file once, when told to, or when nothing refers to it.
"""

from __future__ import annotations

import os
import select
from functools import partial
from typing import Any

__all__ = ["Descriptor", "opened"]

_MODE = (0o666,)

# Of what Python brings along, this alone owns a descriptor of any kind (folders too) and closes
# it without a warning when it is dropped; that it asks for events is left out.
_own: Any = select.epoll.fromfd if hasattr(select, "epoll") else None

if _own is None:  # pragma: no cover - systems without epoll: as good as Python can

    class _Owner:
        def __init__(self, number: int) -> None:
            self.number = number

        def fileno(self) -> int:
            return self.number

        def close(self) -> None:
            number, self.number = self.number, -1
            if number >= 0:
                os.close(number)

        def __enter__(self) -> _Owner:
            return self

        def __exit__(self, *exc: object) -> None:
            self.close()

        __del__ = close

    _own = _Owner


def opened(path: str, flags: int, folder: int | None = None) -> Any:
    """The owner of a newly opened file (``fileno()``, ``close()``), for a ``with`` block, at whose
    end it is closed. ``folder``: what ``path`` is relative to."""
    how = os.open if folder is None else partial(os.open, dir_fd=folder)
    return next(map(_own, map(how, (path,), (flags,), _MODE)))


class Descriptor:
    """As :func:`opened`, and can be kept and weakly referred to."""

    __slots__ = ("__weakref__", "_owner")

    def __init__(self, path: str, flags: int, folder: int | None = None) -> None:
        self._owner = opened(path, flags, folder)

    def fileno(self) -> int:
        """Its number, while it is open; -1 or ``ValueError`` after that."""
        return int(self._owner.fileno())

    def close(self) -> None:
        """Close it. Once is enough; no number is ever closed twice."""
        self._owner.close()

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._owner.close()
