"""Replies of a Redis server, read so that none takes more memory than its command can need.

The parsers of redis-py and hiredis believe a length and gather what it announces, or make room
for all elements of an array of a thousand million. This one is told before each reply how much
may come (:class:`ReplyLimit`) and compares each length before it takes a byte that follows;
nothing is allocated for bytes that have not arrived, beyond a piece.

That is as fast as hiredis for a few large strings, and slower for thousands of short ones. Those
are read by hiredis, where it is installed, as long as all of a round trip stays below 64 MiB and
no array is announced that would take much at once; else the round trip is made again, read
exactly (:class:`ReadAgain`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from redis._parsers.base import BaseParser
from redis._parsers.hiredis import _socket_can_read, _socket_is_closed
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as Late

from tensorstash.errors import counted

_PIECE = 64 << 10
_LARGE_PIECE = 1 << 20
_LINE = 64 << 10  # bytes of an error or a status; those of Lua carry a part of the script
_NUMBER = 20
_QUICK_BYTES = 64 << 20
_MANY = re.compile(rb"\r\n[*%~>|]\d{6}")
_TAIL = 9  # bytes of the last piece, in which what _MANY finds may begin
_START = b"\r\n".rjust(_TAIL)
_ENOUGH = 32  # strings that are as quickly read exactly
_DEPTH = 4  # CLUSTER SLOTS: ranges, nodes, what is known of a node


_MORE = object()
_hiredis: Any = import_module("hiredis") if find_spec("hiredis") else None


class ReplyLimit(NamedTuple):
    """What may come in one reply: so many elements of arrays, at all depths, and so many bytes of
    strings; or, by ``sizes``, the most bytes of each string, in order, and no more strings."""

    elements: int = 64
    nbytes: int = 64 << 10
    sizes: Sequence[int] | None = None
    whole: bool = False
    """The strings are whole values (and their versions), of which one can be too large."""
    short: bool = True
    """Most strings are expected to be short."""


SMALL_REPLY = ReplyLimit()
"""For numbers, confirmations and what is not told otherwise."""


class TooLarge(InvalidResponse):
    """A string is longer than it can be: the ``index``-th of its reply has ``nbytes`` bytes."""

    def __init__(self, index: int, nbytes: int, most: int) -> None:
        super().__init__(f"{counted(nbytes, 'byte')} where there can be {most}")
        self.index = index
        self.nbytes = nbytes
        self.most = most
        self.command: Any = None
        """The command whose reply it was."""


class ReadAgain(InvalidResponse):
    """More comes than is read quickly: ask again, and read exactly."""


class BoundedParser(BaseParser):
    """What a connection of redis-py asks of a parser, for protocol 2."""

    def __init__(self, socket_read_size: int = _PIECE) -> None:
        self.limit = SMALL_REPLY
        """Of the next reply."""
        self._sock: Any = None
        self._data = b""
        self._at = 0
        self._elements = self._nbytes = self._strings = 0
        self._reader: Any = None
        self._window = bytearray(_TAIL + _PIECE)
        self._left = 0

    def on_connect(self, connection: Any, **_: Any) -> None:
        """Begin with what comes from its socket."""
        self._sock = connection._sock
        self._data, self._at, self.limit, self._reader = b"", 0, SMALL_REPLY, None

    def begin(self, limits: Sequence[ReplyLimit], exact: bool) -> None:
        """Replies to a round trip come next; nothing is left of earlier ones."""
        many = len(limits) > _ENOUGH or any(len(limit.sizes or ()) > _ENOUGH for limit in limits)
        short = many and all(limit.short for limit in limits)
        if exact or not short or _hiredis is None:
            self._reader = None
            return
        self._reader = _hiredis.Reader(
            protocolError=InvalidResponse, replyError=self.parse_error, notEnoughData=_MORE
        )
        self._window[:_TAIL] = _START
        self._left = _QUICK_BYTES

    def on_disconnect(self) -> None:
        """Forget what was not read."""
        self._sock = self._reader = None
        self._data, self._at = b"", 0

    def can_read(self, timeout: float = 0) -> bool:
        """Whether bytes are there that no command asked for; an error where the server is gone."""
        if self._sock is None:
            raise Lost("the connection was closed")
        if self._at < len(self._data) or (self._reader is not None and self._reader.has_data()):
            return True
        if not _socket_can_read(self._sock, timeout):
            return False
        if _socket_is_closed(self._sock):
            raise Lost("the server closed the connection")
        return True

    def read_response(self, **_: Any) -> Any:
        """The next reply; an error of the server's is returned, or raised where it ends the
        connection."""
        if self._reader is None:
            limit = self.limit
            self._elements, self._nbytes, self._strings = limit.elements, limit.nbytes, 0
            reply = self._reply(0)
        else:
            reply = self._quick()
        if isinstance(reply, Lost):
            raise reply
        return reply

    # -- within -------------------------------------------------------------------

    def _quick(self) -> Any:
        reader, window = self._reader, self._window
        while (reply := reader.gets()) is _MORE:
            size = self._receive_into(memoryview(window)[_TAIL:])
            self._left -= size
            if self._left < 0 or _MANY.search(window, 0, _TAIL + size):
                raise ReadAgain("more than is read quickly")
            reader.feed(window, _TAIL, size)
            window[:_TAIL] = window[size : size + _TAIL]
        return reply

    def _reply(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return self._string(rest)
        if kind == b"*":
            return self._array(rest, depth)
        if kind == b"+":
            return rest
        if kind == b":":
            return self._number(rest)
        if kind == b"-":
            return self.parse_error(rest.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
        raise InvalidResponse(f"a reply cannot begin with {kind!r}")

    def _array(self, text: bytes, depth: int) -> list[Any] | None:
        count = self._length(text)
        if count is None:
            return None
        self._elements -= count
        if self._elements < 0:
            raise InvalidResponse(
                f"an array of {counted(count, 'element')} where there can be fewer"
            )
        if depth == _DEPTH:
            raise InvalidResponse(f"arrays nested more than {_DEPTH} deep")
        found: list[Any] = []
        add = found.append
        for _ in range(count):
            # Most elements are short strings that came whole: they need no call each.
            data, at = self._data, self._at
            stop = data.find(b"\r\n", at, at + _NUMBER)
            if stop > 0 and data[at] == 36 and data[at + 1 : stop].isdigit():
                size, begin = int(data[at + 1 : stop]), stop + 2
                end = begin + size
                if data[end : end + 2] == b"\r\n":
                    self._admit(size)
                    self._at = end + 2
                    add(data[begin:end])
                    continue
            add(self._reply(depth + 1))
        return found

    def _string(self, text: bytes) -> bytes | None:
        size = self._length(text)
        if size is None:
            self._strings += 1
            return None
        self._admit(size)
        whole = size + 2
        data, at = self._data, self._at
        if len(data) - at < whole:
            pieces = [data[at:]]
            left = whole - len(pieces[0])
            while left:
                piece = self._receive(min(left, _LARGE_PIECE))
                pieces.append(piece)
                left -= len(piece)
            data, at = b"".join(pieces), 0
        self._data, self._at = data, at + whole
        if data[at + size : at + whole] != b"\r\n":
            raise InvalidResponse("a string that is longer than its length says")
        return data[at : at + size]

    def _admit(self, size: int) -> None:
        """Count a string that is about to be read, or refuse it."""
        sizes, index = self.limit.sizes, self._strings
        self._strings = index + 1
        if sizes is None:
            self._nbytes -= size
            if self._nbytes < 0:
                raise TooLarge(index, size, self.limit.nbytes)
        elif index >= len(sizes):
            raise InvalidResponse("more strings than can be")
        elif size > sizes[index]:
            raise TooLarge(index, size, sizes[index])

    def _length(self, text: bytes) -> int | None:
        if text == b"-1":
            return None
        number = self._number(text)
        if number < 0:
            raise InvalidResponse("a length below 0")
        return number

    def _number(self, text: bytes) -> int:
        digits = text[1:] if text[:1] == b"-" else text
        if len(text) > _NUMBER or not digits.isdigit():
            raise InvalidResponse("a number that is none")
        return int(text)

    def _line(self) -> bytes:
        while True:
            data, at = self._data, self._at
            stop = data.find(b"\r\n", at)
            if stop >= 0:
                self._at = stop + 2
                return data[at:stop]
            if len(data) - at > _LINE:
                raise InvalidResponse("a line that does not end")
            self._data, self._at = data[at:] + self._receive(_PIECE), 0

    def _receive_into(self, window: memoryview) -> int:
        if self._sock is None:
            raise Lost("the connection was closed")
        try:
            size: int = self._sock.recv_into(window)
        except TimeoutError:
            raise Late("no answer in time") from None
        if not size:
            raise Lost("the server closed the connection")
        return size

    def _receive(self, most: int) -> bytes:
        if self._sock is None:
            raise Lost("the connection was closed")
        try:
            data: bytes = self._sock.recv(most)
        except TimeoutError:
            raise Late("no answer in time") from None
        if not data:
            raise Lost("the server closed the connection")
        return data
