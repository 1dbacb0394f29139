"""A folder of files in shared memory, held while it is used."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

from tensorstash.driver import Capabilities, check_key
from tensorstash.drivers.file import errors
from tensorstash.drivers.file.driver import FileDriver
from tensorstash.drivers.shm import hold
from tensorstash.errors import AlreadyExists, Closed, Denied, Invalid, counted

_LONGEST = 190  # bytes of a name, with room for what goes around it
_FULL = (
    "shared memory is full: let go of stores in it, or give it more (docker run --shm-size=8g, or "
    "mount -o remount,size=8g /dev/shm)"
)


class ShmDriver(FileDriver):
    """A :class:`FileDriver` whose files are in memory, and there only while somebody holds them.

    Nobody but its user may look at it. What a killed process leaves is removed by whoever connects
    next, to any name.
    """

    scheme = "shm"
    capabilities = Capabilities(local=True, maps=True, in_place=True)
    _advice: ClassVar[Mapping[int, str]] = errors.ADVICE | {errno.ENOSPC: _FULL}

    def __init__(self, name: str) -> None:
        """See :func:`tensorstash.drivers.shm.connect`."""
        self.name = name.strip("/")
        store, _, inner = self.name.partition("/")
        if not store:
            raise Invalid("a shm:// location needs a name, such as shm://run1")
        check_key(self.name)
        try:
            length = len(os.fsencode(store))
        except UnicodeError:
            raise Invalid(f"{store!r} cannot be a file name; it has half a surrogate") from None
        if length > _LONGEST:
            raise Invalid(
                f"{store[:20]!r}... is {counted(length, 'byte')} long; the most is {_LONGEST}"
            )
        self._memory = _memory()
        self._prefix = f"tensorstash-{os.geteuid()}-"
        self._folder = os.path.join(self._memory, self._prefix + store)
        super().__init__(os.path.join(self._folder, hold.CONTENT, inner))
        self._may_go = bool(inner)  # the store itself is there for as long as it is held
        self._hold: hold.Hold | None = self._take()
        self._inode = self._hold.inode

    @property
    def url(self) -> str:
        """``shm://name``."""
        return f"shm://{self.name}"

    def close(self) -> None:
        """Let go of the store. Use after that connects again, as long as somebody held it on;
        else it is gone, and use raises :class:`~tensorstash.errors.Closed`."""
        self._hold = None
        vars(self).pop("_base", None)

    def __getattr__(self, name: str) -> Any:
        # Asked for what is missing only: close() takes away what every method needs.
        if name != "_base":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        taken = self._take()
        if taken.inode != self._inode:
            raise Closed(
                f"{self.url} was closed, and is gone as nobody else held it; create it again, and "
                "keep a handle for as long as it shall last"
            )
        self._hold = taken
        self._base = self.root + "/"
        return self._base

    def __reduce__(self) -> tuple[type[ShmDriver], tuple[str]]:
        """Travels as its name: whoever unpickles it holds the store too, if it is still there."""
        return type(self), (self.name,)

    def _take(self) -> hold.Hold:
        try:
            return hold.take(self._folder, self._memory, self._prefix)
        except PermissionError as error:
            raise Denied(
                f"{self._folder} belongs to another user; use another name",
                driver=self.scheme,
            ) from error
        except FileExistsError as error:
            raise AlreadyExists(
                f"{self._folder} holds files that are no store's; move them away, or use another "
                "name"
            ) from error
        except OSError as error:
            raise errors.failure(
                "hold", self._folder, "", error, self.scheme, self._advice
            ) from error


def _memory() -> str:
    """Where shared memory is; the directory for temporary files where there is none."""
    shared = "/dev/shm"
    return shared if os.access(shared, os.W_OK | os.X_OK) else tempfile.gettempdir()
