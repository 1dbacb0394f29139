"""Bodies of HTTP replies, read in pieces and no further than they can be long.

What a server announces is believed only as a limit: nothing is allocated for bytes that have not
come, and one that goes on sending is cut off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tensorstash.errors import DriverError, counted

UNTOLD = 256 << 20
"""Bytes of a body that nothing limits: neither who asks nor a Content-Length."""
ANNOUNCED = 16 << 30
"""Bytes of a body that only its Content-Length limits."""
PAGE = 16 << 20
"""Bytes of a page of a listing, or of a server's words about an error."""

_PIECE = 1 << 20


class Surplus(Exception):
    """More bytes than there can be were announced or came; ``most`` is what there can be."""

    def __init__(self, nbytes: int, most: int) -> None:
        super().__init__(f"{counted(nbytes, 'byte')} where there can be {most}")
        self.nbytes = nbytes
        self.most = most


def limit(announced: int | None, most: int | None) -> int:
    """The bytes that a body may have; :class:`Surplus` where it announces more."""
    if most is None:
        most = UNTOLD if announced is None else ANNOUNCED
    if announced is None:
        return most
    if announced > most:
        raise Surplus(announced, most)
    return announced


async def read(
    piece: Callable[[int], Awaitable[bytes]],
    most: int,
    came: Callable[[int], None] | None = None,
    cut: bool = False,
) -> bytes:
    """All that ``piece(n)``, which returns at most ``n`` bytes and nothing at the end, returns;
    :class:`Surplus` beyond ``most``, or with ``cut`` no more. ``came`` is told of each piece."""
    pieces: list[bytes] = []
    total, end = 0, most if cut else most + 1
    while total < end and (data := await piece(min(_PIECE, end - total))):
        total += len(data)
        if total > most:
            raise Surplus(total, most)
        pieces.append(data)
        if came is not None:
            came(len(data))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def skip(piece: Callable[[int], Awaitable[bytes]], nbytes: int) -> None:
    """Read so many bytes and keep none."""
    while nbytes > 0 and (data := await piece(min(_PIECE, nbytes))):
        nbytes -= len(data)


def too_large(key: str, error: Surplus, scheme: str) -> DriverError:
    """The error for a body that nothing but its own length, or our limit, tells to end."""
    return DriverError(
        f"the server sends {counted(error.nbytes, 'byte')} or more for {key!r}, where there can be "
        f"{error.most}; check the server, or read a large value in parts",
        key=key,
        driver=scheme,
    )
