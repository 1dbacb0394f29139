"""Files below one directory: ``file:///abs/path``, or a plain path.

A value is one regular file, replaced whole: it is written beside its place under a temporary
name and renamed into it (or, when nothing is there yet, written without a name and linked).
Whatever else stands at a key (a FIFO, a device, a link that leads nowhere, a directory that is
not there for the keys in it) is an error that names it, and no absent value. POSIX only.

The directory that the user names may be a symbolic link. Links below it are read through and
listed through, so part of a store may live on another disk; with ``links="inside"`` those that
lead out are refused. A put replaces a link to a file, a delete removes it, and neither touches
its target; what lies below a link to a directory is not written at all (``links.py``).

Beside values a directory may hold, for a moment, the files of ``posix/partial.py``: they are no
keys, and what a killed process left of them goes with ``delete_prefix``, ``prune``, and the next
listing by a driver that has put something. Who only reads removes nothing.
"""

from __future__ import annotations

from typing import Literal

from tensorstash.drivers.file.driver import FileDriver
from tensorstash.urls import file_path

__all__ = ["FileDriver", "connect"]


def connect(
    rest: str, *, fsync: bool = False, links: Literal["anywhere", "inside"] = "anywhere"
) -> FileDriver:
    """The files below the directory ``rest``, which the first put creates.

    With ``fsync`` a put returns when its value is on the disk, and survives a power cut. With
    ``links="inside"`` a symbolic link that leads out of ``rest`` is :class:`Denied`; ``"anywhere"``
    reads through it. By RFC 8089, ``file:///a%20b`` is the folder ``/a b``; there is no ``~``.
    """
    return FileDriver(file_path(rest), fsync=fsync, links=links)
