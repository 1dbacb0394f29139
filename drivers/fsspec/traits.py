"""What is known of each kind of fsspec filesystem: how it stores, lists and names versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Put = Literal["atomic", "rename", "in place", "none"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What a filesystem guarantees. None offers a compare-and-swap or a lock through fsspec."""

    put: Put = "in place"
    """``atomic``: an object is stored whole. ``rename``: written beside its place and renamed
    into it. ``in place``: a reader may see part of a value. ``none``: read only."""
    versions: tuple[str, ...] = ()
    """Entries of ``info()`` that name a version; the first one that is there. Where there is
    none, a version is named by a digest of the value."""
    concurrency: int = 1
    serial: bool = True
    """Not safe between threads: one call at a time."""
    folders: bool = True
    """Folders exist by themselves, and stay behind when they are empty."""


_OBJECTS = ("ETag", "etag", "generation", "content_hash")
_STORE = Traits("atomic", _OBJECTS, concurrency=16, serial=False, folders=False)
_FILES = Traits("rename")
_ARCHIVE = Traits("none")

_KNOWN: Mapping[str, Traits] = {
    **dict.fromkeys(("s3", "s3a", "oss", "oci", "obs", "tos", "r2", "cos"), _STORE),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), _STORE),
    **dict.fromkeys(
        ("gs", "gcs"), Traits("atomic", ("generation", "etag"), 16, serial=False, folders=False)
    ),
    "hf": Traits("atomic", ("blob_id",), 8, serial=False, folders=False),
    "memory": Traits("atomic", concurrency=1, serial=False),
    "github": Traits("none", ("sha",), 8, serial=False, folders=False),
    **dict.fromkeys(("http", "https"), Traits("none", ("etag",), 16, serial=False, folders=False)),
    "git": Traits("none", ("hex",)),
    **dict.fromkeys(
        ("file", "local", "ftp", "sftp", "ssh", "smb", "hdfs", "arrow_hdfs", "webhdfs"), _FILES
    ),
    **dict.fromkeys(("tar", "libarchive", "reference", "data"), _ARCHIVE),
    "zip": Traits("none", ("CRC",)),
    # They answer from a copy of their own, which may be older than what is stored.
    **dict.fromkeys(("simplecache", "filecache", "blockcache", "cached"), _ARCHIVE),
}


def of(names: tuple[str, ...]) -> Traits:
    """What is known of a filesystem that goes by these names: of an unknown one, the least."""
    return next((_KNOWN[name] for name in names if name in _KNOWN), Traits())
