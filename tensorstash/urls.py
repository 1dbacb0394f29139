"""Which texts are URLs, and what ``file:`` URIs stand for. Pure text."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from .errors import Invalid

_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_URL = re.compile(rf"({_SCHEME}(?:::{_SCHEME})*)://")
_HALF = re.compile(rf"({_SCHEME}):(/?)(?!/)")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HERE = ("", "localhost", "127.0.0.1", "[::1]")


def split(text: str) -> tuple[str, str] | None:
    """Scheme (or a chain of them) and rest of a URL; ``None`` for what is no URL. Schemes are in
    small letters, as RFC 3986 has it; ``file:/x`` (RFC 8089) is a URL too."""
    found = _URL.match(text)
    if found is not None:
        return found[1].lower(), text[found.end() :]
    if text[:6].lower() == "file:/":
        return "file", text[5:]
    head = text.partition("://")[0]
    if head != text and "/" not in head:
        raise Invalid(
            f"{text!r} begins as a URL but {head!r} is not a scheme; write a URL as s3://bucket/x, "
            f"and a path of that name as {'./' + text!r}"
        )
    return None


def half(text: str) -> tuple[str, str, bool] | None:
    """Scheme and rest of what may have been meant as a URL (if there is such a scheme), and whether
    a slash stands between them (``s3:/bucket/x``); ``None`` for all else."""
    found = _HALF.match(text)
    return None if found is None else (found[1].lower(), text[found.end() :], bool(found[2]))


def file_path(rest: str) -> str:
    """The path that ``file://rest`` stands for: RFC 8089, so percent-encoded, and with no host but
    this one. What is no escape is taken as it is, as users write ``file://`` before any path."""
    host, slash, path = rest.partition("/")
    if host.lower() not in _HERE or not slash:
        raise Invalid(
            f"file://{rest} names a host, {host!r}, and no path here; write file:///{rest} for the "
            f"path /{rest}, or {rest!r} without file:// for one below the current directory"
            if rest
            else "file:// names no path; write file:///data/x"
        )
    if "%" not in path:
        return "/" + path
    return os.fsdecode(unquote(_ESCAPE.sub("%25", "/" + path), errors="surrogateescape"))


def file_url(path: str) -> str:
    """The ``file://`` URL of an absolute path, that :func:`file_path` turns back; of what must be
    encoded, only ``%`` is, for people read it."""
    return "file://" + path.replace("%", "%25")


# -- what a file is, for messages ------------------------------------------------------


_KINDS = (
    (b"PK\x03\x04", "a zip file; open what is in it as zip://{path}"),
    (b"PK\x05\x06", "an empty zip file; open it as zip://{path}"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, which h5py reads: save(target, h5py.File(...)[name][...])",
    ),
    (b"CDF", "a NetCDF file, which xarray reads: xarray.open_dataset(...).to_zarr(target)"),
    (b"\x93NUMPY", "a file of NumPy's: save(target, numpy.load(...))"),
    (b"II*\0", "a TIFF file, which tifffile reads: save(target, tifffile.imread(...))"),
    (b"MM\0*", "a TIFF file, which tifffile reads: save(target, tifffile.imread(...))"),
    (b"PAR1", "a Parquet file: save_records(target, pyarrow.parquet.read_table(...))"),
)


def told(url: str) -> str | None:
    """What the file at ``url`` is and what to do; ``None`` where there is none."""
    if not url.startswith("file://"):
        return None
    path = file_path(url.removeprefix("file://"))
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        head = b""
    for mark, words in _KINDS:
        if head.startswith(mark):
            return f"{url} is {words.format(path=path)}"
    return f"{url} is a file, and an array or group is a folder; check the path"
