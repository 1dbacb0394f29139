"""The history of a commit: what it shows of each ancestor along the first parents.

A commit holds what is shown of the newest ancestors. When these are many they become a page, of
which the commit then holds where it is; many such become a page again, and so on. So a commit stays
small however long the history, a listing reads a page for each 80 commits, and an old one
is found in a few steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

from ..driver import REPAIR
from ..errors import Corrupt, Invalid, counted, short
from ..metadata.document import as_plain, decode, encode
from .container import Kind
from .ids import MOST_NBYTES, MOST_NUMBER, Reference, is_commit, is_session, page_key
from .pages import Form, Load, NewPages

COMMITS = 80
"""Ancestors that a commit shows itself, less one; and bytes of these:"""

COMMITS_NBYTES = 16 << 10

PAGES = 16
"""Pages, less one, of which a commit knows the place itself, of each level."""

SUMMARY_NBYTES = 64 << 10
"""What is shown of one commit, as JSON."""

_MOST = 256 << 10
_MOST_LEVELS = 16
_MOST_PARENTS = 64
_MOST_COUNT = 1 << 53


@dataclass(frozen=True)
class Summary:
    """What a log shows of a commit. ``number`` counts along first parents, from 0; ``time`` has a
    time zone, which is UTC when read; ``metadata`` is whatever JSON holds."""

    id: str
    number: int
    parents: tuple[str, ...]
    time: datetime
    author: str = ""
    message: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Whoever makes a commit asks first.

        Raises:
            Invalid: JSON has no such values, or they are too large.
        """
        if self.time.tzinfo is None:
            raise Invalid(f"the time of a commit needs a time zone, {self.time} has none")
        if not 0 <= self.number < _MOST_COUNT:
            raise Invalid(f"a commit's number is from 0 to {_MOST_COUNT - 1}, not {self.number}")
        try:
            document = self.document()
            encode(document)  # refuses what JSON has not
            encode({"recent": [document]})  # as deep as in the logs of those after it
        except Invalid:
            raise
        except (ValueError, OverflowError) as error:  # a time, or digits of a number
            raise Invalid(f"a commit cannot hold this: {error}; store less") from error
        if (nbytes := len(as_text(document))) > SUMMARY_NBYTES:
            raise Invalid(
                f"message and metadata of a commit take {counted(nbytes, 'byte')}, the most is "
                f"{SUMMARY_NBYTES}; store them in an array or in attributes"
            )
        if len(self.parents) > _MOST_PARENTS:
            raise Invalid(f"a commit has {_MOST_PARENTS} parents at most, not {len(self.parents)}")

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.id,
            "number": self.number,
            "parents": list(self.parents),
            "time": self.time.astimezone(UTC).isoformat(timespec="microseconds"),
            "author": self.author,
            "message": self.message,
            "metadata": as_plain(dict(self.metadata)),
        }

    @classmethod
    def read(cls, document: Any, what: str) -> Summary:
        """What :meth:`document` gave; ``what`` names the object that it is in."""
        if not isinstance(document, dict) or set(document) != _KEYS:
            _fail(what, f"shows {short(document)} where a commit's keys must be")
        text = [document[key] for key in ("id", "time", "author", "message")]
        parents, metadata = document["parents"], document["metadata"]
        if not all(isinstance(each, str) for each in text) or not is_commit(document["id"]):
            _fail(what, f"shows a commit {short(document['id'])} that cannot be")
        if not isinstance(parents, list) or len(parents) > _MOST_PARENTS:
            _fail(what, f"shows parents {short(parents)}")
        if not all(isinstance(each, str) and is_commit(each) for each in parents):
            _fail(what, f"shows parents {short(parents)}")
        if not isinstance(metadata, dict):
            _fail(what, f"shows metadata {short(metadata)}")
        number = _count(document["number"], _MOST_COUNT, what)
        try:
            time = datetime.fromisoformat(document["time"])
            if time.tzinfo is None:
                raise ValueError("no time zone")
            time = time.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise Corrupt(f"{what} shows time {short(text[1])}{REPAIR}", key=what) from error
        return cls(text[0], number, tuple(parents), time, text[2], text[3], metadata)


