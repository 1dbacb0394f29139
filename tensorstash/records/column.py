"""One field's rows: read, checked, written, and added at the end."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..array import Array
from ..dtype import STRING, is_float, short
from ..errors import Corrupt, Invalid, Unsupported
from ..values import as_array
from .schema import Field

Rows = slice | NDArray[Any]
"""Row numbers, checked and not negative: a slice with a positive step, or an integer array."""


class Column(ABC):
    """One field over its array. ``checked`` turns a user's values into what ``put`` and ``grow``
    store, or raises before anything is stored."""

    def __init__(self, path: str, field: Field, arrays: Sequence[Array]) -> None:
        self.path = path
        self.field = field
        self.arrays = tuple(arrays)

    @abstractmethod
    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """The rows' values: an array, a ``Ragged``, or a list."""

    @abstractmethod
    def checked(self, values: Any, count: int, repeat: bool = False) -> Any:
        """``values`` for ``count`` rows, ready to be stored; with ``repeat`` one row's value may
        stand for all. :class:`~tensorstash.errors.Invalid` names the field."""

    def put(self, rows: Rows, values: Any) -> None:
        """Store checked values in rows that are there."""
        self.arrays[0][rows] = values

    def reserve(self, values: Any) -> Any:
        """What ``values`` need before rows are added: answers what is added as rows."""
        return values

    def wrong(self, what: str) -> Invalid:
        """An error about this field's values."""
        return Invalid(f"field {self.path!r}: {what}")


class FixedColumn(Column):
    """Rows of one shape and dtype."""

    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """See :meth:`Column.take`."""
        return self.arrays[0].read(rows, out=out)

    def checked(self, values: Any, count: int, repeat: bool = False) -> Any:
        """See :meth:`Column.checked`."""
        field = self.field
        wanted = (count, *field.shape)
        try:
            array = numbers(values, field.dtype)
        except Invalid as error:
            raise self.wrong(str(error)) from error
        if array.shape == wanted:
            return array
        if repeat and array.shape in (field.shape, ()):
            return np.broadcast_to(array, wanted)
        raise self.wrong(f"shape {array.shape} where {wanted} is needed")


class ListColumn(Column):
    """Rows that are one value each, stored as text or bytes."""

    def checked(self, values: Any, count: int, repeat: bool = False) -> Any:
        """See :meth:`Column.checked`."""
        single = isinstance(values, (str, bytes)) or (
            self.field.kind in ("json", "object") and not isinstance(values, (list, np.ndarray))
        )
        if single:
            if not repeat:
                raise self.wrong(f"{short(values)} where {count} rows' values are needed")
            values = [values] * count
        listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if len(listed) != count:
            raise self.wrong(f"{len(listed)} values for {count} rows")
        out = np.empty(count, STRING if self.field.dtype.kind == "T" else object)
        for i, value in enumerate(listed):
            out[i] = self.encode(value)
        return out

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """A row's value as it is stored."""


class TextColumn(ListColumn):
    """Rows of text."""

    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """See :meth:`Column.take`: a StringDType array."""
        return self.arrays[0].read(rows)

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        if not isinstance(value, str):
            raise self.wrong(f"{short(value)} is no text")
        return value


class BytesColumn(ListColumn):
    """Rows of bytes."""

    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """See :meth:`Column.take`: a list of bytes."""
        return self.arrays[0].read(rows).tolist()

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise self.wrong(f"{short(value)} is no bytes")
        return bytes(value)


class JsonColumn(ListColumn):
    """Rows of whatever JSON can hold; one never written is ``None``."""

    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """See :meth:`Column.take`: a list of values."""
        found = self.arrays[0].read(rows).tolist()
        try:
            return [json.loads(text) if text else None for text in found]
        except ValueError as error:
            raise Corrupt(f"field {self.path!r} holds text that is not JSON: {error}") from error

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        try:
            return json.dumps(
                value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise self.wrong(f"{short(value)} has no JSON form: {error}") from error


class ObjectColumn(ListColumn):
    """Rows of Python objects, pickled. Reading them runs code found in the data, so that both
    sides must have asked for it."""

    def take(self, rows: Rows, out: NDArray[Any] | None = None) -> Any:
        """See :meth:`Column.take`: a list of objects."""
        self._allowed()
        return [pickle.loads(data) if data else None for data in self.arrays[0].read(rows).tolist()]

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        self._allowed()
        try:
            return pickle.dumps(value)
        except Exception as error:
            raise self.wrong(f"{short(value)} cannot be pickled: {error}") from error

    def _allowed(self) -> None:
        if not self.arrays[0].settings.allow_pickle:
            raise Unsupported(
                f"field {self.path!r} holds pickled objects, which run code when they are read; "
                "pass allow_pickle=True if you trust who wrote them"
            )


def numbers(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` as an array that can be stored as ``dtype``; :class:`~tensorstash.errors.Invalid`
    when that would change it beyond rounding: fractions, numbers out of range, text."""
    if not hasattr(value, "dtype"):
        try:
            found = np.asarray(value)
        except ValueError as error:
            raise Invalid(f"{short(value)} is no array: {error}") from error
        value = found if found.dtype.kind in "biufc" else value
    given = getattr(value, "dtype", None)
    if dtype.kind in "iub" and isinstance(given, np.dtype) and is_float(given):
        raise Invalid(f"{given} values in a field of {dtype} would lose fractions; cast them")
    array = as_array(value, dtype)
    kinds = array.dtype.kind + dtype.kind
    if array.dtype == dtype or not array.size or np.can_cast(array.dtype, dtype, "safe"):
        return array
    if kinds[0] in "iu" and kinds[1] in "iu":
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(dtype)
        if not limits.min <= low <= high <= limits.max:
            raise Invalid(f"{low if low < limits.min else high} is out of range for {dtype}")
    elif dtype.kind in "iub" or (kinds[0] == "c" and kinds[1] != "c"):
        raise Invalid(f"{array.dtype} values in a field of {dtype} would lose a part; cast them")
    return array


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and tensors, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON value")
