"""Folders of this machine that another library writes to for us: fsspec's local filesystem, zarr's
``LocalStore``.

Neither library minds symbolic links, so here is asked before it stores or deletes: as on
``file://``, a link is replaced or removed, and what it leads to is not written.
"""

from __future__ import annotations

import os
from typing import Any

from tensorstash.drivers.file.driver import FileDriver

__all__ = ["of_filesystem", "of_store"]


def of_store(store: Any, prefix: str = "") -> FileDriver | None:
    """The folder in which a zarr store keeps its keys that begin with ``prefix``; ``None`` where
    they are no files here."""
    names = {kind.__name__ for kind in type(store).__mro__}
    if "WrapperStore" in names:
        return of_store(store._store, prefix)
    if "LocalStore" in names:
        return _folder(os.fspath(store.root), prefix)
    if "FsspecStore" in names:
        return of_filesystem(store.fs, f"{store.path}/{prefix}")
    if "ObjectStore" in names and type(store.store).__name__ == "LocalStore":
        return _folder(os.fspath(store.store.prefix or "/"), prefix)
    return None


def of_filesystem(fs: Any, path: str) -> FileDriver | None:
    """The folder that is ``path`` in an fsspec filesystem; ``None`` where it is none of this
    machine."""
    names = {kind.__name__ for kind in type(fs).__mro__}
    if "AsyncFileSystemWrapper" in names:
        return of_filesystem(fs.sync_fs, path)
    if "DirFileSystem" in names:
        return of_filesystem(fs.fs, fs._join(path))
    if "LocalFileSystem" in names:
        return _folder(fs._strip_protocol(path) if path.strip("/") else "/")
    return None


def _folder(root: str, prefix: str = "") -> FileDriver:
    return FileDriver(os.path.join(root or "/", prefix.rstrip("/")))
