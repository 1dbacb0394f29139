"""What arrives from a remote store, decoded and placed by the kernel: some arrivals a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..caching.cache import Cache
from ..chunks import Chunks
from ..remote import Arrival
from ..stats import Meter
from .library import ABSENT, AGAIN, DONE, Library
from .steps import Steps
from .tables import Table

_TOGETHER = 64
_BYTES = 512 << 10  # decoded: what is decoded only after so much more came must not matter


class Arrivals:
    """Places the arrivals of one read in ``out``, whose tables are ``groups``; what is to be kept
    goes to ``cache``, decoded whole."""

    def __init__(
        self,
        chunks: Chunks,
        library: Library,
        steps: Steps,
        groups: Table,
        out: NDArray[Any],
        fill: bytes | None,
        cache: Cache | None,
        meter: Meter,
    ) -> None:
        assert chunks.pipeline is not None
        self._stored = chunks.pipeline.stored
        self._library = library
        self._steps = steps
        self._groups = groups
        self._out = out
        self._fill = fill
        self._cache = cache
        self._meter = meter
        self._low = (0,) * len(groups)
        self._high = tuple(group.many for group in groups)
        self._ones = (1,) * chunks.spec.ndim
        self._zeros = (0,) * chunks.spec.ndim
        self._numbers: list[tuple[tuple[int, ...], dict[Any, int]]] = []
        apart = 1
        for group in reversed(groups):
            rows = {chunk: row * apart for chunk, row in group.numbers().items()}
            self._numbers.append((group.axes, rows))
            apart *= group.many

    def batches(self, arrivals: Iterable[Arrival]) -> Iterator[list[Arrival]]:
        """``arrivals``, some at a time."""
        most = max(1, min(_TOGETHER, _BYTES // self._steps.nbytes))
        some: list[Arrival] = []
        try:
            for arrival in arrivals:
                some.append(arrival)
                if len(some) >= most:
                    yield some
                    some = []
        except Exception:  # of what came before it, an error there is the first
            if some:
                yield some
            raise
        if some:
            yield some

    def place(self, some: list[Arrival]) -> list[Arrival]:
        """Bring chunks to their places: returns the arrivals that are left, in their order."""
        # Of a part that came twice, as its shard changed meanwhile, the later one counts.
        last = {self._number(arrival.place): arrival for arrival in some}
        picked = [number for number, arrival in last.items() if self._takes(arrival)]
        if not picked:
            return [*last.values()]
        taken = [last[number] for number in picked]
        keeps = [self._memory(arrival) for arrival in taken] if self._cache is not None else None
        status = np.full(len(taken), AGAIN, np.uint8)
        job = b"", None, None, [one.data for one in taken], self._low, self._high
        try:
            done, _, nbytes, nanoseconds = self._library.run(
                *(self._steps.chain, self._groups, [job], self._out, self._fill, status),
                *(self._ones, self._zeros),
                picked=np.array(picked, np.int64),
                keeps=None if keeps is None else [self._raw(keep) for keep in keeps],
            )
        except (ValueError, BufferError):  # refused before it began: all are left to Python
            return [*last.values()]
        if done:
            self._meter.decoded(nbytes, nanoseconds / 1e9, done)
            self._library.count(self._steps.kinds, done)
        for k, (number, arrival) in enumerate(zip(picked, taken, strict=True)):
            if status[k] not in (DONE, ABSENT):
                continue
            del last[number]
            chunk = keeps[k] if keeps is not None else None
            if chunk is not None and self._cache is not None:
                chunk.flags.writeable = False
                self._cache.put(arrival.name, arrival.tag, chunk, chunk.nbytes)
        return [*last.values()]

    def _takes(self, arrival: Arrival) -> bool:
        """Whether the kernel can: what is absent, or comes whole and is not kept already."""
        if arrival.data is None:
            absent = arrival.chunk is None and not arrival.pieces
            return absent and self._fill is not None
        return arrival.span is None

    def _number(self, chunk: tuple[int, ...]) -> int:
        """Of the task of a chunk: its place in the product of the groups."""
        number = 0
        for axes, rows in self._numbers:
            number += rows[chunk[axes[0]] if len(axes) == 1 else tuple(chunk[k] for k in axes)]
        return number

    def _memory(self, arrival: Arrival) -> NDArray[Any] | None:
        return None if arrival.data is None else np.empty(self._stored.shape, self._stored.dtype)

    def _raw(self, chunk: NDArray[Any] | None) -> Any:
        """Bytes, for no buffer has every dtype."""
        return None if chunk is None else chunk.reshape(-1).view(np.uint8)
