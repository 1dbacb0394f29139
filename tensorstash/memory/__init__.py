"""How much memory reads, writes and what is kept between them may take together, and who has it.

Who keeps memory from one call to the next (a cache, a pool, a writer) has an :class:`Account`; what
a call takes until it returns is a :meth:`Budget.share`. Caches give way to both. A call waits where
others have what it needs, but never while it has any itself, nor for what is kept: so none waits
for one that waits for it, and where no other call is under way, one chunk always goes through.
"""

from __future__ import annotations

from types import EllipsisType

from .budget import (
    PROCESS,
    Account,
    Budget,
    Share,
    budget_of,
    incoming,
    outgoing,
    set_limit,
)

__all__ = [
    "PROCESS",
    "Account",
    "Budget",
    "Share",
    "budget_of",
    "incoming",
    "memory_limit",
    "memory_use",
    "outgoing",
]


def memory_limit(limit: int | str | EllipsisType | None = ...) -> int | None:
    """Set how much memory this process may use for its arrays, records and loaders together.

    Caches, requests and chunks under way, buffers of writers, and what loaders read ahead stay
    within it and one chunk more; results, which are yours, do not count. Caches give way first,
    whatever ``cache=`` says; then less is done at a time. Each process has a limit of its own: a
    forked one, and a worker that multiprocessing starts with handles among its arguments, begin
    with that of their parent, and with nothing held. ``memory_limit=`` of ``open``, ``create`` and
    the like limits one handle.

    Args:
        limit: bytes, or text such as ``"2GiB"``; ``None`` lifts the limit; if left out, it stays.

    Returns:
        The limit in bytes as it is now; ``None``: there is none.

    Raises:
        Invalid: ``limit`` is no size, or zero.

    >>> stash.memory_limit("2GiB")
    2147483648
    >>> stash.memory_limit(None) is None
    True
    """
    if not isinstance(limit, EllipsisType):
        set_limit(limit)
    return PROCESS.limit


def memory_use() -> dict[str, int]:
    """Tell who has how much memory in this process.

    Returns:
        Bytes by kind: ``"caches"`` (decoded chunks, indices of shards), ``"in_flight"`` (requests,
        and chunks that are written), ``"native"`` (chunks that are read and decoded), ``"pools"``
        and ``"prefetched"`` (blocks and batches of loaders), ``"writers"``; and their ``"total"``.
        What calls under way have is counted while there is a limit only.

    >>> sorted(stash.memory_use())
    ['caches', 'in_flight', 'native', 'pools', 'prefetched', 'total', 'writers']
    """
    return PROCESS.use()
