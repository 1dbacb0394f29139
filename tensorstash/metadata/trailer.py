"""What stands behind a metadata document: blanks, which every reader of JSON skips.

An identity tells an array from another one at the same place, however alike. What the holder of
a lease adds makes every such document another one, also where a version follows from the bytes, and
says how far chunks may yet come from an append that did not end. Base 4 in the four blanks of
JSON; a key of our own would be refused by other readers of Zarr.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .document import MAX_NDIM

_BLANKS = b" \t\n\r"
_MAGIC, _OPEN, _KEPT, _NAMED, _FIELD = 0xB4, 1, 2, 8, 64
_SALT = 8
_LENGTH = 8
_UNSALTED = bytes(_SALT)
_MOST = (1 << 64) - 1
_LONGEST = 4 * (1 + 2 * _SALT + _LENGTH * MAX_NDIM)  # whoever stores more blanks, it is no trailer


@dataclass(frozen=True)
class Trailer:
    """``salt`` is one holder's step. ``open``: it was about to change chunks, and has not published
    since. ``kept``: some holder took over bytes of another one as they were. ``reach``: no append
    that is not finished stores anything at or beyond these positions along each axis (empty: there
    is none). ``identity``: random bytes of the array, new whenever one is created in this place
    (empty: it was stored by others). ``field``: it is an array of records, of which it holds the
    values of a field: as long as they are, and replaced and deleted with them."""

    salt: bytes = b""
    open: bool = False
    kept: bool = False
    reach: tuple[int, ...] = ()
    identity: bytes = b""
    field: bool = False

    def next(self, *, open: bool, kept: bool = False, reach: Sequence[int] = ()) -> Trailer:
        """The trailer of another step, which reaches ``reach`` too."""
        far = tuple(map(max, self.reach, reach)) if self.reach and reach else self.reach
        return replace(
            self,
            salt=secrets.token_bytes(_SALT),
            open=open,
            kept=self.kept or kept,
            reach=far or tuple(reach),
        )


NONE = Trailer()


def new_identity() -> bytes:
    """Random bytes that no other array has."""
    return secrets.token_bytes(_SALT)


def encode(trailer: Trailer) -> bytes:
    """The blanks that say ``trailer``."""
    if not trailer.salt and not trailer.identity and not trailer.field:
        return b""
    lengths = b"".join(min(n, _MOST).to_bytes(_LENGTH, "big") for n in trailer.reach)
    flags = _OPEN * trailer.open | _KEPT * trailer.kept | _NAMED * bool(trailer.identity)
    flags |= _FIELD * trailer.field
    found = bytes([_MAGIC | flags]) + (trailer.salt or _UNSALTED) + trailer.identity + lengths
    return bytes(_BLANKS[byte >> shift & 3] for byte in found for shift in (6, 4, 2, 0))


def decode(document: bytes | bytearray | memoryview) -> Trailer:
    """The trailer behind a document; :data:`NONE` where there is none that we wrote."""
    data = bytes(document[-_LONGEST - 1 :])
    tail = data[len(data.rstrip(_BLANKS)) :]
    if not tail or len(tail) % 4 or len(tail) > _LONGEST:
        return NONE
    digits = [_BLANKS.index(byte) for byte in tail]
    found = bytes(
        a << 6 | b << 4 | c << 2 | d
        for a, b, c, d in zip(digits[::4], digits[1::4], digits[2::4], digits[3::4], strict=True)
    )
    named = _SALT * bool(found[0] & _NAMED)
    lengths = found[1 + _SALT + named :]
    flags = found[0] & (_OPEN | _KEPT | _NAMED | _FIELD)
    known = found[0] - flags == _MAGIC
    if not known or len(found) <= _SALT + named or len(lengths) % _LENGTH:
        return NONE
    reach = [
        int.from_bytes(lengths[i : i + _LENGTH], "big") for i in range(0, len(lengths), _LENGTH)
    ]
    salt, identity = found[1 : 1 + _SALT], found[1 + _SALT : 1 + _SALT + named]
    return Trailer(
        b"" if salt == _UNSALTED else salt,
        open=bool(flags & _OPEN),
        kept=bool(flags & _KEPT),
        reach=tuple(reach),
        identity=identity,
        field=bool(flags & _FIELD),
    )
