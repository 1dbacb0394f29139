"""Single rows stored by who stores many: what can be known before is known before."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import ACCESS_WRITE, mmap
from typing import Any

import numpy as np

from ...driver import Opened, OpenFile, Parts
from ...errors import Corrupt
from ..chunks import Chunks
from ..native import library as native
from ..native.library import library
from .writing import InPlaceWriter, as_bytes

_OPEN_FILES = 32  # of an array, that are kept for who stores single rows


class Slot:
    """Where single rows of an array lie, for who stores many: all of a row is one piece of one
    chunk."""

    def __init__(self, chunks: Chunks) -> None:
        """Of an array of which :meth:`fits` is true."""
        spec = chunks.spec
        writer = InPlaceWriter(chunks)
        self._chunks = chunks
        self._nbytes, self._fill = writer._nbytes, writer._fill
        self._rows = writer._shape[0]
        self._step = self._nbytes // self._rows
        # With its owner: it closes as soon as the driver does not keep it.
        self._files: dict[int, tuple[OpenFile, weakref.ref[Any], Any]] = {}
        self.shape = spec.shape[1:]
        self.dtype = spec.dtype
        # Of others, as of records with times in them, there is no buffer.
        self._memory = spec.dtype.kind in "biufc" and spec.dtype.type.__module__ == "numpy"

    @staticmethod
    def fits(chunks: Chunks) -> bool:
        """Whether rows of this array lie so."""
        shape = chunks.spec.grid.chunks
        return bool(shape) and shape is not None and shape[1:] == chunks.spec.shape[1:]

    def plain(self, value: Any) -> Any:
        """The memory of ``value``, where that is a row as it is stored; else ``None``."""
        if type(value) is not np.ndarray:
            return None
        if value.dtype != self.dtype or value.shape != self.shape or not value.flags.c_contiguous:
            return None
        return value if self._memory else as_bytes(value)

    def put(self, row: int, data: Any) -> None:
        """Store what :meth:`plain` returned as row ``row``."""
        number, within = divmod(row, self._rows)
        data = as_bytes(data) if isinstance(data, np.ndarray) else data
        part = Parts(self._key(number), self._nbytes, self._fill, ((within * self._step, data),))
        try:
            self._chunks.driver.put_parts((part,))
        except Corrupt as error:
            raise self._chunks.oversized(error) from error.__cause__

    def job(self, row: int, data: Any) -> tuple[tuple[OpenFile, int, Any], Any] | None:
        """The same as the kernel takes it, and what keeps its file open, whose last is to be called
        after it; ``None`` where rows are written by :meth:`put` alone."""
        number = row // self._rows
        known = self._files.get(number)
        owner = None if known is None else known[1]()
        held = (
            self._opened(number) if known is None or owner is None else (known[0], owner, known[2])
        )
        if held is None:
            return None
        return (held[0], row % self._rows * self._step, data), held

    def _opened(self, number: int) -> Opened | None:
        try:
            held = self._chunks.driver.opened(self._key(number), self._nbytes, self._fill)
        except Corrupt as error:
            raise self._chunks.oversized(error) from error.__cause__
        if held is None:
            return None
        file = held[0]
        whole = os.fstat(file.descriptor).st_blocks * 512 >= file.size  # a hole may find no room
        if whole and library.kernel is not None and library.kernel.reserves(file.descriptor):
            with suppress(OSError, ValueError):  # no memory is left to map it, say
                memory = mmap(file.descriptor, file.size, access=ACCESS_WRITE)
                held = (file._replace(memory=memory), *held[1:])
        files = self._files
        if len(files) >= _OPEN_FILES:
            files.clear()
        owner = weakref.ref(held[1], lambda _: files.pop(number, None))
        files[number] = held[0], owner, held[2]
        return held

    def holds(self, row: int) -> bool:
        """Whether the file of a row is open."""
        return row // self._rows in self._files

    def close(self) -> None:
        """Keep no file open: one is another by now."""
        self._files.clear()

    def _key(self, number: int) -> str:
        return self._chunks.key((number,) + (0,) * (self._chunks.spec.ndim - 1))


def put_row(
    look: tuple[bytes, int, int, int] | None,
    check: Callable[[], object],
    ready: Sequence[tuple[Slot, Any]],
    row: int,
) -> None:
    """Store row ``row`` of some arrays, of what :meth:`Slot.plain` returned for each, after
    ``check``; by the kernel where it is built, which does without ``check`` while ``look`` tells
    that the document (:meth:`Driver.local_path`, and its tag) is the one that is known."""
    patch = library.kernel and library.kernel.patch if native.enabled else None
    if patch is None:
        check()
        for slot, data in ready:
            slot.put(row, data)
        return
    if look is None or not all(slot.holds(row) for slot, _ in ready):
        check()  # before a file is made
    jobs, after = [], []
    for slot, data in ready:
        job = slot.job(row, data)
        if job is None:
            break
        jobs.append(job[0])
        after.append(job[1])
    done = patch(look, jobs) if len(jobs) == len(ready) else 0
    for written in after if done == len(ready) else after[: max(0, done)]:
        written[2](None)
    if done == len(ready):
        return
    if done <= 0 and look is not None:
        check()
    for slot, data in ready[max(0, done) :]:
        slot.close()
        slot.put(row, data)
