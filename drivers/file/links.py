"""Symbolic links below the root of the ``file`` driver: where they are, and where they lead.

The root is the user's word and may be a link itself. A link below it may be anybody's, and so
values are read through it but never written through it. A folder is judged when it is first
needed, not once a value, and the verdict is kept for a moment: whoever deletes does not rely on
it, but walks down by :func:`open_folder`, which follows no link.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from stat import S_ISLNK
from typing import Any, NamedTuple, cast

from tensorstash.driver import Driver, Tag, check_prefix
from tensorstash.drivers.file.errors import failure
from tensorstash.drivers.posix import partial
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.errors import Invalid

_KEPT_SECONDS = 1.0
_KEPT = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


_NOT_HERE = {errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}
_NOT_HERE |= {errno.EINVAL, errno.EBUSY, errno.EPERM, errno.ENOSYS}
"""What is said of directories of two file systems, or where something is at the new name."""


class Verdict(NamedTuple):
    """About a folder: the first link on the way to it from the root (a path), and whether it lies
    outside of the root, where that was asked."""

    link: str | None = None
    outside: bool = False


_PLAIN = Verdict()


_READING = frozenset(
    (
        *("get", "get_tagged", "get_ranges", "get_into", "get_many", "get_many_tagged", "tag"),
        *("_open", "_descriptor", "_read_whole"),
    )
)


_WRITING = frozenset(("put", "put_many", "put_each", "_place", "_refuse_ours", "_refuse_linked"))


class FilesBelow(Driver):
    """A driver whose values are files below its root: tells where, for who reads or writes many
    at once."""

    _base: str
    _may_go: bool = True
    """Whether the root is a directory like those below it, and no part of what serves them."""
    _links: Links
    _writes: bool
    fsync: bool

    def local_path(self, prefix: str) -> str | None:
        """A path; ``None`` where links are to be looked at, or where a class that derives from the
        driver reads in its own way."""
        if self._links.inside or not self._is_plain(_READING):
            return None
        try:
            return self._base + check_prefix(prefix)
        except Invalid:  # whoever reads is told
            return None

    def local_puts(self) -> tuple[str, str, Callable[[int], int]] | None:
        """What a key is appended to for its path, this process in a temporary's name, and what
        returns the first of so many times (ns), one a version. ``None`` where files are to be
        durable, or where a class that derives from the driver writes in its own way."""
        if self.fsync or not self._is_plain(_WRITING):
            return None
        return self._base, partial.writer(), self._stamps

    def is_lasting(self, tag: Tag) -> bool:
        """Where the file system keeps the time that a put gave the file, which is never given
        again, and not only its seconds or milliseconds."""
        return bool(cast(Any, tag)[1] % 1_000_000)

    def plain_folder(self, folder: str) -> bool:
        """From what is known of links for a moment."""
        try:
            return self._links.judge(folder).link is None
        except (OSError, UnicodeError):
            return False

    def remove_link(self, prefix: str) -> bool:
        """Of the root: remove it, where it is a symbolic link."""
        root = self._links.root
        if prefix or not self._may_go or not os.path.islink(root):
            return False
        try:
            os.unlink(root)
        except OSError as error:
            raise failure("delete", root, "", error, self.scheme) from error
        return True

    def rename(self, prefix: str, target: Driver, target_prefix: str) -> bool:
        """Rename the directory, where both are on one file system and no link leads to either."""
        other = target if isinstance(target, FilesBelow) and type(target) is type(self) else None
        if other is None or not (self._may_go and other._may_go):
            return False
        pairs = (self, check_prefix(prefix)[:-1]), (other, check_prefix(target_prefix)[:-1])
        if any(driver._links.inside or not driver.plain_folder(folder) for driver, folder in pairs):
            return False
        old, new = ((driver._base + folder).rstrip("/") for driver, folder in pairs)
        if os.path.islink(old) or os.path.islink(new):
            return False
        try:
            os.makedirs(os.path.dirname(new), exist_ok=True)
            os.rename(old, new)  # over an empty directory, and no other
        except OSError as error:
            if error.errno in _NOT_HERE:
                return False
            raise failure("rename", old, prefix, error, self.scheme) from error
        finally:
            self._links.forget()
            other._links.forget()
        if self.fsync or other.fsync:
            for folder in {os.path.dirname(old), os.path.dirname(new)}:
                with Descriptor(folder, _FOLDER) as file:
                    os.fsync(file.fileno())
        return True

    def remove_root(self) -> None:
        """Remove the root, where it is an empty directory that may be removed."""
        if self._may_go:
            with suppress(OSError):
                os.rmdir(self._links.root)

    def _stamps(self, count: int) -> int:
        self._writes = True
        return partial.stamps(count)

    def _is_plain(self, methods: frozenset[str]) -> bool:
        """Whether ``methods`` are the driver's own."""
        if methods & vars(self).keys():
            return False
        for kind in type(self).__mro__:
            if FilesBelow in kind.__bases__:
                return True
            if methods & vars(kind).keys():
                return False
        return False


class Links:
    """The links below ``root``; with ``inside`` those that lead out of it are to be refused."""

    def __init__(self, root: str, inside: bool) -> None:
        self.root = root
        self.inside = inside
        self._base = root.rstrip("/") + "/"
        self._known: dict[str, Verdict] = {}
        self._since = 0.0

    def __reduce__(self) -> tuple[Callable[[str, bool], Links], tuple[str, bool]]:
        return Links, (self.root, self.inside)

    def judge(self, folder: str) -> Verdict:
        """The verdict about ``folder``, relative to the root and without a slash at its end."""
        now = time.monotonic()
        if now - self._since > _KEPT_SECONDS or len(self._known) > _KEPT:
            self._known, self._since = {}, now
        known = self._known
        found = known.get(folder)
        if found is not None:
            return found
        found, end = _PLAIN, 0
        while end < len(folder):
            end = folder.find("/", end + 1)
            end = len(folder) if end < 0 else end
            part = folder[:end]
            found = known.get(part) or self._look(part, found)
            known[part] = found
        return found

    def forget(self) -> None:
        """Judge again: a link was found where none was known, or removed."""
        self._known = {}

    def is_outside(self, path: str) -> bool:
        """Whether ``path`` leads out of the root."""
        real = os.path.realpath(path)
        root = os.path.realpath(self.root)
        return real != root and not real.startswith(root.rstrip("/") + "/")

    def dangling(self, key: str) -> str | None:
        """The link on the way to ``key``, itself included, that leads nowhere."""
        for end, letter in enumerate(key + "/"):
            if letter == "/" and os.path.islink(path := self._base + key[:end]):
                try:
                    os.stat(path)
                except (FileNotFoundError, NotADirectoryError):
                    return path
        return None

    def _look(self, folder: str, above: Verdict) -> Verdict:
        path = self._base + folder
        try:
            is_link = S_ISLNK(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_link = False
        if not is_link and above.link is None:
            return _PLAIN
        return Verdict(above.link or path, self.inside and self.is_outside(path))


def open_folder(root: str, folder: str) -> Descriptor:
    """``folder``, relative to ``root``, open, and reached without following a link below
    ``root``: ``NotADirectoryError`` where there is one."""
    file = Descriptor(root, _FOLDER)
    for name in folder.split("/") if folder else ():
        with file as above:
            file = Descriptor(name, _FOLDER | os.O_NOFOLLOW, above.fileno())
    return file


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # of a link, to where one may not look: whoever opens it is told why
        return True


def loops(path: str) -> bool:
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
