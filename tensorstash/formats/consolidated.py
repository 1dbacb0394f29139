"""Consolidated metadata: the documents of a group's members, as one document holds them.

Such a document may be large, and whoever wrote it may be hostile. So of a large one only where
each member's document stands is kept, and each is read when it is asked for; and a member counts
only where it could be stored: below groups that are in the same document, by a name that leads to
keys below its group.
"""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ..cached import Cached
from ..dtype import short
from ..errors import Corrupt, Invalid
from ..limits import check_document
from .document import check_depth, decode
from .mark import is_marked, is_records

_LARGE: Final = 1 << 20
"""Bytes of a document from which on members are read one by one."""

_BLOCK: Final = 1 << 20
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_FORBIDDEN: Final = re.compile(r"(?:^|/)(?:__|(?:\.*|zarr\.json)(?:/|\Z))|[\\\0\ud800-\udfff]")

_FIRST: Final = re.compile(rb"\A([ \t\n\r]*\{)[ \t\n\r]*,")
"""What is left where the first of several entries was taken out."""

_value = json.JSONDecoder().raw_decode

_Place: TypeAlias = Any
"""What a member's document is read from: where it stands in a text, or itself."""


def is_member_path(path: str) -> bool:
    """Whether every part of ``path`` can name a member: no part is empty, nothing but dots,
    ``zarr.json`` or begins with ``__``, and none holds what no key may."""
    return _FORBIDDEN.search(path) is None


class Members(Mapping[str, Mapping[str, Any]]):
    """The members below a group, by their paths from it, in the order of a walk: depth first, by
    name. A mapping to their documents (of v2: to their documents by file name); looking one up
    costs the length of its path, whatever their number."""

    def __init__(
        self,
        places: Mapping[str, _Place],
        load: Callable[[_Place], Any],
        ordered: Sequence[str],
        hidden: frozenset[str],
        above: str = "",
    ) -> None:
        """Those ``ordered`` that are below ``above``, which is empty or ends in ``/``, each of
        which ``load`` reads from its place; ``hidden`` are places of what there cannot be."""
        self._places = places
        self._load = load
        self._ordered = ordered
        self._hidden = hidden
        self._above = above

    @classmethod
    def of(cls, documents: Mapping[str, Any]) -> Members:
        """Of documents by path, in memory."""
        if isinstance(documents, Members):
            return documents
        return cls.among(dict(documents), lambda document: document, _is_group)

    @classmethod
    def among(
        cls,
        places: dict[str, _Place],
        load: Callable[[_Place], Any],
        is_group: Callable[[_Place], bool],
    ) -> Members:
        """Those among ``places`` that there can be."""
        ordered = _in_order(places, is_group)
        some = len(ordered) < len(places)
        return cls(places, load, ordered, frozenset(places.keys() - set(ordered) if some else ()))

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
        return Members(self._places, self._load, self._ordered, self._hidden, above)

    def stored(self) -> Iterator[tuple[str, Any]]:
        """All that the document has, what there cannot be too: to store it again as it is."""
        return ((path, self._load(place)) for path, place in self._places.items())

    @Cached
    def _span(self) -> tuple[int, int]:
        if not self._above:
            return 0, len(self._ordered)
        start = bisect_left(self._ordered, _order(self._above), key=_order)
        return start, self._after(self._above[:-1], start)

    def _after(self, path: str, start: int) -> int:
        """Where what lies below ``path`` ends: no part of a path holds the character 0."""
        return bisect_left(self._ordered, _order(path) + "\1", start, key=_order)


