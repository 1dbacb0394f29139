"""Removing files and folders below the root of the ``file`` driver, never through a link.

Every folder is reached from the root by :func:`links.open_folder`, and what is removed is named
relative to its descriptor: a link that takes a folder's place meanwhile is removed, or in the way,
but never followed. Everything here raises ``OSError``; folders are relative to the root.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from stat import S_ISLNK

from tensorstash.drivers.file.errors import check_regular
from tensorstash.drivers.file.links import open_folder
from tensorstash.drivers.posix import flock, partial
from tensorstash.drivers.posix.descriptor import Descriptor

ABSENT = (FileNotFoundError, NotADirectoryError)
_NOT_REMOVED = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


def unlink(root: str, folder: str, names: Iterable[str], fsync: bool) -> None:
    """Remove files, or links, that lie in ``folder``."""
    with open_folder(root, folder) as home:
        _unlink(home, names, fsync)


def unlink_link(root: str, folder: str, name: str, fsync: bool) -> bool:
    """Remove ``name``, which lies in ``folder``, where it is a symbolic link."""
    with open_folder(root, folder) as home:
        if not S_ISLNK(os.lstat(name, dir_fd=home.fileno()).st_mode):
            return False
        _unlink(home, (name,), fsync)
        return True


def sweep(root: str, folder: str, names: Iterable[str]) -> None:
    """Remove those files of ``folder`` that dead writers left. Never an error."""
    with suppress(OSError), open_folder(root, folder) as home:
        for name in names:
            partial.sweep(home.fileno(), name)


def clear(root: str, top: str, fsync: bool, *, everything: bool) -> None:
    """Remove all files below ``top``, or only what dead writers left, and then the folders that
    hold nothing; not the root itself."""
    folders = [top]
    for folder in folders:  # grows while it is walked
        with suppress(*ABSENT):
            folders += _clear_one(root, folder, fsync, everything)
    for above, some in groupby(reversed(folders), lambda folder: folder.rpartition("/")[0]):
        with suppress(*ABSENT):
            _remove_folders(root, above, [folder.rpartition("/")[2] for folder in some])


def _clear_one(root: str, folder: str, fsync: bool, everything: bool) -> list[str]:
    """As :func:`clear`, of one folder; the folders in it."""
    with open_folder(root, folder) as home:
        folders, names, left = [], [], []
        with os.scandir(home.fileno()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}" if folder else entry.name)
                elif partial.is_ours(entry.name):
                    left.append(entry.name)
                elif everything and (entry.is_symlink() or entry.is_file()):
                    names.append(entry.name)
        for name in left:  # only now: some file systems skip names when others go
            partial.sweep(home.fileno(), name)
        if names:
            _unlink(home, names, fsync)
        return folders


def _unlink(home: Descriptor, names: Iterable[str], fsync: bool) -> None:
    # A delete between another writer's compare and its rename would be undone.
    locked = flock.take(home, exclusive=False)
    try:
        for name in names:
            with suppress(FileNotFoundError, IsADirectoryError):
                mode = os.lstat(name, dir_fd=home.fileno()).st_mode
                if not S_ISLNK(mode):
                    check_regular(mode)  # a FIFO or a device is no value, and not ours
                os.unlink(name, dir_fd=home.fileno())
    finally:
        if locked:
            flock.drop(home)
    if fsync:
        os.fsync(home.fileno())


def _remove_folders(root: str, above: str, names: Sequence[str]) -> None:
    with open_folder(root, above) as home:
        for name in filter(None, names):  # the root has none, and stays
            try:
                os.rmdir(name, dir_fd=home.fileno())
            except OSError as error:
                if error.errno not in _NOT_REMOVED:
                    raise
