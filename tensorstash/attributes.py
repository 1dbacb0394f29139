"""User attributes: a mapping whose changes are stored at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .driver import Driver
from .errors import Invalid, NotFound, listed
from .metadata.document import as_plain
from .metadata.node import Content, update_attributes
from .metadata.zarr3 import IN_PLACE

AttributeValue: TypeAlias = (
    "bool | float | str | np.generic | NDArray[Any]"
    " | Sequence[AttributeValue] | Mapping[str, AttributeValue] | None"
)
"""What an attribute may be: what JSON can hold, and numbers and arrays of NumPy."""


class _Handle(Protocol):
    driver: Driver
    path: str

    def attributes(self) -> Mapping[str, Any]: ...
    def _open(self, write: bool = ...) -> None: ...
    def refresh(self) -> Any: ...
    def _content(self) -> Content | None: ...


class Attributes(MutableMapping[str, Any]):
    """The user attributes of an array, a group or records: a mapping stored at once.

    ``a.attrs`` has all methods of a dict. Assigning and deleting store the new document in one
    step, keeping what other writers change meanwhile. A list or dict that you get is a copy: assign
    it back to store a change. Numbers and arrays of NumPy are stored as numbers and lists.

    Raises:
        NotFound: ``attrs[name]`` is not there. Invalid: JSON cannot hold a value. ReadOnly: a
        change, and the handle was opened for reading.

    >>> a = stash.create({}, 3, "int8", attributes={"unit": "mm"})
    >>> a.attrs["scale"] = 0.5
    >>> dict(a.attrs)
    {'unit': 'mm', 'scale': 0.5}
    """

    def __init__(self, handle: Any) -> None:
        """Attributes of ``handle``, an array or a group."""
        self._handle: _Handle = handle

    def __getitem__(self, key: str) -> Any:
        try:
            return as_plain(self._handle.attributes()[key])
        except KeyError:
            raise self._missing(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle.attributes())

    def __len__(self) -> int:
        return len(self._handle.attributes())

    def __setitem__(self, key: str, value: Any) -> None:
        plain = as_plain(value)
        self._change(lambda old: {**old, key: plain})

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise self._missing(key)
        self._change(lambda old: {k: v for k, v in old.items() if k != key})

    def update(self, *others: Any, **more: AttributeValue) -> None:
        """Store several attributes in one step, keeping the others.

        Args:
            others: a mapping, or pairs of name and value, as ``dict.update`` takes.
            more: attributes by name.

        Raises:
            Invalid: JSON cannot hold a value.
            ReadOnly: the handle was opened for reading.

        >>> a = stash.create({}, 3, "int8")
        >>> a.attrs.update(unit="mm", scale=[1, 2])
        >>> a.attrs["scale"]
        [1, 2]
        """
        new = as_plain(dict(*others, **more))
        self._change(lambda old: {**old, **new})

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"no attribute {key!r}; there are: {listed(self)}")

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        def changed(old: dict[str, Any]) -> dict[str, Any]:
            new = change(old)
            if new.get(IN_PLACE) != old.get(IN_PLACE):
                raise reserved()
            return new

        handle = self._handle
        handle._open(write=True)
        known = handle._content()
        update_attributes(handle.driver, handle.path, changed, known)
        if known is not None:  # else it is read on first use
            handle.refresh()

    def __repr__(self) -> str:
        return repr(dict(self))


def reserved() -> Invalid:
    """The error about a user's attribute that would say how chunks are written."""
    return Invalid(
        f"the attribute {IN_PLACE!r} says how chunks are written, and is set by create(..., "
        "in_place=True) alone; choose another name"
    )
