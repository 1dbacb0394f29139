"""Entries by key: a B+tree of which each version shares most pages. (Signatures; bodies follow.)

Keys are text, sorted by their UTF-8 bytes. Values are bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .ids import Reference
from .pages import Load, NewPages


@dataclass(frozen=True, eq=False)
class Tree:
    """Entries by key. Never changed; ``apply`` returns another one. ``Tree()`` is empty."""

    root: object = None

    @staticmethod
    def parse(data: bytes, what: str) -> Tree:
        """The tree that ``encode`` gave, as the commit holds it."""

    def encode(self) -> bytes: ...

    def get(self, keys: Iterable[str], load: Load) -> dict[str, bytes]:
        """The values of those keys that are there; one call of ``load`` per level."""

    def below(self, prefix: str, load: Load, *, values: bool = True) -> Iterator[tuple[str, bytes]]:
        """The entries whose keys begin with ``prefix``, sorted. Without ``values`` each is b""."""

    def names(self, prefix: str, load: Load) -> Iterator[tuple[str, bool]]:
        """As ``list_dir``: what follows ``prefix`` up to the next "/", once each, sorted, and
        whether there is more behind it. Pages that lie within one such name are not read."""

    def apply(self, changes: Mapping[str, bytes | None], load: Load, new: NewPages) -> Changed:
        """The tree after ``changes``; None deletes a key, also one that is not there."""

    def differs(self, other: Tree, load: Load) -> Iterator[tuple[str, bytes | None, bytes | None]]:
        """(key, here, there) where the two trees differ, sorted; shared pages are not read."""


@dataclass(frozen=True, eq=False)
class Changed:
    """``tree``: the new one. ``dead``: pages that the old one has and the new one has not."""

    tree: Tree
    dead: list[Reference]
