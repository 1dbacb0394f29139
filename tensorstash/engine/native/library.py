"""The compiled kernel, where it was built, and which decoders it found and passed a trial of."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...cached import Cached

enabled = os.environ.get("TENSORSTASH_NATIVE", "1") != "0"
"""Whether the kernel may be used: not where ``TENSORSTASH_NATIVE=0`` was set at the start."""

CRC32C, BLOSC, ZSTD, GZIP, ZLIB, LZ4, SWAP = range(7)
"""The kinds of steps, as in kernel.h."""

AGAIN, DONE, ABSENT = range(3)
"""What became of a task, as in kernel.h; what is above was in the way, and is done again too."""

_VERSION = 1  # of what the kernel's functions take, as in module.c

NAMES = ("crc32c", "blosc", "zstd", "gzip", "zlib", "lz4", "swap")


class Library:
    """The kernel and its decoders, looked for on first use; ``done`` counts tasks by kind."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    @Cached
    def kernel(self) -> Any | None:
        """The module; ``None`` where it was not built, or is another version's."""
        if np.dtype(np.intp).itemsize != 8:  # its tables are of 64-bit numbers
            return None
        try:
            from ._kernel import VERSION, find, run  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return None
        try:
            from ._kernel import (  # type: ignore[import-not-found, unused-ignore]
                gather,
                patch,
                reserves,
            )
        except ImportError:  # built before there were these
            gather = patch = reserves = None
        # An editable install may have an older one.
        known = {"find": find, "run": run, "gather": gather, "patch": patch, "reserves": reserves}
        return SimpleNamespace(**known) if VERSION == _VERSION else None

    @Cached
    def kinds(self) -> frozenset[int]:
        """The steps that it carries out: those whose decoder was found and decodes a trial."""
        if self.kernel is None:
            return frozenset()
        found = self.kernel.find(*_libraries())
        kinds = {kind for kind in range(len(NAMES)) if found >> kind & 1}
        return frozenset(kind for kind in kinds if self._works(kind))

    def _works(self, kind: int) -> bool:
        """Whether a trial passes; one that cannot be made, for want of a package, does not."""
        try:
            return self._tried(kind)
        except Exception:
            return False

    def _tried(self, kind: int) -> bool:
        """Whether the kernel decodes what the codec's own library encodes, and refuses it cut."""
        plain = np.arange(3000, dtype=">u2" if kind == SWAP else "<u2").tobytes()
        stored = _TRIALS[kind](plain)
        wanted = np.frombuffer(plain, ">u2").astype("=u2").tobytes() if kind == SWAP else plain
        size = 2 if kind == SWAP else len(plain)
        for value, expected in ((stored, DONE), (stored[:-1], None)):
            out, status = bytearray(len(plain)), bytearray(1)
            row = np.array([3000, 0, 2, 0, 2, -1, -1], np.int64)
            groups = (((0,), np.zeros(1, np.int64), row, None),)
            jobs = [(b"", None, None, [value], (0,), (1,))]
            self.run(
                (((kind, size),), len(plain), len(value), 2),
                groups,
                jobs,
                np.frombuffer(out, "V2"),
                None,
                status,
                (1,),
                (0,),
            )
            if (status[0] == DONE) != (expected == DONE):
                return False
            if expected == DONE and out != wanted:
                return False
        return True

    def run(
        self,
        chain: tuple[Any, ...],
        groups: tuple[Any, ...],
        jobs: list[Any],
        out: Any,
        fill: bytes | None,
        status: Any,
        ratios: tuple[int, ...],
        strides: tuple[int, ...],
        separator: str = "/",
        spans: bool = False,
        threads: int = 1,
        first: int = 0,
        grain: int = 1,
    ) -> tuple[int, int, int, int]:
        """Carry out the tasks from ``first`` on, one for each item of ``status``.

        Args:
            chain: Steps ``(kind, size)`` outermost first, bytes of a chunk, the most that one
                has when stored, bytes of an element.
            groups: What :mod:`.tables` makes of a selection.
            jobs: ``(path, index, tag, values, low, high)``: tasks are the product of the rows
                ``low`` to ``high`` of each group; ``path`` begins each file's name, or, with the
                ``index`` of a shard of version ``tag``, is the one file's; ``values`` are a buffer
                each, or ``None``, for what is in memory.
            out: The output, as raw elements.
            fill: An element for what is absent; ``None``: those are left to the caller.
            status: A byte a task, written to.
            ratios: Inner chunks in a shard, along each axis.
            strides: Of an inner chunk's place in the index, along each axis.
            separator: What stands between the numbers of a chunk in a file's name.
            spans: Of plain chunks of which little is wanted only that is read.
            threads: The most threads.
            first: The first task.
            grain: Tasks that a thread takes at a time.

        Returns:
            Tasks that were done, that were absent, the bytes that were stored of the former, and
            the nanoseconds of decoding.
        """
        assert self.kernel is not None
        found: tuple[int, int, int, int] = self.kernel.run(
            *(chain, groups, jobs, out, fill, status, ratios, strides),
            *(len(ratios), ord(separator), spans, threads, first, grain),
        )
        return found

    def count(self, kinds: tuple[int, ...], done: int) -> None:
        """``done`` tasks of a chain of ``kinds`` were carried out."""
        self.done["tasks"] += done
        for name in {NAMES[kind] for kind in kinds} or {"raw"}:
            self.done[name] += done


library = Library()


def _libraries() -> list[bytes]:
    """Files of modules that bring decoders along, loaded by now."""
    from numcodecs import blosc, lz4, zstd

    return [os.fsencode(module.__file__) for module in (blosc, zstd, lz4) if module.__file__]


def _crc32c(plain: bytes) -> bytes:
    import google_crc32c

    return plain + int(google_crc32c.value(plain)).to_bytes(4, "little")


def _blosc(plain: bytes) -> bytes:
    from numcodecs import blosc

    return bytes(blosc.compress(plain, b"lz4", 5, blosc.SHUFFLE, 1024, 2))


def _zstd(plain: bytes) -> bytes:
    from numcodecs import zstd

    return bytes(zstd.compress(plain, 1))


def _gzip(plain: bytes) -> bytes:
    return zlib.compress(plain, 1, 31)


def _lz4(plain: bytes) -> bytes:
    from numcodecs import lz4

    return bytes(lz4.compress(plain))


_TRIALS: dict[int, Callable[[bytes], bytes]] = {
    CRC32C: _crc32c,
    BLOSC: _blosc,
    ZSTD: _zstd,
    GZIP: _gzip,
    ZLIB: lambda plain: zlib.compress(plain, 1),
    LZ4: _lz4,
    SWAP: bytes,
}
