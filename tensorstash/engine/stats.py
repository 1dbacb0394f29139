"""What one array handle cost so far: chunks, bytes, time, and what went over the wire."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from threading import get_ident

from ..driver import Driver, Traffic


@dataclass(frozen=True)
class Stats:
    """What a handle cost since it was opened in this process, as ``array.stats`` returns it.

    A forked child and a handle that was pickled count from 0. Requests and bytes are the driver's,
    which all arrays of a group share; they are 0 for drivers that send nothing anywhere.

    Attributes:
        chunks: chunks that were decoded.
        encoded_bytes: the stored bytes that they were decoded from.
        decode_seconds: the time that decoding took, summed over threads.
        cache_hits: chunks that were in memory already, by ``cache=``.
        requests: requests sent, repeated ones included.
        retries: requests that were repeated.
        bytes_read: bytes received.
        bytes_written: bytes sent as values.
        disk_hits: values read from the files of ``cache_dir=``.

    >>> a = stash.save({}, np.arange(6), chunks=3)
    >>> total = a[:4].sum()
    >>> a.stats.chunks, a.stats.cache_hits
    (2, 0)
    """

    chunks: int = 0
    encoded_bytes: int = 0
    decode_seconds: float = 0.0
    cache_hits: int = 0
    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    disk_hits: int = 0


class Meter:
    """Counts for one handle. Each thread of each process counts for itself, so that none needs
    a lock; a forked child returns what it counted itself."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], _Count] = {}
        self.direct = array("q", [0] * 5)
        """Counted by the kernel: of which process, chunks, bytes, nanoseconds, hits."""

    def _mine(self) -> _Count:
        key = os.getpid(), get_ident()
        return self._counts.get(key) or self._counts.setdefault(key, _Count())

    def decoded(self, nbytes: int, seconds: float, chunks: int = 1) -> None:
        """A chunk was decoded, or several together, from ``nbytes`` in ``seconds``."""
        count = self._mine()
        count.chunks += chunks
        count.nbytes += nbytes
        count.seconds += seconds

    def hit(self, chunks: int = 1) -> None:
        """Chunks were kept from earlier."""
        self._mine().hits += chunks

    def stats(self, driver: Driver) -> Stats:
        """All counts, with those of ``driver``."""
        mine = [count for (pid, _), count in [*self._counts.items()] if pid == os.getpid()]
        traffic = driver.traffic or Traffic()
        process, *direct = self.direct
        if process == os.getpid():
            chunks, nbytes, nanoseconds, hits = direct
            mine.append(_Count(chunks, nbytes, nanoseconds / 1e9, hits))
        return Stats(
            chunks=sum(count.chunks for count in mine),
            encoded_bytes=sum(count.nbytes for count in mine),
            decode_seconds=sum(count.seconds for count in mine),
            cache_hits=sum(count.hits for count in mine),
            requests=traffic.requests,
            retries=traffic.retries,
            bytes_read=traffic.bytes_read,
            bytes_written=traffic.bytes_written,
            disk_hits=traffic.disk_hits,
        )


@dataclass(slots=True)
class _Count:
    chunks: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    hits: int = 0
