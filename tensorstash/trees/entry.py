"""What a listing says of one array, group or records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import StashError, counted
from ..metadata.mark import is_records
from ..metadata.node import Content
from ..metadata.spec import ArraySpec

Kind = Literal["array", "group", "records", "unreadable"]


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One array, group or records, as :func:`ls` and :func:`walk` find it.

    ``path``: its path from the place that was listed, such as ``"raw/image"``. ``kind``:
    ``"array"``, ``"group"``, ``"records"``, or ``"unreadable"`` where something is stored that
    cannot be opened: damaged, not known here, or a copy or delete that did not end. ``shape`` and
    ``dtype``: of an array, else ``None``. ``rows``: how many there are in records, else ``None``.
    ``why``: what is wrong with what is unreadable, else ``""``.

    >>> a = stash.create_group("memory://entries").create("raw/image", (2, 3), "uint8")
    >>> print(*stash.walk("memory://entries"), sep="\\n")
    raw  group
    raw/image  array  (2, 3) uint8
    """

    path: str
    kind: Kind
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    rows: int | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """The last part of ``path``."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        said = {
            "array": f"{self.shape} {self.dtype}",
            "records": "" if self.rows is None else counted(self.rows, "row"),
            "unreadable": self.why,
        }
        return f"{self.path}  {self.kind}  {said.get(self.kind, '')}".rstrip()

    def __repr__(self) -> str:
        return f"<Entry {self}>"


def entry_of(path: str, content: Content | StashError) -> Entry:
    """The entry of what is stored at ``path``, or cannot be read there."""
    if isinstance(content, StashError):
        return Entry(path, "unreadable", why=" ".join(str(content).split()))
    if isinstance(content, ArraySpec):
        return Entry(path, "array", content.shape, content.dtype)
    if not is_records(content.attributes):
        return Entry(path, "group")
    rows = content.attributes["tensorstash"].get("rows")
    return Entry(path, "records", rows=rows if type(rows) is int and rows >= 0 else None)
