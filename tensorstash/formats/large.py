"""A large JSON document of which values are read where they stand, and where those of one of its
objects do: eight bytes of memory each, whatever they hold."""

from __future__ import annotations

import heapq
import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

SPACE: Final = re.compile(r"[ \t\n\r]*")

_value = json.JSONDecoder().raw_decode
_SORTED_AT_ONCE: Final = 1 << 12
_KEPT: Final = 1 << 12


class Text:
    """The document."""

    def __init__(self, data: bytes) -> None:
        # A character a byte, whatever is in it: a string of Python's with one character of
        # another kind takes two or four bytes for every one.
        self.text = data.decode("latin-1")
        self.plain = data.isascii()

    def take(self, start: int) -> tuple[Any, int]:
        """The value that begins there, and where it ends."""
        value, end = _value(self.text, start)
        if not self.plain:
            value = json.loads(self.text[start:end].encode("latin-1"))
        return value, end

    def entry(self, start: int) -> tuple[Any, int]:
        """The key that begins there, and where its value begins."""
        text, space = self.text, SPACE.match
        key, at = self.take(start)
        at = space(text, at).end()  # type: ignore[union-attr]
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise json.JSONDecodeError("Expecting a name and ':'", "", at)
        return key, space(text, at + 1).end()  # type: ignore[union-attr]

    def entries(self, start: int, visit: Callable[[str, int, int], int]) -> int:
        """For every key of the object that begins at ``start``, ``visit(key, where the key begins,
        where its value does)`` returns where that ends; where the object ends is returned."""
        text, space = self.text, SPACE.match
        at = space(text, start + 1).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            return at + 1
        while True:
            key, value = self.entry(at)
            at = space(text, visit(key, at, value)).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "}":
                return at + 1
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or '}'", "", at)
            at = space(text, at + 1).end()  # type: ignore[union-attr]


class Placed(Mapping[str, Sequence[tuple[int, int]]]):
    """Where in a text the keys of one object stand, by the path that each is about, and what kind
    each is, a number below 4; in the order of ``rank`` of the paths.

    A path has as many as there are keys about it: those of a v2 member's documents, or one that
    stands there twice. Looking one up costs the logarithm of their number, and nothing where it
    is the one before, or follows it.
    """

    def __init__(
        self, text: Text, path_of: Callable[[str], str], rank: Callable[[str], str]
    ) -> None:
        self.text = text
        self._path_of = path_of
        self._rank = rank
        # Searches meet the same ones again and again.
        self._path = lru_cache(_KEPT)(lambda start: path_of(text.take(start >> 2)[0]))
        self._starts = array("Q")
        self._firsts = array("Q")
        """Of each path the first of its keys."""
        self._last: str | None = None
        self._sorted = True
        self._near = 0

    def note(self, key: str, start: int, kind: int) -> None:
        """``key`` begins at ``start``."""
        rank = self._rank(self._path_of(key))
        if rank != self._last:
            self._firsts.append(len(self._starts))
            self._sorted &= self._last is None or self._last < rank
        self._last = rank
        self._starts.append(start << 2 | kind)

    def clear(self) -> None:
        """Forget all that were noted."""
        del self._starts[:], self._firsts[:]
        self._last, self._sorted = None, True

    def sort(self) -> None:
        """Put them in order, once all are noted; they often are."""
        if self._sorted:
            return
        parts = [
            array("Q", sorted(self._starts[at : at + _SORTED_AT_ONCE], key=self._ranked))
            for at in range(0, len(self._starts), _SORTED_AT_ONCE)
        ]
        self._starts = array("Q", heapq.merge(*parts, key=self._ranked))
        del self._firsts[:]
        last = None
        for k, start in enumerate(self._starts):
            path = self._path(start)
            if path != last:
                self._firsts.append(k)
            last = path

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[str]:
        return map(self.path, range(len(self)))

    def __getitem__(self, path: str) -> list[tuple[int, int]]:
        """Where the values about ``path`` begin, and their kinds, in the order of the text."""
        at = self.find(path)
        if at is None:
            raise KeyError(path)
        return self.values_at(at)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.find(path) is not None

    def path(self, at: int) -> str:
        """The path with that many before it."""
        return self._path(self._starts[self._firsts[at]])

    def find(self, path: str) -> int | None:
        """How many paths stand before this one, if it is there."""
        ranked, count = self._rank(path), len(self)
        at = first_from(count, ranked, self._near, lambda k: self._rank(self.path(k)))
        if at == count or self.path(at) != path:
            return None
        self._near = at
        return at

    def values_at(self, at: int) -> list[tuple[int, int]]:
        """As ``self[self.path(at)]``."""
        return [(self.text.entry(start >> 2)[1], start & 3) for start in self._about(at)]

    def kinds_at(self, at: int) -> list[int]:
        """The kinds of the keys about a path."""
        return [start & 3 for start in self._about(at)]

    def _about(self, at: int) -> array[int]:
        end = self._firsts[at + 1] if at + 1 < len(self) else len(self._starts)
        return self._starts[self._firsts[at] : end]

    def _ranked(self, start: int) -> str:
        return self._rank(self._path(start))


def first_from(count: int, wanted: str, near: int, key: Callable[[int], str]) -> int:
    """The first of ``count`` whose ``key`` is not below ``wanted``, as :func:`bisect.bisect_left`
    finds it, with few keys read where that is not far behind ``near``."""
    low, step = 0, 1
    if near < count and key(near) <= wanted:
        low = near
        while low + step < count and key(low + step) < wanted:
            low, step = low + step, 2 * step
        count = min(low + step, count)
    return bisect_left(range(count), wanted, low, key=key)


class Some(Sequence[str]):
    """The paths of ``placed`` at ``indices``, which rise."""

    def __init__(self, placed: Placed, indices: array[int]) -> None:
        self._placed = placed
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, at: Any) -> Any:
        return self._placed.path(self._indices[at])


class Others(Container[str]):
    """The paths of ``placed`` that are not at ``indices``."""

    def __init__(self, placed: Placed, indices: array[int]) -> None:
        self._placed = placed
        self._indices = indices

    def __contains__(self, path: object) -> bool:
        if len(self._indices) == len(self._placed) or not isinstance(path, str):
            return False
        at = self._placed.find(path)
        if at is None:
            return False
        k = bisect_left(self._indices, at)
        return k == len(self._indices) or self._indices[k] != at
