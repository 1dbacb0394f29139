"""A source of rows in memory that counts what is read of it, and fails when told to."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tensorstash.columns import Columns, Ragged
from tensorstash.loading.source import Blocks


class Counted:
    """Rows whose every field is made from the row's number, in blocks of ``size`` rows, or in
    ``blocks``. ``taken`` counts by block, ``calls`` reads; ``fault`` is called with the rows of
    each read before it."""

    fingerprint = "counted"

    def __init__(
        self,
        rows: int,
        size: int = 16,
        *,
        blocks: Blocks | None = None,
        plain: bool = True,
        fault: Callable[[Any], None] | None = None,
        delay: float = 0.0,
    ) -> None:
        self.rows = rows
        self.blocks = Blocks.regular(rows, size) if blocks is None else blocks
        self.plain = plain
        self.fault = fault
        self.delay = delay
        self.taken: Counter[int] = Counter()
        self.calls = 0
        self.most = 0
        self.threads: set[str] = set()
        self._reading = 0
        self._locks: dict[int, threading.Lock] = {}
        self._block_of = np.empty(rows, np.int64)
        for k in range(len(self.blocks)):
            self._block_of[self.blocks.rows(k)] = k

    @property
    def _lock(self) -> threading.Lock:
        # A lock that a fork copies may be held, by a thread that the child has not.
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __len__(self) -> int:
        return self.rows

    @property
    def row_bytes(self) -> int:
        return 8 + 12

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {"row": ((), np.dtype("int64")), "image": ((2, 3), np.dtype("uint16"))}

    def take(self, rows: Any, out: Mapping[str, Any] | None = None) -> Columns:
        with self._lock:
            self.calls += 1
            self._reading += 1
            self.most = max(self.most, self._reading)
            self.taken.update(np.unique(self._block_of[rows]).tolist())
            self.threads.add(threading.current_thread().name)
        try:
            if self.delay:
                time.sleep(self.delay)
            if self.fault is not None:
                self.fault(rows)
            return self.made(rows, out or {})
        finally:
            with self._lock:
                self._reading -= 1

    def made(self, rows: Any, out: Mapping[str, Any]) -> Columns:
        found: Columns = {"row": rows, "image": image_of(rows)}
        for name, place in out.items():
            place[...] = found[name]
            found[name] = place
        if not self.plain:
            found["text"] = np.array([text_of(i) for i in rows], np.dtypes.StringDType())
            found["tokens"] = Ragged.of([tokens_of(i) for i in rows], np.dtype("int32"))
            found["boxes"] = Ragged.of([boxes_of(i) for i in rows], np.dtype("float32"), 2)
            found["json"] = [{"row": int(i)} for i in rows]
        return found

    def present(self, columns: Columns) -> Any:
        return columns


def image_of(rows: Any) -> Any:
    return (np.asarray(rows)[:, None, None] + np.arange(6).reshape(2, 3)).astype("uint16")


def text_of(row: int) -> str:
    return f"row {row} " + "é" * (row % 40)


def tokens_of(row: int) -> Any:
    return np.arange(row % 7, dtype="int32") + row


def boxes_of(row: int) -> Any:
    return np.full((row % 3, 4), row, "float32")


def check_batch(batch: Columns) -> list[int]:
    """The numbers of its rows, whose other fields are found to be theirs."""
    rows = batch["row"].tolist()
    assert np.array_equal(batch["image"], image_of(batch["row"]))
    if "text" in batch:
        assert batch["text"].tolist() == [text_of(i) for i in rows]
        assert batch["json"] == [{"row": i} for i in rows]
        assert batch["tokens"] == Ragged.of([tokens_of(i) for i in rows], np.dtype("int32"))
        assert batch["boxes"] == Ragged.of([boxes_of(i) for i in rows], np.dtype("float32"), 2)
    return rows
