"""Consolidated metadata: the documents of a group's members, as one document holds them.

Such a document may be large, and whoever wrote it may be hostile. So of a large one only where
each member's document stands is kept, and each is read when it is asked for; and a member counts
only where it could be stored: below groups that are in the same document, by a name that leads to
keys below its group.
"""

from __future__ import annotations

import codecs
import heapq
import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from ..cached import Cached
from ..errors import Corrupt, Invalid, counted, short
from ..limits import check_document
from .document import check_depth, decode
from .mark import is_marked, is_records

_LARGE: Final = 1 << 20
"""Bytes of a document from which on members are read one by one."""

_BLOCK: Final = 1 << 20
_FORBIDDEN: Final = re.compile(r"(?:^|/)(?:__|(?:\.*|zarr\.json)(?:/|\Z))|[\\\0\ud800-\udfff]")

_FIRST: Final = re.compile(rb"\A([ \t\n\r]*\{)[ \t\n\r]*,")
"""What is left where the first of several entries was taken out."""

_Place: TypeAlias = Any
"""What a member's document is read from: where it stands in a text, or itself."""


def is_member_path(path: str) -> bool:
    """Whether every part of ``path`` can name a member: no part is empty, nothing but dots,
    ``zarr.json`` or begins with ``__``, and none holds what no key may."""
    return _FORBIDDEN.search(path) is None


def member_path(name: Any) -> str:
    """``name``, such as ``"raw/image"``, without slashes at its ends.
    :class:`~tensorstash.errors.Invalid` where no member can have it."""
    if not isinstance(name, str):
        raise Invalid(f"a member is named by text such as 'raw/image', not {short(name)}")
    path = name.strip("/")
    if not is_member_path(path):
        raise Invalid(
            f"{short(name)} cannot name a member: names are not empty, not only dots, without "
            "a leading '__' or a backslash, and not 'zarr.json'"
        )
    return path


def place_path(path: Any) -> str:
    """A place below a location, as a user gave it, as a prefix of keys: empty, or ending in ``/``;
    ``""`` is the location itself."""
    return "" if path == "" else f"{member_path(path)}/"


class Members(Mapping[str, Mapping[str, Any]]):
    """The members below a group, by their paths from it, in the order of a walk: depth first, by
    name. A mapping to their documents (of v2: to their documents by file name); looking one up
    costs the length of its path, whatever their number."""

    def __init__(
        self,
        places: Mapping[str, _Place],
        load: Callable[[_Place], Any],
        ordered: Sequence[str],
        hidden: Container[str],
        above: str = "",
        near: int = 0,
    ) -> None:
        """Those ``ordered`` that are below ``above``, which is empty or ends in ``/``, each of
        which ``load`` reads from its place; ``hidden`` are places of what there cannot be.
        ``near``: a guess how many there are before them."""
        self._places = places
        self._load = load
        self._ordered = ordered
        self._hidden = hidden
        self._above = above
        self._near = near

    @classmethod
    def of(cls, documents: Mapping[str, Any]) -> Members:
        """Of documents by path, in memory."""
        if isinstance(documents, Members):
            return documents
        places = dict(documents)
        ranked = sorted(places, key=_order)
        ordered = [ranked[k] for k in _shown(ranked, lambda k: _is_group(places[ranked[k]]))]
        some = len(ordered) < len(places)
        hidden = frozenset(places.keys() - set(ordered) if some else ())
        return cls(places, lambda document: document, ordered, hidden)

    @classmethod
    def among(
        cls,
        placed: Placed,
        load: Callable[[Sequence[tuple[int, int]]], Any],
        is_group: Callable[[Sequence[int]], bool],
    ) -> Members:
        """Those in a text. ``load`` has where a member's values begin and of what kinds they are;
        ``is_group`` the kinds."""
        shown = array("Q", _shown(placed, lambda k: is_group(placed.kinds_at(k))))
        return cls(placed, load, Some(placed, shown), Others(placed, shown))

    def __getitem__(self, path: str) -> Mapping[str, Any]:
        place = self._above + path
        if place in self._hidden:
            raise KeyError(path)
        document = self._load(self._places[place])
        if not isinstance(document, Mapping):
            raise Invalid(
                f"the consolidated metadata of {place!r} is {short(document)}, not an object; "
                "consolidate again"
            )
        return document

    def __contains__(self, path: object) -> bool:
        place = self._above + path if isinstance(path, str) else ""
        return place in self._places and place not in self._hidden

    def __iter__(self) -> Iterator[str]:
        start, stop = self._span
        skip = len(self._above)
        return (self._ordered[k][skip:] for k in range(start, stop))

    def __len__(self) -> int:
        start, stop = self._span
        return stop - start

    def names(self) -> Iterator[str]:
        """The names of the direct members, sorted."""
        at, stop = self._span
        skip = len(self._above)
        while at < stop:
            path = self._ordered[at]
            yield path[skip:]
            at += 1
            if at < stop and self._ordered[at].startswith(path + "/"):
                at = self._after(path, at)

    def below(self, path: str) -> Members:
        """Those below the group at ``path``."""
        above = f"{self._above}{path}/"
        places = self._places
        near = (places.find(above[:-1]) if isinstance(places, Placed) else None) or 0
        return Members(places, self._load, self._ordered, self._hidden, above, near)

    def stored(self) -> Iterator[tuple[str, Any]]:
        """All that the document has, what there cannot be too: to store it again as it is."""
        return ((path, self._load(place)) for path, place in self._places.items())

    @Cached
    def _span(self) -> tuple[int, int]:
        if not self._above:
            return 0, len(self._ordered)
        start = self._first_from(_order(self._above), self._near)
        return start, self._after(self._above[:-1], start)

    def _after(self, path: str, start: int) -> int:
        """Where what lies below ``path`` ends: no part of a path holds the character 0."""
        return self._first_from(_order(path) + "\1", start)

    def _first_from(self, ranked: str, near: int) -> int:
        paths = self._ordered
        return first_from(len(paths), ranked, near, lambda k: _order(paths[k]))


