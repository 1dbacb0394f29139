"""How numbers lie in pages: varints, and columns of them by planes of bytes.

Whoever can write to a place chooses what its pages say, so a :class:`Reader` takes nothing that is
not there, and makes no array before the bytes for it were seen.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..driver import REPAIR
from ..errors import Corrupt, counted
from .ids import MOST_NBYTES, MOST_NUMBER, SESSION_BYTES, Reference, from_bytes, to_bytes

_LAST = 63  # where the highest seven bits of a varint are
_WIDTH = 8


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_reference(to: Reference) -> bytes:
    """A reference that stands alone; those of a table are columns."""
    return b"".join((to_bytes(to.session), varint(to.number), varint(to.nbytes)))


def sized(data: bytes) -> bytes:
    """``data`` behind its length."""
    return varint(len(data)) + data


def column(values: NDArray[Any]) -> bytes:
    """Numbers of at least 0: the smallest, a width in bytes, and what each is above it: first the
    low byte of each, then the next. Nothing for no numbers; :meth:`Reader.column` is told how
    many there are."""
    if not len(values):
        return b""
    low = int(values.min())
    above = (values - values.dtype.type(low)).astype("<u8")
    width = (int(above.max()).bit_length() + 7) // 8
    planes = above.view(np.uint8).reshape(-1, _WIDTH)[:, :width].T
    return b"".join((varint(low), bytes((width,)), planes.tobytes()))


def steps(values: NDArray[Any]) -> bytes:
    """Numbers of which each is near the one before: the first, and a column of the differences."""
    if not len(values):
        return b""
    wide = values.astype(np.int64)
    differences = np.diff(wide)
    return varint(int(wide[0])) + column(_zigzag(differences))


class Reader:
    """Reads what the functions above gave; Corrupt, naming the object ``what``, where the bytes are
    something else."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.at

    def fail(self, why: str) -> NoReturn:
        """Corrupt, because the object ``why``."""
        raise Corrupt(f"{self.what} {why}{REPAIR}", key=self.what)

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        if nbytes > self.left:
            self.fail(f"ends {counted(nbytes - self.left, 'byte')} too early")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def byte(self) -> int:
        """The next byte."""
        if self.at == len(self.data):
            self.take(1)
        self.at += 1
        return self.data[self.at - 1]

    def varint(self, most: int) -> int:
        """The next varint, at most ``most``."""
        byte = self.byte()
        if byte < 128:
            return byte if byte <= most else self.most(byte, most)
        value, shift = byte & 127, 0
        while byte > 127:
            shift += 7
            byte = self.byte()
            value |= (byte & 127) << shift
            if not byte or shift > _LAST:
                self.fail("has a number of more bytes than it needs")
        return self.most(value, most)

    def most(self, value: int, most: int) -> int:
        """``value``, which is at most ``most``."""
        if value > most:
            self.fail(f"has the number {value}, the most is {most}")
        return value

    def sized(self, most: int) -> bytes:
        """The next bytes behind their length, at most ``most``."""
        return self.take(self.varint(most))

    def session(self) -> str:
        """The next session's id."""
        return from_bytes(self.take(SESSION_BYTES), self.what)

    def reference(self) -> Reference:
        """The next reference."""
        session, number = self.session(), self.varint(MOST_NUMBER - 1)
        return Reference(session, number, self.varint(MOST_NBYTES - 1))

    def column(self, count: int, most: int) -> NDArray[Any]:
        """The next column of ``count`` numbers, each at most ``most`` (below 2^63); its dtype is
        the smallest unsigned one that holds them."""
        if not count:
            return np.zeros(0, np.uint8)
        low = self.varint(most)
        width = self.byte()
        if width > _WIDTH:
            self.fail(f"has numbers of {counted(width, 'byte')}, the most is {_WIDTH}")
        planes = np.frombuffer(self.take(width * count), np.uint8).reshape(width, count)
        wide = np.zeros((count, _WIDTH), np.uint8)
        wide[:, :width] = planes.T
        values = wide.view("<u8")[:, 0]
        high = self.most(low + int(values.max()), most)
        return (values + np.uint64(low)).astype(np.min_scalar_type(high))

    def steps(self, count: int, most: int) -> NDArray[Any]:
        """The next ``count`` numbers of :func:`steps`."""
        if not count:
            return np.zeros(0, np.uint8)
        values = np.empty(count, np.int64)
        values[0] = self.varint(most)
        values[1:] = _unzigzag(self.column(count - 1, (1 << 63) - 1))
        # Sums that do not fit wrap round; what counts is where they come out.
        np.cumsum(values, out=values)
        if values.min() < 0:
            self.fail("has a number below 0")
        return values.astype(np.min_scalar_type(self.most(int(values.max()), most)))

    def end(self) -> None:
        """Nothing is left."""
        if self.left:
            self.fail(f"has {counted(self.left, 'byte')} too many")


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def _unzigzag(values: NDArray[Any]) -> NDArray[np.int64]:
    wide = values.astype(np.uint64)
    return (wide >> np.uint64(1)).astype(np.int64) ^ -(wide & np.uint64(1)).astype(np.int64)
