"""The compiled kernel, where it was built, and which decoders it found and passed a trial of."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cached import Cached
from ...codec import BytesCodec
from ...memory.returned import when_limited
from ...threads import cores

enabled = os.environ.get("TENSORSTASH_NATIVE", "1") != "0"
"""Whether the kernel may be used: not where ``TENSORSTASH_NATIVE=0`` was set at the start."""

CRC32C, BLOSC, ZSTD, GZIP, ZLIB, LZ4, SWAP = range(7)
"""The kinds of steps, as in kernel.h."""

AGAIN, DONE, ABSENT = range(3)
"""What became of a task, as in kernel.h; what is above was in the way, and is done again too."""

_VERSION = 9  # of what the kernel's functions take, as in module.c

NAMES = ("crc32c", "blosc", "zstd", "gzip", "zlib", "lz4", "swap")


_SCRATCH = 512 << 10  # bytes that a thread keeps from call to call, where there is a limit, or was


class Library:
    """The kernel and its decoders, looked for on first use; ``done`` counts tasks by kind."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self._encodes: dict[tuple[int, tuple[int, ...]], bool] = {}

    @Cached
    def kernel(self) -> Any | None:
        """The module; ``None`` where it was not built, or is another version's."""
        if np.dtype(np.intp).itemsize != 8:  # its tables are of 64-bit numbers
            return None
        try:
            from ._kernel import (  # type: ignore[import-not-found, unused-ignore]
                VERSION,
                Direct,
                capacity,
                encode,
                encoder,
                find,
                gather,
                indices,
                keep,
                pack,
                patch,
                processors,
                reserves,
                run,
                tally,
            )
        except ImportError:
            return None
        if VERSION != _VERSION:  # an editable install may have an older one
            return None
        processors(cores())
        when_limited(partial(keep, _SCRATCH))
        return SimpleNamespace(
            Direct=Direct,
            capacity=capacity,
            encode=encode,
            encoder=encoder,
            find=find,
            gather=gather,
            indices=indices,
            pack=pack,
            patch=patch,
            processors=processors,
            reserves=reserves,
            run=run,
            tally=tally,
        )

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

    def encodes(self, codec: BytesCodec, kind: int, options: tuple[int, ...]) -> bool:
        """Whether it makes just the bytes that ``codec`` makes, which is known by these
        ``options``, of a trial."""
        known = self._encodes.get((kind, options))
        if known is None:
            try:
                known = kind in self.kinds and self._encodes_trials(codec, kind, options)
            except Exception:  # a trial that cannot be made is not passed
                known = False
            self._encodes[kind, options] = known
        return known

    def _encodes_trials(self, codec: BytesCodec, kind: int, options: tuple[int, ...]) -> bool:
        if not self._find_encoder(kind, options):
            return False
        sizes = [n for n in (6000, 60000, 150000) if codec.step_options(n) == options]
        for size in sizes[:2]:  # it is done once in a process, and must not be felt
            plain = _trial_of(size)
            chain = (((kind, size, *options),), size, 4 * size + 4096, 1)
            out = bytearray(self.kernel.capacity(chain))  # type: ignore[union-attr]
            row = np.array([size, 0, 1, 0, 1, -1, -1], np.int64)
            made = np.zeros(1, np.int64)
            group = (0,), np.zeros(1, np.int64), row, None
            task, source = np.zeros((1, 2), np.int64), np.frombuffer(plain, "V1")
            self.encode(chain, (group,), task, source, b"\0", out, made, axes=1, keep=True)
            if made[0] < 0 or bytes(out[: made[0]]) != bytes(codec.encode(plain)):
                return False
        return True

    def _find_encoder(self, kind: int, options: tuple[int, ...]) -> bool:
        """Whether the library is there whose functions Python's codec calls."""
        if kind == CRC32C:
            return True
        assert self.kernel is not None
        which, places, version = _encoder(kind, options)
        return any(self.kernel.encoder(which, place, version) is not None for place in places)

    def encode(
        self,
        chain: tuple[Any, ...],
        groups: tuple[Any, ...],
        tasks: Any,
        source: Any,
        fill: bytes,
        out: Any,
        sizes: Any,
        axes: int,
        keep: bool,
        grain: int = 1,
        following: Any = None,
        puts: tuple[list[bytes], list[bytes], bytes, int, int] | None = None,
    ) -> int:
        """Encode chunks, one a task, in this thread.

        Args:
            chain: Steps ``(kind, size, *options)`` innermost first, bytes of a chunk, the most that
                one may have when stored, bytes of an element.
            groups: What :mod:`.tables` makes of a selection.
            tasks: Of each: where in ``out`` it goes, or which folder is its own, and a row of each
                group.
            source: The array, as raw elements.
            fill: An element, for what of a chunk no element of the array is for.
            out: A place for each task, of as many bytes as ``capacity`` says.
            sizes: Written to: the bytes of each; -1 for one of nothing but fill, which is not
                encoded; -2 for one that Python is to encode; as they were for those not begun.
            axes: Of the array.
            keep: Encode those of nothing but fill too.
            grain: Tasks that a thread takes at a time.
            following: The number of the first (8 bytes), moved on by all calls that share tasks.
            puts: ``(folders, names, writer, stamp, nanoseconds)``, where each becomes a file: the
                folders' paths, each task's name in one, whose temporaries they are, the time that
                the first gets (ns; each next one is given one more), and how long tasks are begun.

        Returns:
            How many were encoded.
        """
        assert self.kernel is not None
        following = bytearray(8) if following is None else following
        done: int = self.kernel.encode(
            *(chain, groups, tasks, source, fill, out, sizes, axes, keep, grain, following, puts)
        )
        return done

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
        picked: Any = None,
        keeps: list[Any] | None = None,
        versions: NDArray[np.int64] | None = None,
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
            picked: Numbers of the tasks, where they are not those from ``first`` on; in order,
                where there are several jobs. Of ``values`` each is of the task at its place then.
            keeps: Memory for all of the chunk, for each task, or ``None`` where none is wanted.
            versions: Of each task three numbers, which become those of its file (as ``tag`` has
                them), where it has one of its own.

        Returns:
            Tasks that were done, that were absent, the bytes that were stored of the former, and
            the nanoseconds of decoding.
        """
        assert self.kernel is not None
        found: tuple[int, int, int, int] = self.kernel.run(
            *(chain, groups, jobs, out, fill, status, ratios, strides),
            *(len(ratios), ord(separator), spans, threads, first, grain, picked, keeps, versions),
        )
        return found

    def indices(
        self, paths: list[bytes], count: int, limit: int, checksum: bool, end: bool
    ) -> list[tuple[tuple[int, int, int], NDArray[np.int64]] | None]:
        """The version and the index of each shard at ``paths``: ``count`` offsets and sizes, of
        what is absent 0 and -1; ``None`` where Python is to look.

        Args:
            paths: One file a shard.
            count: Inner chunks in a shard.
            limit: The most bytes that one can have.
            checksum: CRC-32C stands behind the index.
            end: It stands at the end of the file, not at its beginning.
        """
        assert self.kernel is not None
        out = np.empty((len(paths), count, 2), np.int64)
        versions = np.empty((len(paths), 3), np.int64)
        status = np.zeros(len(paths), np.uint8)
        self.kernel.indices(paths, count, limit, checksum, end, out, versions, status)
        self.done["indices"] += int((status == DONE).sum())
        found: list[tuple[tuple[int, int, int], NDArray[np.int64]] | None] = []
        for code, (inode, modified, size), index in zip(
            status, versions.tolist(), out, strict=True
        ):
            # In memory of its own: what is kept must not keep the others.
            found.append(((inode, modified, size), index.copy()) if code == DONE else None)
        return found

    def counts(self) -> Counter[str]:
        """Tasks by kind, also those of reads that Python has no part in."""
        found = Counter(self.done)
        if self.kernel is not None:
            names = *NAMES, "raw", "tasks"
            found += Counter(dict(zip(names, self.kernel.tally(), strict=True)))
        return found

    def count(self, kinds: tuple[int, ...], done: int, verb: str = "") -> None:
        """``done`` tasks of a chain of ``kinds`` were carried out; ``verb`` is in front of what is
        counted."""
        for name in ("tasks", *({NAMES[kind] for kind in kinds} or {"raw"})):
            self.done[verb + name] += done


library = Library()


def _libraries() -> list[bytes]:
    """Files of modules that bring decoders along, loaded by now."""
    from numcodecs import blosc, lz4, zstd

    return [os.fsencode(module.__file__) for module in (blosc, zstd, lz4) if module.__file__]


_BLOSC, _ZSTD, _SMALL_ZSTD, _ZLIB, _LZ4 = range(5)
"""The encoders, as in kernel.h."""


def _encoder(kind: int, options: tuple[int, ...]) -> tuple[int, list[bytes], str | None]:
    """Which encoder makes such a step's bytes, the libraries that it may be in, and its version,
    where more than one may have it: they must be those of the library that Python's codec calls."""
    from numcodecs import blosc, lz4, zstd

    if kind == BLOSC:
        return _BLOSC, [os.fsencode(blosc.__file__)], None
    if kind == LZ4:
        return _LZ4, [os.fsencode(lz4.__file__)], None
    if kind in (GZIP, ZLIB):
        place = getattr(zlib, "__file__", "")  # where it is part of the interpreter: in there
        return _ZLIB, [os.fsencode(place)], zlib.ZLIB_RUNTIME_VERSION
    if not options[2]:
        return _ZSTD, [os.fsencode(zstd.__file__)], None
    # What zstandard's wheels have in their module cannot be seen from outside, but they bring it a
    # second time, for another binding.
    import zstandard

    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    specs = [find_spec(f"zstandard.{name}") for name in ("backend_c", "_cffi")]
    places = [zstd.__file__, *(spec.origin for spec in specs if spec is not None)]
    return _SMALL_ZSTD, [os.fsencode(place) for place in places if place], version


def _trial_of(size: int) -> bytes:
    """Bytes some of which shrink well, some little, some not at all."""
    rng = np.random.default_rng(size)
    walk = np.cumsum(rng.integers(0, 4, size // 8)).astype("<u2").tobytes()
    rest = bytes(range(256)) * (size // 256 + 1)
    return (walk + bytes(size // 4) + rng.bytes(size // 8) + rest)[:size]


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