_KEYS = {"id", "number", "parents", "time", "author", "message", "metadata"}


@dataclass(frozen=True)
class Stretch:
    """Ancestors whose numbers are ``first`` to ``last``, at ``page``. ``since``: the earliest time
    of them, in microseconds since 1970."""

    page: Reference
    first: int
    last: int
    since: int


@dataclass(frozen=True)
class Log:
    """The ancestors along first parents; ``Log()``: there are none. ``recent`` are the newest,
    oldest first; ``levels`` what is before these: pages of commits, pages of pages, and so on,
    oldest first in each."""

    recent: tuple[Summary, ...] = ()
    levels: tuple[tuple[Stretch, ...], ...] = ()

    def after(self, parent: Summary, new: NewPages) -> Log:
        """The log of a commit whose first parent is ``parent``, of which this is the log."""
        recent = (*self.recent, parent)
        text = _rows([each.document() for each in recent])
        if len(recent) < COMMITS and len(text) <= COMMITS_NBYTES:
            return Log(recent, self.levels)
        numbers = [each.number for each in recent]
        since = min(microseconds(each.time) for each in recent)
        carried = Stretch(new.add(LOG_PAGES, text), min(numbers), max(numbers), since)
        levels = [*self.levels]
        for at in range(_MOST_LEVELS):
            levels[at:] = levels[at:] or [()]
            pages = (*levels[at], carried)
            if len(pages) < PAGES:
                levels[at] = pages
                break
            levels[at] = ()
            carried = Stretch(
                new.add(LOG_PAGES, _rows(list(map(_row, pages)))),
                min(each.first for each in pages),
                max(each.last for each in pages),
                min(each.since for each in pages),
            )
        return Log((), tuple(levels))

    def ancestors(self, load: Load) -> Iterator[Summary]:
        """All of them, newest first; pages are read as they are come to."""
        stack = self._all()
        while stack:
            level, each = stack.pop()
            if isinstance(each, Summary):
                yield each
            else:
                stack += _below(level, each, load)

    def numbered(self, number: int, load: Load) -> Summary | None:
        """The ancestor of that number; ``None`` where there is none."""
        return self._newest(lambda each: _first(each) <= number <= _last(each), load)

    def at(self, time: datetime, load: Load) -> Summary | None:
        """The newest ancestor that was made at ``time`` or before; ``None`` where there is none."""
        until = microseconds(time)
        return self._newest(lambda each: _since(each) <= until, load)

    def pages(self, load: Load) -> Iterator[Reference]:
        """Every page that it consists of."""
        stack = self._all()
        while stack:
            level, each = stack.pop()
            if isinstance(each, Stretch):
                yield each.page
                stack += _below(level, each, load) if level else ()

    def _newest(self, holds: Callable[[Summary | Stretch], bool], load: Load) -> Summary | None:
        """The newest commit for which ``holds``, which of a stretch says whether any in it may."""
        some = self._all()
        while some:
            level, each = some.pop()
            if holds(each):
                if isinstance(each, Summary):
                    return each
                some += _below(level, each, load)
        return None

    def _all(self) -> list[tuple[int, Summary | Stretch]]:
        """All that it holds itself, oldest first, with the level that pages are of."""
        out: list[tuple[int, Summary | Stretch]] = []
        for level in reversed(range(len(self.levels))):
            out += ((level, each) for each in self.levels[level])
        out += ((-1, each) for each in self.recent)
        return out

    def encode(self) -> bytes:
        """For the commit."""
        document = {
            "recent": [each.document() for each in self.recent],
            "levels": [list(map(_row, level)) for level in self.levels],
        }
        return as_text(document)

    @classmethod
    def parse(cls, data: bytes, what: str) -> Log:
        """What :meth:`encode` gave; ``what``: the object it is in."""
        document = decode(data, what)
        recent, levels = document.get("recent"), document.get("levels")
        if not isinstance(recent, list) or not isinstance(levels, list):
            _fail(what, "has no log")
        if len(levels) > _MOST_LEVELS or not all(isinstance(level, list) for level in levels):
            _fail(what, "has a log of wrong levels")
        return cls(
            tuple(Summary.read(each, what) for each in recent),
            tuple(tuple(_stretch(row, what) for row in level) for level in levels),
        )


