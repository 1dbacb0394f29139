"""User attributes: a mapping whose changes are stored at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from .driver import Driver
from .errors import NotFound, listed
from .metadata.document import as_plain
from .metadata.node import Content, update_attributes


class _Handle(Protocol):
    driver: Driver
    path: str

    def attributes(self) -> Mapping[str, Any]: ...
    def _open(self, write: bool = ...) -> None: ...
    def refresh(self) -> Any: ...
    def _content(self) -> Content | None: ...


class Attributes(MutableMapping[str, Any]):
    """The attributes of an array or group, as its handle knows them.

    Assigning and deleting store the new document in one step, keeping what other writers
    change meanwhile. A list or dict that you get is a copy: assign it back to store a change.
    NumPy's scalars and arrays are stored as numbers and lists of them.
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

    def update(self, *others: Any, **more: Any) -> None:
        """Store several attributes in one step."""
        new = as_plain(dict(*others, **more))
        self._change(lambda old: {**old, **new})

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"no attribute {key!r}; there are: {listed(self)}")

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        handle = self._handle
        handle._open(write=True)
        known = handle._content()
        update_attributes(handle.driver, handle.path, change, known)
        if known is not None:  # else it is read on first use
            handle.refresh()

    def __repr__(self) -> str:
        return repr(dict(self))
