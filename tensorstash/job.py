"""How the items of a write become stored objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from .driver import Buffer
from .merge import Merge

Stored: TypeAlias = tuple[str, Buffer | None]
"""A key and what shall be stored there; ``None``: nothing, for it would be all fill."""

Item = TypeVar("Item")


class Job(NamedTuple, Generic[Item]):
    """How an item of a write becomes one object: ``whole``, where nothing is wanted of what is
    stored, else by ``merge``. ``place``: the object's index, for messages."""

    whole: Callable[[Item], Stored | None]
    merge: Callable[[Item], Merge]
    covers: Callable[[Item], bool]
    place: Callable[[Item], tuple[int, ...]]