def microseconds(time: datetime) -> int:
    """Since 1970, exactly."""
    if time.tzinfo is None:
        raise Invalid(f"a time needs a time zone, {time} has none")
    past = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds


def _below(level: int, stretch: Stretch, load: Load) -> list[tuple[int, Summary | Stretch]]:
    """What a page holds, oldest first."""
    (page,) = load([stretch.page], LOG_PAGES)
    for each in page:
        if isinstance(each, Stretch) != (level > 0):
            # So no page can be below itself: levels go down.
            _fail(page_key(stretch.page), f"is not a page of level {level} of a log")
        if not stretch.first <= _first(each) <= _last(each) <= stretch.last:
            wanted = f"one of {stretch.first} to {stretch.last}"
            _fail(page_key(stretch.page), f"shows commit number {_first(each)}, not {wanted}")
    return [(level - 1, each) for each in page]


def _first(each: Summary | Stretch) -> int:
    return each.number if isinstance(each, Summary) else each.first


def _last(each: Summary | Stretch) -> int:
    return each.number if isinstance(each, Summary) else each.last


def _since(each: Summary | Stretch) -> int:
    return microseconds(each.time) if isinstance(each, Summary) else each.since


def _row(stretch: Stretch) -> list[Any]:
    return [*stretch.page, stretch.first, stretch.last, stretch.since]


def _stretch(row: Any, what: str) -> Stretch:
    if not isinstance(row, list) or len(row) != 6 or not isinstance(row[0], str):
        _fail(what, f"has {short(row)} where a page of its log must be named")
    if not is_session(row[0]):
        _fail(what, f"names a session {short(row[0])} that cannot be")
    number, nbytes = _count(row[1], MOST_NUMBER, what), _count(row[2], MOST_NBYTES, what)
    first, last = _count(row[3], _MOST_COUNT, what), _count(row[4], _MOST_COUNT, what)
    since = row[5]
    if type(since) is not int or abs(since) > MOST_NUMBER or last < first:
        _fail(what, f"has {short(row)} where a page of its log must be named")
    return Stretch(Reference(row[0], number, nbytes), first, last, since)


def _count(value: Any, most: int, what: str) -> int:
    if type(value) is not int or not 0 <= value < most:
        _fail(what, f"has {short(value)} where a number from 0 to {most - 1} must be")
    return value


def as_text(document: Any) -> bytes:
    """JSON without blanks."""
    return json.dumps(document, separators=(",", ":")).encode()


def _fail(what: str, why: str) -> NoReturn:
    raise Corrupt(f"{what} {why}{REPAIR}", key=what)


def _rows(rows: list[Any]) -> bytes:
    return as_text({"rows": rows})


def _parse(raw: bytes, what: str) -> list[Summary] | list[Stretch]:
    rows = decode(raw, what).get("rows")
    if not isinstance(rows, list) or not rows:
        _fail(what, "is not a page of a log")
    if isinstance(rows[0], dict):
        return [Summary.read(row, what) for row in rows]
    return [_stretch(row, what) for row in rows]


LOG_PAGES: Form[list[Summary] | list[Stretch]] = Form(Kind.LOG, _MOST, _parse)
"""Pages of what is shown of commits, and pages of such pages."""
