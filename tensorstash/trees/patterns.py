"""Which members of a tree are wanted: patterns on their paths.

A pattern is matched part by part while a walk goes down, so that at every group it is known whether
anything below can match still: what cannot is not even listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import TypeAlias

from ..errors import Invalid, short

Wanted: TypeAlias = str | Iterable[str] | None
"""A pattern, or several."""

States: TypeAlias = frozenset[int]
"""How many parts of a pattern may have been matched so far."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """``parts`` between slashes, as :meth:`pathlib.PurePosixPath.full_match` of Python 3.13 takes
    them: ``None`` stands for ``**``, which is any number of names, and at the end of a pattern one
    at least. Nothing within a part matches a slash."""

    parts: Sequence[re.Pattern[str] | None]

    @property
    def start(self) -> States:
        """Nothing is matched yet."""
        return frozenset(self._skipped(0))

    def after(self, states: States, name: str) -> States:
        """Those states that ``name``, the next part of a path, leads to."""
        found: set[int] = set()
        for k in states:
            if k == len(self.parts):
                continue
            part = self.parts[k]
            if part is None:
                found.update(self._skipped(k))
                if k == len(self.parts) - 1:
                    found.add(k + 1)
            elif part.match(name):
                found.update(self._skipped(k + 1))
        return frozenset(found)

    def matches(self, states: States) -> bool:
        """Whether the path that led to ``states`` matches."""
        return len(self.parts) in states

    def goes_on(self, states: States) -> bool:
        """Whether a path below may match."""
        return any(k < len(self.parts) for k in states)

    def _skipped(self, k: int) -> Iterator[int]:
        """State ``k``, and those after it where ``**`` stands for no name."""
        yield k
        while k < len(self.parts) - 1 and self.parts[k] is None:
            k += 1
            yield k


@dataclass(frozen=True, slots=True)
class Choice:
    """What is wanted at one place of a tree: ``include`` (``None``: everything) and ``exclude``,
    each pattern with how far the path to here has matched it."""

    include: Sequence[tuple[Pattern, States]] | None = None
    exclude: Sequence[tuple[Pattern, States]] = ()
    is_left_out: bool = False
    """Whether it, or what it lies in, matches a pattern of what is excluded."""

    @staticmethod
    def of(include: Wanted, exclude: Wanted) -> Choice:
        """At the root, from what a user gave."""
        excluded = _parsed("exclude", exclude)
        return Choice(_parsed("include", include), () if excluded is None else excluded)

    def below(self, name: str) -> Choice:
        """At the member of that name."""
        if self.is_left_out or (self.include is None and not self.exclude):
            return self
        include = None if self.include is None else [*_after(self.include, name)]
        exclude = [*_after(self.exclude, name)]
        left_out = any(pattern.matches(states) for pattern, states in exclude)
        return Choice(include, exclude, left_out)

    @property
    def is_wanted(self) -> bool:
        """Whether what is here was asked for."""
        if self.is_left_out or self.include is None:
            return not self.is_left_out
        return any(pattern.matches(states) for pattern, states in self.include)

    @property
    def may_hold(self) -> bool:
        """Whether something below may be wanted."""
        if self.is_left_out or self.include is None:
            return not self.is_left_out
        return any(pattern.goes_on(states) for pattern, states in self.include)


def matches(path: str, include: Wanted = None, exclude: Wanted = None) -> bool:
    """Whether ``path`` matches a pattern of ``include`` (``None``: any does), and neither it nor
    anything above it one of ``exclude``."""
    choice = Choice.of(include, exclude)
    for name in path.split("/"):
        choice = choice.below(name)
    return choice.is_wanted


def _after(
    patterns: Iterable[tuple[Pattern, States]], name: str
) -> Iterator[tuple[Pattern, States]]:
    for pattern, states in patterns:
        if states := pattern.after(states, name):
            yield pattern, states


def _parsed(option: str, wanted: Wanted) -> list[tuple[Pattern, States]] | None:
    if wanted is None:
        return None
    given = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise Invalid(f"{option}= takes patterns such as 'raw/**', not {short(wanted)}")
    found = []
    for text in given:
        if not isinstance(text, str):
            raise Invalid(f"{option}= takes patterns such as 'raw/**', not {short(text)}")
        pattern = _pattern(option, text)
        found.append((pattern, pattern.start))
    return found


@lru_cache(1024)
def _part(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))


def _pattern(option: str, text: str) -> Pattern:
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise Invalid(
            f"{option}={text!r} matches no path; patterns are like the paths below the place, "
            "as 'raw/*' or '**/image'"
        )
    return Pattern([None if part == "**" else _part(part) for part in parts])
