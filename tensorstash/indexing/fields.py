"""Named fields of records: which of them a selection names, and where they are in a record."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coerce import as_array, broadcast
from ..errors import Invalid, InvalidSelection, Unsupported, short


@dataclass(frozen=True)
class Fields:
    """Some fields of the records of an array.

    ``stored`` is a whole record in which only these are named; ``packed`` a record of nothing
    but these. ``single``: one name was given, so that an element is the field and no record.
    """

    stored: np.dtype[Any]
    packed: np.dtype[Any]
    single: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the order in which they were given."""
        return self.packed.names or ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """What one element is: a field, or a packed record of several."""
        return self.packed[0] if self.single else self.packed

    @property
    def within(self) -> np.dtype[Any]:
        """``stored`` with the names that a selection of these fields may name."""
        if not self.single:
            return self.stored
        inner = self.dtype
        if inner.names is None:
            return inner
        start = _place(self.stored, self.names[0])[1]
        places = [_place(inner, name) for name in inner.names]
        return _record(
            inner.names, [(part, start + at) for part, at in places], self.stored.itemsize
        )

    def of(self, records: NDArray[Any]) -> NDArray[Any]:
        """A view of whole records, to be indexed by these :attr:`names`."""
        return records.view(self.stored)

    def records(self, elements: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """``elements`` of :attr:`dtype` (C-contiguous where the field is an array of its own) seen
        as packed records of ``shape``, in the same memory."""
        if not self.single:
            return elements
        if not self.dtype.shape:
            return elements.view(self.packed)
        if not elements.flags.c_contiguous:
            raise Invalid(
                f"field {self.names[0]!r} is an array in every record: out must be C-contiguous; "
                "pass such an array"
            )
        return np.ndarray(shape, self.packed, elements)

    def source(self, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """``value``, broadcast by NumPy's assignment rules, as packed records of ``shape``."""
        dtype = self.dtype
        elements = broadcast(as_array(value, dtype.base), shape + dtype.shape)
        if elements.dtype != dtype.base or dtype.shape:
            elements = np.ascontiguousarray(elements, dtype.base).reshape(elements.shape)
        return self.records(elements, shape)

    def view(self) -> Fields:
        """These fields, for a view, which has the dimensions of its selection and no others."""
        if self.dtype.shape:
            raise Unsupported(
                f"field {self.names[0]!r} is an array of shape {self.dtype.shape} in every record, "
                "of which there are no lazy views; read it with a[field, selection]"
            )
        return self


def named(selection: Any, dtype: np.dtype[Any]) -> tuple[Fields | None, Any]:
    """The fields of ``dtype`` that a selection names, and the rest of the selection.

    ``"x"`` names one field, ``["x", "y"]`` several; in a tuple they stand beside indices.
    ``None`` where none is named, or all are, in order. ``"outer.inner"`` is a field of a field.
    """
    if dtype.names is None:
        return None, selection
    items = selection if type(selection) is tuple else (selection,)
    given = [item for item in items if _is_name(item) or _are_names(item)]
    if not given:
        return None, selection
    single = len(given) == 1 and _is_name(given[0])
    if not single and any(map(_are_names, given)) and len(given) > 1:
        raise InvalidSelection(
            f"fields are named once, by a name or a list of names, not {short(given)}"
        )
    names = tuple(map(str, given if _is_name(given[0]) else given[0]))
    rest = tuple(item for item in items if not any(item is one for one in given))
    if len(set(names)) < len(names):
        raise InvalidSelection(f"a field is named twice in {short(list(names))}; name each once")
    places = [_place(dtype, name) for name in names]
    if not single and names == dtype.names:
        return None, rest or ...
    packed = np.dtype([(name, part) for name, (part, _) in zip(names, places, strict=True)])
    return Fields(_record(names, places, dtype.itemsize), packed, single), rest or ...


def _is_name(item: Any) -> bool:
    return isinstance(item, str)


def _are_names(item: Any) -> bool:
    return type(item) is list and bool(item) and all(map(_is_name, item))


def _place(dtype: np.dtype[Any], name: str) -> tuple[np.dtype[Any], int]:
    """A field's dtype, and the byte at which it begins in a record."""
    found = _find(dtype, name)
    if found is None:
        known = [*_paths(dtype)]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the fields are {short(known)}"
        raise InvalidSelection(f"there is no field {name!r}; {hint}")
    return found


def _find(dtype: np.dtype[Any], name: str) -> tuple[np.dtype[Any], int] | None:
    fields: Any = dtype.fields or {}
    if name in (dtype.names or ()):
        part, offset = fields[name][:2]
        return part, offset
    for outer in dtype.names or ():
        if name.startswith(outer + "."):
            part, offset = fields[outer][:2]
            found = _find(part, name[len(outer) + 1 :])
            if found is not None:
                return found[0], offset + found[1]
    return None


def _paths(dtype: np.dtype[Any]) -> Iterator[str]:
    """Every name that :func:`_find` finds."""
    for name in dtype.names or ():
        yield name
        yield from (f"{name}.{inner}" for inner in _paths(dtype[name]))


def _record(
    names: Sequence[str], places: Sequence[tuple[np.dtype[Any], int]], nbytes: int
) -> np.dtype[Any]:
    """A record of ``nbytes`` with these fields at these places."""
    return np.dtype(
        {
            "names": list(names),
            "formats": [part for part, _ in places],
            "offsets": [at for _, at in places],
            "itemsize": nbytes,
        }
    )
