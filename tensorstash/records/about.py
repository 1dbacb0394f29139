"""What records are and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..driver import Driver, located
from ..explain import changed, modified_at, readable, stored_size
from ..metadata import zarr3
from .catalog import Catalog, arrays_of
from .schema import Field


@dataclass(frozen=True)
class FieldInfo:
    """One field at a glance. ``nbytes`` is what its rows have in memory, of numbers; 0 of others.
    ``stored_bytes`` in ``stored_chunks`` objects are its chunks."""

    name: str
    field: Field
    rows_per_chunk: int
    nbytes: int
    stored_chunks: int
    stored_bytes: int


@dataclass(frozen=True)
class RecordsInfo:
    """Records at a glance: prints as a table of the fields."""

    url: str
    rows: int
    fields: tuple[FieldInfo, ...]
    modified: datetime | None = None
    """When the document of their group was last stored (see :class:`tensorstash.Info`)."""

    @property
    def stored_bytes(self) -> int:
        """What all chunks of these fields take up."""
        return sum(field.stored_bytes for field in self.fields)

    def __str__(self) -> str:
        head = ("field", "rows are", "rows a chunk", "in memory", "stored", "objects")
        rows = [
            (
                one.name,
                repr(one.field),
                f"{one.rows_per_chunk:,}",
                readable(one.nbytes) if one.nbytes else "",
                readable(one.stored_bytes),
                f"{one.stored_chunks:,}",
            )
            for one in self.fields
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]
        stored, when = readable(self.stored_bytes), changed(self.modified)
        many = f"{self.rows:,} {'row' if self.rows == 1 else 'rows'}"
        return "\n".join([f"{self.url} (changed: {when}): {many}, {stored} stored", *lines])


def info(driver: Driver, path: str, catalog: Catalog, names: Sequence[str]) -> RecordsInfo:
    """Look at some fields of the records at ``path``; lists their stored chunks."""
    found = []
    for name in names:
        field = catalog.fields[name]
        nbytes = objects = stored = 0
        for array in arrays_of(name, field):
            spec = catalog.specs[array]
            more = stored_size(driver, f"{path}{array}/", spec)
            objects, stored = objects + more[0], stored + more[1]
            if field.dtype.kind not in "TO":
                nbytes += spec.size * spec.dtype.itemsize
        found.append(FieldInfo(name, field, catalog.chunk_rows(name), nbytes, objects, stored))
    modified = modified_at(driver, path + zarr3.KEY)
    return RecordsInfo(located(driver, path), catalog.rows, tuple(found), modified)
