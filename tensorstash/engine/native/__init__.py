"""Reads, and the encoding of whole chunks, carried out by a small compiled kernel: one call for
many chunks, without the interpreter's lock.

It is an accelerator, never a condition. Where it was not built, where ``TENSORSTASH_NATIVE=0`` is
set, or where it knows no way to read or encode a chunk, Python does, as it reads each chunk that is
damaged: errors are the same, in the same words, and so are the bytes that are stored.
"""

from __future__ import annotations

from . import library as _library
from .library import NAMES

__all__ = ["available", "counts", "status"]


def available() -> bool:
    """Whether the kernel is built and not turned off."""
    return _library.enabled and _library.library.kernel is not None


def status() -> str:
    """Which way chunks are read and encoded, and why, in one line.

    Returns:
        ``"native: ..."`` with the decoders that were found, or ``"python: ..."`` with what is in
        the way.

    Example:
        >>> from tensorstash.engine import native
        >>> native.status().partition(":")[0] in ("native", "python")
        True
    """
    if not _library.enabled:
        return "python: TENSORSTASH_NATIVE=0 turns the kernel off"
    if _library.library.kernel is None:
        return "python: the kernel is not built; with a C compiler there, install this again"
    names = [NAMES[kind] for kind in sorted(_library.library.kinds)]
    return f"native: {', '.join(names)}"


def counts() -> dict[str, int]:
    """Tasks that the kernel carried out in this process: chunks that it read, in all (``"tasks"``)
    and by what they went through (``"raw"``, ``"blosc"``, ``"zstd"``, ``"gzip"``, ``"zlib"``,
    ``"lz4"``, ``"crc32c"``, ``"swap"``), and those that it encoded, under the same names behind
    ``"encoded "``; chunks of nothing but fill, of which nothing is made, are not among these. Also
    the ``"indices"`` of shards that it read."""
    return dict(_library.library.counts())
