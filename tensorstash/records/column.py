"""One field's rows: read, checked, written, and added at the end."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..array import Array
from ..coerce import broadcast
from ..columns import Placed
from ..driver import Check, located
from ..dtype import STRING
from ..engine.in_place.single import Slot, put_row
from ..engine.in_place.writing import is_in_place
from ..engine.look import Look
from ..engine.resize import write_into_one
from ..errors import Corrupt, Invalid, StashError, Unsupported, counted, short
from ..handle import NoOperators
from ..indexing.selection import leading
from .casting import safe_cast, single_row
from .schema import Field

Rows = slice | NDArray[Any]
"""Row numbers, checked and not negative: a slice with a positive step, or an integer array."""


class FieldArray(Array):
    """A field's array as users have it. Its rows are the records'."""

    _slot: Slot | bool | None = None

    def append(self, rows: Any, axis: int = 0) -> int:
        """Refused: rows have all fields."""
        raise self._alone()

    def resize(self, shape: Sequence[int] | int) -> None:
        """Refused: rows have all fields."""
        raise self._alone()

    def as_value(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """``value`` as an array of ``shape``; refused where numbers would lose a part."""
        dtype = self.spec.dtype
        known = type(value) is int and dtype.kind in "iu"  # NumPy refuses those that do not fit
        if dtype.kind not in "OT" and not known:
            value = safe_cast(value, dtype)
        return super().as_value(value, shape)

    def write_run(self, rows: Rows, values: Any) -> bool:
        """``array[rows] = values`` of rows that follow each other in one chunk; ``False``: they do
        not, or are no plain memory."""
        if not isinstance(rows, slice) or rows.step != 1 or not isinstance(values, np.ndarray):
            return False
        shape, dtype = self.spec.shape, self.spec.dtype
        wanted = (rows.stop - rows.start, *shape[1:])
        if values.shape != wanted or dtype.kind in "OT" or rows.stop > shape[0]:
            return False
        self._open(write=True)
        try:
            return write_into_one(self._write, rows.start, super().as_value(values, wanted), 0)
        except MemoryError as error:
            raise self._read.chunks.no_memory("write", values.shape, error) from error

    def put_beyond(self, row: int, value: NDArray[Any], check: Check) -> bool:
        """Store a row that nobody sees yet, after ``check``; ``False``: it is not stored in place,
        or under a lease, where every put is conditional."""
        slot = self._slot
        if slot is None:
            chunks = self.make_writer(self.spec).chunks
            local = chunks.driver.capabilities.local
            slot = Slot(chunks) if local and is_in_place(chunks) and Slot.fits(chunks) else False
            self._slot = slot
        if not isinstance(slot, Slot):
            return False
        data = slot.plain(np.ascontiguousarray(value, slot.dtype).reshape(slot.shape))
        if data is None:
            return False
        put_row(None, check, [(slot, data)], row)
        return True

    def _alone(self) -> Unsupported:
        where = located(self.driver, self.path)
        return Unsupported(
            f"{where} is a field of records, whose rows have all fields: add them with append() or "
            "extend() of the records"
        )


def read_rows(
    array: Array, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
) -> NDArray[Any]:
    """``array[rows]``; see :meth:`~tensorstash.array.Array.read`. Whether the field is still this
    one is looked at once for all fields, or by ``look``."""
    return array.read_unwatched(leading(rows, array.shape), out, None, look)


def write_rows(array: Array, rows: Rows, values: Any, look: Look | None = None) -> None:
    """``array[rows] = values``, after ``look``."""
    if not (look is None and isinstance(array, FieldArray) and array.write_run(rows, values)):
        array.write_unwatched(leading(rows, array.shape), values, None, look)


class Column(NoOperators, ABC):
    """One field over its array. ``checked`` turns a user's values into what ``put`` and ``reserve``
    take, or raises before anything is stored."""

    def __init__(self, path: str, field: Field, arrays: Sequence[Array]) -> None:
        self.path = path
        self.field = field
        self.arrays = tuple(arrays)

    @abstractmethod
    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """The rows' values: an array, a ``Ragged``, or a list. ``look`` travels with what is
        asked for last, in a remote store."""

    @abstractmethod
    def checked(self, values: Any, count: int, repeat: bool = False) -> Any:
        """``values`` for ``count`` rows, ready to be stored; with ``repeat`` one row's value may
        stand for all. :class:`~tensorstash.errors.Invalid` names the field."""

    def one(self, value: Any) -> Any:
        """A row's value as values of one row, to be checked."""
        return [value]

    def put(self, rows: Rows, values: Any, look: Look | None = None) -> int:
        """Store checked values in rows that are there, once ``look`` has ended. Returns where
        values that were added for it end, of a field that has values apart from its rows."""
        write_rows(self.arrays[0], rows, values, look)
        return 0

    def reserve(self, values: Any) -> Any:
        """What ``values`` need before rows are added: returns what is added as rows."""
        return values

    def read(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> NDArray[Any]:
        """What the first array holds in these rows."""
        return read_rows(self.arrays[0], rows, out, look)

    def wrong(self, what: str) -> Invalid:
        """An error about this field's values."""
        return Invalid(f"field {self.path!r}: {what}")


class FixedColumn(Column):
    """Rows of one shape and dtype."""

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """See :meth:`Column.take`."""
        return self.read(rows, out, look)

    def one(self, value: Any) -> Any:
        """See :meth:`Column.one`."""
        return single_row(value)

    def checked(self, values: Any, count: int, repeat: bool = False) -> Any:
        """See :meth:`Column.checked`."""
        field = self.field
        wanted = (count, *field.shape)
        try:
            array = safe_cast(values, field.dtype)
        except Invalid as error:
            raise self.wrong(str(error)) from error
        if array.shape == wanted:
            return array
        if not count and not array.size:
            return np.empty(wanted, field.dtype)
        try:
            if repeat:
                return broadcast(array, wanted)
        except Invalid:
            pass
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
                raise self.wrong(
                    f"{short(values)} where values of {counted(count, 'row')} are needed"
                )
            values = [values] * count
        if not isinstance(values, Iterable):
            raise self.wrong(f"{short(values)} where values of {counted(count, 'row')} are needed")
        listed = list(values)
        if isinstance(values, np.ndarray) and self.field.kind != "object":
            listed = values.tolist()
        if len(listed) != count:
            raise self.wrong(f"{counted(len(listed), 'value')} for {counted(count, 'row')}")
        out = np.empty(count, STRING if self.field.dtype.kind == "T" else object)
        for i, value in enumerate(listed):
            encoded = self.encode(value)
            try:
                out[i] = encoded
            except UnicodeEncodeError as error:
                raise self.wrong(f"{short(value)} has no UTF-8 form: {error.reason}") from error
        return out

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """A row's value as it is stored."""


class TextColumn(ListColumn):
    """Rows of text."""

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """See :meth:`Column.take`: a StringDType array."""
        return self.read(rows, None, look)

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        if not isinstance(value, str):
            raise self.wrong(f"{short(value)} is not text")
        return value


class BytesColumn(ListColumn):
    """Rows of bytes."""

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """See :meth:`Column.take`: a list of bytes."""
        return self.read(rows, None, look).tolist()

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise self.wrong(f"{short(value)} is not bytes")
        return bytes(value)


class JsonColumn(ListColumn):
    """Rows of whatever JSON can hold; one never written is ``None``."""

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """See :meth:`Column.take`: a list of values."""
        found = self.read(rows, None, look).tolist()
        try:
            return [json.loads(text) if text else None for text in found]
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"field {self.path!r} holds text that is not JSON: {error}") from error

    def encode(self, value: Any) -> Any:
        """See :meth:`ListColumn.encode`."""
        try:
            text = _json(value, False)
            # Half a surrogate pair is no text, but JSON has a spelling for it.
            return text if text.isascii() or _is_unicode(text) else _json(value, True)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.wrong(f"{short(value)} has no JSON form: {error}") from error


class ObjectColumn(ListColumn):
    """Rows of Python objects, pickled. Reading them runs code found in the data, so that both
    sides must have asked for it."""

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Any:
        """See :meth:`Column.take`: a list of objects."""
        self._allowed()
        try:
            return [pickle.loads(d) if d else None for d in self.read(rows, None, look).tolist()]
        except StashError:
            raise
        except (ImportError, AttributeError) as error:
            raise Unsupported(
                f"field {self.path!r} holds an object of a class that is not here ({error}); "
                "install or import what defines it"
            ) from error
        except Exception as error:
            raise Corrupt(
                f"field {self.path!r} holds a pickle that cannot be read: {short(error)}"
            ) from error

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


def _json(value: Any, ascii_only: bool) -> str:
    return json.dumps(
        value, ensure_ascii=ascii_only, allow_nan=False, separators=(",", ":"), default=_plain
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and tensors, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")
