"""How much memory what is stored may take: every number that says so, and why.

Whoever can write to a place, or answers in its name, chooses what its documents and chunks claim.
So each reader asks here before it allocates, and each step of a chain of codecs is told how much
may come of it; more is :class:`~tensorstash.errors.Corrupt`, and nothing is allocated for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import Corrupt, Invalid, counted

METADATA = 256 << 20
"""Bytes of one metadata document. The consolidated one of a group of 100,000 arrays has some
100 MB; those of single arrays have a few KB."""

NODE_BYTES = 64
"""What one value of a JSON or msgpack document takes in Python, and a bit: an empty list has 56."""

NODES = METADATA // 8
"""Values in one metadata document: in 2 GiB of memory at :data:`NODE_BYTES` each. Documents as
they are written have a value for every 10 bytes or more."""

CHUNK = 1 << 30
"""Bytes to which a chunk of text or bytes may decode, and that it may have stored: its metadata
fixes neither. Larger than anybody's who did not mean to: chunks are made for about 512 KiB."""

CHUNK_FREE = 64 << 20
"""Bytes to which a chunk of text or bytes may decode however few are stored."""

CHUNK_RATIO = 64
"""Bytes, beyond these, for each one that is stored and for each element. Text shrinks to a fifth;
to less than a 64th only where elements repeat each other, and then there are many of them."""

SHARD_CHUNKS = 4
"""Chunks of text or bytes of the largest size that one shard may hold, when it is read whole."""

INDEX = 64 << 20
"""Bytes of a shard's index: 4 million inner chunks."""

SLACK = 64 << 10
"""Bytes that any encoder may add, however little it is given."""

HUGE = 1 << 62
"""Where a bound that follows from a document stops growing: NumPy compares with nothing larger."""


@dataclass(frozen=True)
class Limits:
    """What a handle allows: bytes of a metadata document (``None``: what its driver does, which is
    :data:`METADATA`), and bytes of a chunk of text or bytes once decoded (``None``: :func:`room`
    decides)."""

    metadata: int | None = None
    chunk: int | None = None


USUAL = Limits()


def parse(given: Any, nbytes: Any) -> Limits:
    """The limits that a user gave as ``{"metadata": "1GiB", "chunk": "4GiB"}``; ``nbytes`` reads
    a size."""
    if given is None:
        return USUAL
    if isinstance(given, Limits):
        return given
    known = [field.name for field in fields(Limits)]
    if not isinstance(given, Mapping) or any(name not in known for name in given):
        raise Invalid(
            f"limits are a dict of sizes by name, of {' and '.join(map(repr, known))}, such as "
            '{"metadata": "1GiB"}; not ' + repr(given)[:60]
        )
    found = {name: nbytes(size) for name, size in given.items()}
    if any(size < 1 for size in found.values()):
        raise Invalid("a limit of no bytes leaves nothing to be read; give a size such as '1GiB'")
    return Limits(**found)


def room(most: int | None, stored: int, count: int) -> int:
    """Bytes to which a chunk of ``count`` elements of any length may decode, of which ``stored``
    bytes are stored; ``most`` where the handle says."""
    if most is not None:
        return most
    return min(CHUNK, max(CHUNK_FREE, CHUNK_RATIO * (stored + count)))


def check_document(data: bytes | bytearray | memoryview, name: str) -> None:
    """:class:`~tensorstash.errors.Corrupt` where a JSON document would make too many values: they
    take ten times the memory of its bytes and more."""
    if len(data) > NODES and (count := values_in(bytes(data))) > NODES:
        raise Corrupt(
            f"{name} ({counted(len(data), 'byte')}) holds {counted(count, 'value')}, the "
            f"most is {NODES}; restore or "
            "recreate it",
            key=name,
        )


def values_in(data: bytes) -> int:
    """Return the most values that a JSON document can have, counting separators in its text."""
    return 1 + sum(map(data.count, (b",", b":", b"[", b"{")))