def read(data: bytes | bytearray | memoryview, name: str) -> dict[str, Any]:
    """The v3 document of a group, in which :class:`Members` stand in the place of
    ``consolidated_metadata.metadata`` where that is an object."""
    if len(data) < _LARGE:
        document = decode(data, name)
        value = document.get("consolidated_metadata")
        if isinstance(value, dict) and isinstance(value.get("metadata"), dict):
            value["metadata"] = Members.of(value["metadata"])
        return document
    parts = ("consolidated_metadata", "metadata")
    document, placed = _read_large(data, name, parts, str, lambda _, value: int(_is_group(value)))
    value = document.get(parts[0])
    if isinstance(value, dict) and isinstance(value.get(parts[1]), dict):
        text = placed.text
        value[parts[1]] = Members.among(
            placed, lambda found: text.take(found[-1][0])[0], lambda kinds: 1 in kinds
        )
    return document


def read2(data: bytes | bytearray | memoryview, name: str, files: Sequence[str]) -> dict[str, Any]:
    """The ``.zmetadata`` of a root, in which :class:`Members` stand in the place of ``metadata``
    where that is an object. ``files`` are the names of a member's documents: array, group,
    attributes."""
    if len(data) < _LARGE:
        document = decode(data, name)
        value = document.get("metadata")
        if isinstance(value, dict):
            members: dict[str, dict[str, Any]] = {}
            for key, found in value.items():
                path, _, file = key.rpartition("/")
                if path and file in files:
                    members.setdefault(path, {})[file] = found
            document["metadata"] = Members.of(members)
        return document
    group = files.index(".zgroup"), files.index(".zarray")

    def kind_of(key: str, _: Any) -> int | None:
        path, _, file = key.rpartition("/")
        return files.index(file) if path and file in files else None

    document, placed = _read_large(
        data, name, ("metadata",), lambda key: key.rpartition("/")[0], kind_of
    )
    if isinstance(document.get("metadata"), dict):
        document["metadata"] = Members.among(
            placed,
            lambda found: {files[kind]: placed.text.take(at)[0] for at, kind in found},
            lambda kinds: group[0] in kinds and group[1] not in kinds,
        )
    return document


