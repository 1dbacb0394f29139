"""Inflating a member piece by piece, in no more memory than a piece takes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

_PIECE = 1 << 20
_FEED = 1 << 16


class Inflated:
    """The pieces of a deflated value that begins at ``begin`` of an open file and must end by
    ``stop``; ``zlib.error`` where it is damaged."""

    def __init__(self, fd: int, begin: int, stop: int) -> None:
        self._fd, self._begin, self._stop = fd, begin, stop
        self.end: int | None = None
        """Where it ends in the file, once all pieces have come; ``None`` where it is cut."""

    def __iter__(self) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(-15)
        at, feed = self._begin, b""
        while not unpacker.eof:
            if not feed:
                feed = os.pread(self._fd, min(_FEED, max(self._stop - at, 0)), at)
                at += len(feed)
            piece = unpacker.decompress(feed, _PIECE)
            if not piece and not feed:
                return
            feed = unpacker.unconsumed_tail
            yield piece
        self.end = at - len(unpacker.unused_data)