def read(data: bytes | bytearray | memoryview, name: str) -> dict[str, Any]:
    """The v3 document of a group, in which :class:`Members` stand in the place of
    ``consolidated_metadata.metadata`` where that is an object."""
    if len(data) < _LARGE:
        document = decode(data, name)
        value = document.get("consolidated_metadata")
        if isinstance(value, dict) and isinstance(value.get("metadata"), dict):
            value["metadata"] = Members.of(value["metadata"])
        return document
    places: dict[str, int] = {}  # where it stands, and in the last bit whether it is a group

    def note(path: str, document: Any, start: int) -> None:
        places[path] = start << 1 | _is_group(document)

    parts = ("consolidated_metadata", "metadata")
    document, text = _read_large(data, name, parts, places.clear, note)
    value = document.get(parts[0])
    if isinstance(value, dict) and isinstance(value.get(parts[1]), dict):
        value[parts[1]] = Members.among(
            places, lambda place: text.value(place >> 1), lambda place: bool(place & 1)
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
    # Where each of its documents stands, counted from 1, in as many bits of one number: a tuple
    # of three would take more memory than a small member does in the document.
    places: dict[str, int] = {}
    bits, mask = 48, (1 << 48) - 1

    def note(key: str, document: Any, start: int) -> None:
        path, _, file = key.rpartition("/")
        if path and file in files:
            at = bits * files.index(file)
            places[path] = places.get(path, 0) & ~(mask << at) | (start + 1) << at

    def load(place: int) -> dict[str, Any]:
        starts = (place >> bits * k & mask for k in range(len(files)))
        found = zip(files, starts, strict=True)
        return {file: text.value(start - 1) for file, start in found if start}

    def is_group(place: int) -> bool:
        return not place & mask and bool(place >> bits & mask)

    document, text = _read_large(data, name, ("metadata",), places.clear, note)
    if isinstance(document.get("metadata"), dict):
        document["metadata"] = Members.among(places, load, is_group)
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
        text = _Text(data)
        start = _SPACE.match(text.text).end()  # type: ignore[union-attr]
        last = start + 1

        def visit(key: str, at: int) -> int:
            nonlocal last
            document[key], end = text.take(at)
            if key == name:
                spans.append((last, end))
            last = end
            return end

        end = text.entries(start, visit) if text.text[start : start + 1] == "{" else 0
        if _SPACE.match(text.text, end).end() != len(text.text):  # type: ignore[union-attr]
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


def _in_order(places: Mapping[str, _Place], is_group: Callable[[_Place], bool]) -> list[str]:
    """The paths that a walk meets: names that there can be, below groups that are there."""
    ordered: list[str] = []
    above: list[str] = []  # the groups that hold the path, outermost first
    for path in sorted(filter(is_member_path, places), key=_order):
        while above and not path.startswith(above[-1]):
            above.pop()
        if "/" in path[len(above[-1]) if above else 0 :]:
            continue  # below an array, or a group that is not there
        ordered.append(path)
        if is_group(places[path]):
            above.append(path + "/")
    return ordered


class _Text:
    """A large JSON document of which values are read where they stand."""

    def __init__(self, data: bytes) -> None:
        # A character a byte, whatever is in it: a string of Python's with one character of
        # another kind takes two or four bytes for every one.
        self.text = data.decode("latin-1")
        self.plain = data.isascii()

    def value(self, start: int) -> Any:
        """The value that begins there."""
        return self.take(start)[0]

    def take(self, start: int) -> tuple[Any, int]:
        """The value that begins there, and where it ends."""
        value, end = _value(self.text, start)
        if not self.plain:
            value = json.loads(self.text[start:end].encode("latin-1"))
        return value, end

    def entries(self, start: int, visit: Callable[[str, int], int]) -> int:
        """``visit(key, where its value begins)`` answers where that ends, for every key of the
        object that begins at ``start``; where it ends is answered."""
        text, space = self.text, _SPACE.match
        at = space(text, start + 1).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            return at + 1
        while True:
            key, at = self.take(at)
            at = space(text, at).end()  # type: ignore[union-attr]
            if not isinstance(key, str) or text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting a name and ':'", "", at)
            at = space(text, at + 1).end()  # type: ignore[union-attr]
            at = space(text, visit(key, at)).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "}":
                return at + 1
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or '}'", "", at)
            at = space(text, at + 1).end()  # type: ignore[union-attr]


def _read_large(
    data: bytes | bytearray | memoryview,
    name: str,
    parts: Sequence[str],
    begin: Callable[[], None],
    note: Callable[[str, Any, int], None],
) -> tuple[dict[str, Any], _Text]:
    """The document and its text, with what is at ``parts`` not in it but ``note``d, key by key:
    after ``begin``, for the last of several objects there counts."""
    data = bytes(data)
    check_document(data, name)
    check_depth(data, name)
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(data), _BLOCK):
            decoder.decode(data[start : start + _BLOCK])
        decoder.decode(b"", final=True)
        text = _Text(data)
        start = _SPACE.match(text.text).end()  # type: ignore[union-attr]
        if text.text[start : start + 1] != "{":
            raise json.JSONDecodeError("not an object", "", start)
        document: dict[str, Any] = {}

        def visit(into: dict[str, Any], depth: int, key: str, at: int) -> int:
            if depth < len(parts) and key == parts[depth] and text.text[at] == "{":
                inner = into[key] = {}
                begin()
                if depth + 1 < len(parts):
                    return text.entries(at, lambda k, a: visit(inner, depth + 1, k, a))
                return text.entries(at, member)
            into[key], end = text.take(at)
            return end

        def member(key: str, at: int) -> int:
            value, end = text.take(at)
            note(key, value, at)
            return end

        end = text.entries(start, lambda key, at: visit(document, 0, key, at))
        if _SPACE.match(text.text, end).end() != len(text.text):  # type: ignore[union-attr]
            raise json.JSONDecodeError("more follows the object", "", end)
    except (ValueError, IndexError, RecursionError) as error:
        known = isinstance(error, json.JSONDecodeError)
        detail = f"{error.msg} at byte {error.pos}" if known else str(error)  # type: ignore[union-attr]
        raise Corrupt(
            f"{name} ({len(data)} bytes) is not JSON: {detail[:120]}; restore or recreate it",
            key=name,
        ) from error
    return document, text
