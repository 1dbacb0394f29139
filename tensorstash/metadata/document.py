"""What the metadata documents of Zarr v3 and v2 have in common."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import numpy as np

from ..dtype import is_extended, is_float
from ..errors import Corrupt, Invalid, Unsupported, counted, short
from ..limits import check_document

MAX_NDIM: Final = 64
"""Axes that NumPy can hold."""

MAX_LENGTH: Final = (1 << 63) - 1
"""The longest axis that NumPy can index."""

MAX_DEPTH: Final = 500
"""Levels of lists and objects within each other that a document may have, read or written: half
of what Python's own stack takes, so that whatever walks through one reaches its end."""

_BLOCK: Final = 1 << 16

_ANY: Final = 7_046_029_254_386_353_131
"""Stands for any length in a :func:`template`: digits that no other number has by chance."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class GroupDocument:
    """A group's metadata.

    ``consolidated`` maps each descendant's path relative to the group to its document (for
    v2: to its documents by file name), ``None`` where the group is not consolidated.
    ``document`` is the document as stored.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    consolidated: Mapping[str, Mapping[str, Any]] | None = None
    zarr_format: Literal[2, 3] = 3
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def decode(data: bytes | bytearray | memoryview, name: str) -> dict[str, Any]:
    """The JSON object that ``data`` holds; :class:`~tensorstash.errors.Corrupt` when it holds
    none, or one that nests deeper than :data:`MAX_DEPTH`. NaN and Infinity tokens, which are not
    JSON but are found, are read as floats."""
    data = bytes(data)
    check_document(data, name)
    check_depth(data, name)
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        detail = str(error) if len(str(error)) < 120 else type(error).__name__
        raise Corrupt(
            f"{name} ({counted(len(data), 'byte')}) is not JSON: {detail}; restore or recreate it",
            key=name,
        ) from error
    if not isinstance(document, dict):
        raise Corrupt(f"{name} holds {short(document)}, not a JSON object", key=name)
    return document


def check_depth(data: bytes, name: str) -> None:
    """:class:`~tensorstash.errors.Corrupt` where the JSON in ``data`` nests deeper than
    :data:`MAX_DEPTH`; found out without reading it."""
    if len(data) <= 2 * MAX_DEPTH:  # most documents: no room for brackets that open and close
        return
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise Corrupt(
            f"{name} ({counted(len(data), 'byte')}) nests deeper than {MAX_DEPTH} levels, "
            f"the most that is "
            "read; restore or recreate it",
            key=name,
        )


def _depth(data: bytes) -> int:
    deepest = level = inside = start = 0
    while start < len(data):
        block = data[start : start + _BLOCK]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # cut no escape in two
            block = data[start : start + _BLOCK + 1]
        stop = start + len(block)
        block = block.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        codes = np.frombuffer(block, np.uint8)
        text = (np.cumsum(codes == 0x22, dtype=np.int32) + inside) & 1
        folded = codes | 0x20  # the two kinds of bracket differ in this bit
        steps = (folded == 0x7B).astype(np.int32) - (folded == 0x7D)
        levels = np.cumsum(steps * (1 - text), dtype=np.int32)
        deepest = max(deepest, level + int(levels.max()))
        level, inside, start = level + int(levels[-1]), int(text[-1]), stop
    return deepest


def as_plain(value: Any) -> Any:
    """A copy of ``value`` with NumPy's scalars and arrays of numbers and text, however deep, as
    Python's own: ``.item()`` and ``.tolist()``. Anything else stays, for :func:`encode` to judge.
    :class:`~tensorstash.errors.Invalid` where it nests deeper than :data:`MAX_DEPTH`."""
    whole = [value]
    todo: list[tuple[Any, int]] = [(whole, 0)]  # recursion would run out of stack
    while todo:
        holder, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        for key, item in [*(holder.items() if isinstance(holder, dict) else enumerate(holder))]:
            holder[key] = made = _one_plain(item)
            if isinstance(made, dict | list):
                todo.append((made, depth + 1))
    return whole[0]


def _one_plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind not in "biufUTO" and not is_extended(value.dtype):
            return value
        made = value.tolist()
        if isinstance(made, np.generic):  # longdouble, and those of ml_dtypes
            return float(made) if is_float(made.dtype) else value
        return made
    if isinstance(value, Mapping):
        return dict(value)
    return [*value] if isinstance(value, list | tuple) else value


