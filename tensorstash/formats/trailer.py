"""What the holder of a lease writes behind a metadata document: blanks, which every reader of JSON
skips.

A trailer makes every such document another one, also where a version follows from the bytes, and
says how far chunks may yet come from an append that did not end. Base 4 in the four blanks of
JSON; a key of our own would be refused by other readers of Zarr.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

_BLANKS = b" \t\n\r"
_MAGIC, _OPEN, _KEPT = 0xB4, 1, 2
_SALT = 8
_LENGTH = 8
_MOST = (1 << 64) - 1
_LONGEST = 4 * (1 + _SALT + 64 * _LENGTH)
"""Blanks of a trailer, at most: of an array of 64 axes."""


@dataclass(frozen=True)
class Trailer:
    """``salt`` is one holder's step. ``open``: it was about to change chunks, and has not published
    since. ``kept``: some holder took over bytes of another one as they were. ``reach``: no append
    that is not finished stores anything at or beyond these positions along each axis (empty: there
    is none)."""

    salt: bytes = b""
    open: bool = False
    kept: bool = False
    reach: tuple[int, ...] = ()

    def next(self, *, open: bool, kept: bool = False, reach: Sequence[int] = ()) -> Trailer:
        """The trailer of another step, which reaches ``reach`` too."""
        far = tuple(map(max, self.reach, reach)) if self.reach and reach else self.reach
        return Trailer(secrets.token_bytes(_SALT), open, self.kept or kept, far or tuple(reach))


NONE = Trailer()


def encode(trailer: Trailer) -> bytes:
    """The blanks that say ``trailer``."""
    if not trailer.salt:
        return b""
    lengths = b"".join(min(n, _MOST).to_bytes(_LENGTH, "big") for n in trailer.reach)
    found = bytes([_MAGIC | _OPEN * trailer.open | _KEPT * trailer.kept]) + trailer.salt + lengths
    return bytes(_BLANKS[byte >> shift & 3] for byte in found for shift in (6, 4, 2, 0))


def decode(document: bytes | bytearray | memoryview) -> Trailer:
    """The trailer behind a document; :data:`NONE` where there is none that we wrote."""
    data = memoryview(document)[-_LONGEST - 1 :].tobytes()
    tail = data[len(data.rstrip(_BLANKS)) :]
    if len(tail) % 4 or len(tail) > _LONGEST:
        return NONE
    digits = [_BLANKS.index(byte) for byte in tail]
    found = bytes(
        a << 6 | b << 4 | c << 2 | d
        for a, b, c, d in zip(digits[::4], digits[1::4], digits[2::4], digits[3::4], strict=True)
    )
    lengths = found[1 + _SALT :]
    if (
        not found
        or found[0] & ~(_OPEN | _KEPT) != _MAGIC
        or len(found) <= _SALT
        or len(lengths) % _LENGTH
    ):
        return NONE
    reach = [int.from_bytes(lengths[i : i + 8], "big") for i in range(0, len(lengths), 8)]
    return Trailer(
        found[1 : 1 + _SALT], bool(found[0] & _OPEN), bool(found[0] & _KEPT), tuple(reach)
    )