def without_copy(data: bytes | bytearray | memoryview) -> bytes | None:
    """The ``zarr.json`` of a group without its consolidated metadata, and otherwise byte for byte
    as it is; ``None`` where there is nothing to take out: there is none, or it is what publishes
    the fields of records, or nobody can read it, or another is replacing the group."""
    data = bytes(data)
    name = "consolidated_metadata"
    if name.encode() not in data and b"\\u" not in data:
        return None  # most documents
    spans: list[tuple[int, int]] = []
    document: dict[str, Any] = {}
    try:
        data.decode("utf-8")
        text = Text(data)
        start = SPACE.match(text.text).end()  # type: ignore[union-attr]
        last = start + 1

        def visit(key: str, _: int, at: int) -> int:
            nonlocal last
            document[key], end = text.take(at)
            if key == name:
                spans.append((last, end))
            last = end
            return end

        end = text.entries(start, visit) if text.text[start : start + 1] == "{" else 0
        if SPACE.match(text.text, end).end() != len(text.text):  # type: ignore[union-attr]
            return None
    except (ValueError, IndexError, RecursionError):
        return None
    if document.get(name) is None or is_marked(document) or is_records(document.get("attributes")):
        return None
    for start, end in reversed(spans):
        data = data[:start] + data[end:]
    return _FIRST.sub(rb"\1", data, count=1)


def _is_group(document: Any) -> bool:
    """Whether a member's documents are a group's, of either format."""
    if not isinstance(document, Mapping):
        return False
    return document.get("node_type") == "group" or (
        ".zgroup" in document and ".zarray" not in document
    )


def _order(path: str) -> str:
    """What paths are sorted by, so that those below a path follow it."""
    return path.replace("/", "\0")


def _shown(ranked: Iterable[str], is_group: Callable[[int], bool]) -> Iterator[int]:
    """Which of the paths a walk meets: names that there can be, below groups that are there."""
    above: list[str] = []  # the groups that hold the path, outermost first
    for k, path in enumerate(ranked):
        if not is_member_path(path):
            continue
        while above and not path.startswith(above[-1]):
            above.pop()
        if "/" in path[len(above[-1]) if above else 0 :]:
            continue  # below an array, or a group that is not there
        yield k
        if is_group(k):
            above.append(path + "/")


def _read_large(
    data: bytes | bytearray | memoryview,
    name: str,
    parts: Sequence[str],
    path_of: Callable[[str], str],
    kind_of: Callable[[str, Any], int | None],
) -> tuple[dict[str, Any], Placed]:
    """The document without what is at ``parts``, and where that stands, key by key: of a key that
    ``path_of`` tells the path of and ``kind_of``, with its value, the kind (``None``: it is about
    no path). Of several objects at ``parts`` the last one counts."""
    data = bytes(data)
    check_document(data, name)
    check_depth(data, name)
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), _BLOCK):
            decoder.decode(data[start : start + _BLOCK])
        decoder.decode(b"", final=True)
        text = Text(data)
        placed = Placed(text, path_of, _order)
        start = SPACE.match(text.text).end()  # type: ignore[union-attr]
        if text.text[start : start + 1] != "{":
            raise json.JSONDecodeError("not an object", "", start)
        document: dict[str, Any] = {}

        def visit(into: dict[str, Any], depth: int, key: str, at: int) -> int:
            if depth < len(parts) and key == parts[depth] and text.text[at] == "{":
                inner = into[key] = {}
                placed.clear()
                if depth + 1 < len(parts):
                    return text.entries(at, lambda k, _, a: visit(inner, depth + 1, k, a))
                return text.entries(at, member)
            into[key], end = text.take(at)
            return end

        def member(key: str, at: int, begins: int) -> int:
            value, end = text.take(begins)
            kind = kind_of(key, value)
            if kind is not None:
                placed.note(key, at, kind)
            return end

        end = text.entries(start, lambda key, _, at: visit(document, 0, key, at))
        placed.sort()
        if SPACE.match(text.text, end).end() != len(text.text):  # type: ignore[union-attr]
            raise json.JSONDecodeError("more follows the object", "", end)
    except (ValueError, IndexError, RecursionError) as error:
        known = isinstance(error, json.JSONDecodeError)
        detail = f"{error.msg} at byte {error.pos}" if known else str(error)  # type: ignore[union-attr]
        raise Corrupt(
            f"{name} ({counted(len(data), 'byte')}) is not JSON: {detail[:120]}; restore or "
            f"recreate it",
            key=name,
        ) from error
    return document, placed


# -- large documents -------------------------------------------------------------------
#
# Values are read where they stand, and where those of one of its objects do: eight bytes of memory
# each, whatever they hold.


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