def encode(document: Mapping[str, Any]) -> bytes:
    """``document`` as UTF-8 JSON.

    Floats that are not finite become the bare tokens ``NaN``, ``Infinity``, ``-Infinity``, as
    zarr-python and xarray write and read them in attributes: a value stays what it is. No JSON has
    them, and TensorStore refuses a ``zarr.json`` with one. :class:`~tensorstash.errors.Invalid`,
    naming the key, when a value has no JSON form, or nests deeper than :data:`MAX_DEPTH`.
    """
    try:
        _check_json(document, "", 1)
        return json.dumps(document, indent=2).encode()
    except RecursionError as error:
        raise _too_deep() from error


def template(make: Callable[[int], Mapping[str, Any]], number: int) -> Callable[[int], bytes]:
    """``encode(make(n))`` as a function of ``n``, which is spelled out in the document and changes
    nothing else: made once, for documents that grow with every row. Compared with the whole for
    ``number``."""
    parts = encode(make(_ANY)).split(b"%d" % _ANY)

    def fill(n: int) -> bytes:
        return (b"%d" % n).join(parts)

    # Else the digits stand for something else too, in the user's attributes perhaps.
    return fill if fill(number) == encode(make(number)) else lambda n: encode(make(n))


def _too_deep() -> Invalid:
    return Invalid(
        f"attributes nest too deeply (documents have at most {MAX_DEPTH} levels), or contain "
        "themselves; store less of it, or as text"
    )


def _check_json(value: Any, where: str, depth: int) -> None:
    if value is None or isinstance(value, str | int | float):
        return
    if depth > MAX_DEPTH:
        raise _too_deep()
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Invalid(f"key {short(key)} of {where or 'the document'} is not text")
            _check_json(item, f"{where}.{key}" if where else key, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
    else:
        raise Invalid(
            f"{where} is of type {type(value).__name__}, which JSON cannot hold; "
            "convert it with .tolist(), .item() or str()"
        )


def guarded(name: str, read: Callable[[], Result]) -> Result:
    """``read()``, with a document too deep for the interpreter reported as what it is."""
    try:
        return read()
    except RecursionError as error:
        raise Unsupported(f"{name} nests too deeply to be read") from error


def attributes(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The attributes in a document; absent and null are none."""
    found = document.get("attributes")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid(f"{name}: attributes are {short(found)}, not an object")
    return found


def lengths(value: Any, what: str, least: int) -> tuple[int, ...]:
    """``value`` checked as a list of axis lengths, each at least ``least``."""
    if not isinstance(value, list):
        raise Invalid(f"{what} is {short(value)}, not a list of integers")
    if len(value) > MAX_NDIM:
        raise Unsupported(
            f"{what} has {counted(len(value), 'axis', 'axes')}; the most is {MAX_NDIM}"
        )
    for item in value:
        if type(item) is not int or not least <= item <= MAX_LENGTH:
            raise Invalid(f"{what} has {short(item)}; each must be an integer of at least {least}")
    return tuple(value)


def edges(value: Any, what: str, shape: Sequence[int]) -> tuple[int, ...]:
    """``value`` checked as the chunk shape of an array of ``shape``.

    Zero is read as one along an axis of no elements: zarr-python writes it there.
    """
    found = lengths(value, what, 0)
    if len(found) != len(shape):
        raise Invalid(
            f"{what} {list(found)} has not the {counted(len(shape), 'axis', 'axes')} of the shape"
        )
    if any(edge == 0 and length for edge, length in zip(found, shape, strict=True)):
        raise Invalid(f"{what} {list(found)} has an edge below 1")
    return tuple(max(1, edge) for edge in found)


def refuse_unknown(document: Mapping[str, Any], known: Iterable[str], name: str) -> None:
    """Raise for keys of ``document`` that are neither ``known`` nor marked as optional
    (Zarr v3 core, "Extension points": ``must_understand``)."""
    known = tuple(known)
    for key, value in document.items():
        optional = isinstance(value, dict) and value.get("must_understand") is False
        if key in known or optional:
            continue
        close = difflib.get_close_matches(key[:400], [k for k in known if k not in document], 1)
        if close:
            raise Invalid(f"{name} has an unknown key {short(key)}; did you mean {close[0]!r}?")
        raise Unsupported(
            f"{name} has a key {short(key)} that we do not know and that is not marked "
            '"must_understand": false; open it with the software that wrote it'
        )
