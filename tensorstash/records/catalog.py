"""Records as their group's document has them: the fields, their arrays, the number of rows.

One document holds all of it (Zarr v3's consolidated metadata), so that opening is one read, and
what changes several fields at once is published by one conditional put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from datetime import datetime
from typing import Any, TypeAlias, cast, get_args

from ..attributes import Attributes
from ..cached import Cached
from ..driver import Driver, Tag, located
from ..dtype import is_extended
from ..errors import Corrupt, Invalid, StashError, Unsupported, counted, short
from ..explain import changed, modified_at, readable, stored_size
from ..metadata import zarr3
from ..metadata.document import GroupDocument
from ..metadata.spec import ArraySpec, difference, is_another
from ..metadata.trailer import new_identity
from . import schema
from .schema import Field, Fields, Kind

ATTRIBUTE = "tensorstash"
"""The attribute of the group that says what no array's metadata can: the fields' kinds."""

VALUES, OFFSETS = "values", "offsets"

_VERSION = 1


@dataclass(frozen=True)
class Catalog:
    """``fields`` by path, ``specs`` of all arrays by path (a ragged field has two, ``values``
    and ``offsets`` below its own path), the user's ``attributes``, and how many ``rows``;
    ``row_sizes``: how many values rows of ragged fields are taken to have, estimated as they were
    added; ``tag``: of the document that says so, where it was read."""

    fields: Fields
    specs: Mapping[str, ArraySpec]
    rows: int
    attributes: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]
    row_sizes: Mapping[str, RowSizes] = field_of(default_factory=dict)
    tag: Tag | None = field_of(default=None, repr=False, compare=False)

    def chunk_rows(self, path: str) -> int:
        """Rows of one chunk of a field."""
        field = self.fields[path]
        spec = self.specs[f"{path}/{OFFSETS}" if field.kind == "ragged" else path]
        codec = spec.codecs[0]
        edges = getattr(codec, "chunk_shape", None) or spec.grid.chunks
        return int(edges[0]) if edges else 1

    @Cached
    def step(self) -> int:
        """Rows of the smallest chunk of any field."""
        return min(map(self.chunk_rows, self.fields))

    @Cached
    def kinds(self) -> frozenset[Kind]:
        """The kinds of field that there are."""
        return frozenset(field.kind for field in self.fields.values())


def arrays_of(path: str, field: Field) -> tuple[str, ...]:
    """The paths of a field's arrays."""
    return (f"{path}/{VALUES}", f"{path}/{OFFSETS}") if field.kind == "ragged" else (path,)


def with_new_identities(specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """The arrays of new fields, each with an identity of its own, by which old handles notice."""
    return {name: replace(spec, identity=new_identity()) for name, spec in specs.items()}


def changed_fields(known: Catalog, now: Catalog) -> dict[str, str | None]:
    """Fields of ``known`` that are others in ``now``, and in which way; ``None``: they are gone."""
    found: dict[str, str | None] = {}
    for path, field in known.fields.items():
        other = now.fields.get(path)
        if other is None:
            found[path] = None
        elif other != field:
            found[path] = f"{field!r} is now {other!r}"
        else:
            for name in arrays_of(path, field):
                what = difference(known.specs[name], now.specs[name])
                if what is not None:
                    found[path] = what
    return found


def as_known(now: Catalog, identities: Mapping[str, bytes | None]) -> Catalog:
    """``now`` as one who knows arrays by these ``identities`` must have it: those that are others
    by now with the identity of before, so that they are told from it, and only they."""
    others = {
        name: replace(spec, identity=identities[name])
        for name, spec in now.specs.items()
        if is_another(identities.get(name), spec.identity)
    }
    return replace(now, specs={**now.specs, **others}) if others else now


def dropped_fields(identities: Mapping[str, object], now: Catalog) -> tuple[str, ...]:
    """Fields of the arrays that were known by ``identities`` and are no more."""
    gone = (name for name in identities if name not in now.specs)
    return tuple(name.removesuffix(f"/{VALUES}").removesuffix(f"/{OFFSETS}") for name in gone)


def is_same_array(one: ArraySpec, other: ArraySpec) -> bool:
    """Whether two specs differ in nothing that stored or decoded chunks depend on."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("dtype", "grid", "keys", "codecs")
    )


def member_documents(catalog: Catalog) -> dict[str, Mapping[str, Any]]:
    """The document of every array, and of the groups between."""
    found: dict[str, Mapping[str, Any]] = {}
    for path, spec in catalog.specs.items():
        *above, _ = path.split("/")
        for k in range(1, len(above) + 1):
            group = "/".join(above[:k])
            found.setdefault(group, catalog.groups.get(group) or _group_document())
        found[path] = zarr3.array_document(spec)
    return found


def to_document(catalog: Catalog) -> GroupDocument:
    """The group's document."""
    kinds = {path: field.kind for path, field in catalog.fields.items()}
    entry: dict[str, Any] = {"records": _VERSION, "rows": catalog.rows, "fields": kinds}
    identities = {n: s.identity.hex() for n, s in catalog.specs.items() if s.identity}
    if identities:
        entry["identities"] = identities
    known = member_documents(catalog)
    odd = [path for path, spec in catalog.specs.items() if not _is_known_to_all(spec)]
    if odd:
        entry["members"] = {path: known.pop(path) for path in odd}
    if catalog.row_sizes:
        entry["sizes"] = {
            path: [*map(list, row_sizes)] for path, row_sizes in catalog.row_sizes.items()
        }
    return GroupDocument({**catalog.attributes, ATTRIBUTE: entry}, known, 3, catalog.document)


def from_document(document: GroupDocument, where: str) -> Catalog:
    """What a group's document says. :class:`~tensorstash.errors.Invalid` for a group that holds
    no records, :class:`~tensorstash.errors.Corrupt` where it contradicts itself."""
    attributes = dict(document.attributes)
    entry = attributes.pop(ATTRIBUTE, None)
    kinds = entry.get("fields") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(kinds, Mapping) or "records" not in entry:
        raise Invalid(
            f"{where} is a group but holds no records; open it with open_group(), or make records "
            "of its arrays with save_records()"
        )
    version, rows = entry["records"], entry.get("rows")
    if type(version) is not int or version != _VERSION:
        raise Unsupported(f"{where} holds records of version {short(version)}; 1 is what we know")
    if type(rows) is not int or rows < 0:
        raise Corrupt(f"{where} has {short(rows)} rows in its attributes", key=zarr3.KEY)
    separate = entry.get("members", {})
    if not isinstance(separate, Mapping) or not all(
        isinstance(m, Mapping) for m in separate.values()
    ):
        raise Corrupt(f"{where} has {short(separate)} as metadata of members", key=zarr3.KEY)
    known = {**(document.consolidated or {}), **separate}
    identities = entry.get("identities", {})
    if not isinstance(identities, Mapping):
        raise Corrupt(f"{where} has {short(identities)} as identities of arrays", key=zarr3.KEY)
    _check_names(kinds, where)
    specs: dict[str, ArraySpec] = {}
    groups = {p: m for p, m in known.items() if m.get("node_type") == "group"}
    fields: Fields = {}
    for path, kind in kinds.items():
        if kind not in get_args(Kind):
            raise Unsupported(
                f"{where}: field {path!r} is of kind {short(kind)}, which is not known"
            )
        names = arrays_of(path, Field(cast(Kind, kind)))
        for name in names:
            identity = _identity(identities.get(name, ""), name, where)
            specs[name] = replace(_spec(known.get(name), name, where), identity=identity)
        fields[path] = _field(cast(Kind, kind), [specs[name] for name in names], path, where)
        if specs[names[-1]].shape[0] != rows:
            raise Corrupt(
                f"{where} has {counted(rows, 'row')}, but its field {path!r} "
                f"{specs[names[-1]].shape[0]}",
                key=zarr3.KEY,
            )
    row_sizes = parse_row_sizes(entry.get("sizes", {}))
    if row_sizes is None:
        raise Corrupt(f"{where} has {short(entry['sizes'])} as sizes of rows", key=zarr3.KEY)
    return Catalog(fields, specs, rows, attributes, groups, document.document, row_sizes)


def with_rows(catalog: Catalog, rows: int) -> Catalog:
    """The same fields with another number of rows."""
    specs = dict(catalog.specs)
    for path, field in catalog.fields.items():
        name = arrays_of(path, field)[-1]
        specs[name] = specs[name].of_shape((rows, *specs[name].shape[1:]))
    return replace(catalog, specs=specs, rows=rows)


def with_value_counts(catalog: Catalog, lengths: Mapping[str, int]) -> Catalog:
    """The same rows with ragged values up to these lengths, by path of the field, where they were
    shorter: values are only ever added."""
    specs = dict(catalog.specs)
    for path, length in lengths.items():
        name = f"{path}/{VALUES}"
        if specs[name].shape[0] < length:
            specs[name] = replace(specs[name], shape=(length,))
    return replace(catalog, specs=specs)


def with_row_sizes(catalog: Catalog, before: int, paths: Iterable[str]) -> Catalog:
    """The same rows, with a new estimate of the size of ragged rows, where rows were added to
    ``before`` and it is due."""
    there = value_counts(catalog)
    row_sizes = {
        path: with_row_size(catalog.row_sizes.get(path, ()), before, catalog.rows, there[path])
        for path in paths
    }
    return replace(
        catalog, row_sizes={**catalog.row_sizes, **{p: n for p, n in row_sizes.items() if n}}
    )


def value_counts(catalog: Catalog) -> dict[str, int]:
    """How many values each ragged field has, by its path."""
    ragged = [path for path, field in catalog.fields.items() if field.kind == "ragged"]
    return {path: catalog.specs[f"{path}/{VALUES}"].shape[0] for path in ragged}


class RecordAttributes(Attributes):
    """The user's attributes of records: all but the one that makes them records."""

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        def changed(old: dict[str, Any]) -> dict[str, Any]:
            new = change(old)
            if new.get(ATTRIBUTE) != old.get(ATTRIBUTE):
                raise reserved_attribute()
            return new

        self._handle._open(write=True)
        self._handle.refresh()  # attributes of what is no records by now are not ours to change
        super()._change(changed)


def reserved_attribute() -> Invalid:
    """The error about a user's attribute that would take the place of ours."""
    return Invalid(f"the attribute {ATTRIBUTE!r} says what the records are; choose another name")


def _check_names(kinds: Mapping[str, Any], where: str) -> None:
    """Names that a schema could have: all of them lead to keys below the records."""
    if not kinds:
        raise Corrupt(f"{where} names no field", key=zarr3.KEY)
    try:
        odd = [path for path in kinds if schema.path_of(path) != path]
        schema.check_paths(dict.fromkeys(kinds, schema.json))
    except Invalid as error:
        raise Corrupt(f"{where}: {error}", key=zarr3.KEY) from error
    if odd:
        raise Corrupt(f"{where} has a field named {odd[0]!r}", key=zarr3.KEY)


def _is_known_to_all(spec: ArraySpec) -> bool:
    """Whether zarr-python has this data type. One that it does not know, among a group's
    consolidated metadata, keeps it from opening the group at all; so such documents stand in
    our own attribute."""
    return not is_extended(spec.dtype) and spec.dtype.kind != "V"


def _spec(member: Mapping[str, Any] | None, path: str, where: str) -> ArraySpec:
    if member is None:
        raise Corrupt(f"{where} names a field {path!r} but has no metadata of it", key=zarr3.KEY)
    try:
        _, content = zarr3.parse_document(member)
    except StashError as error:
        raise type(error)(f"in the consolidated metadata of {where}, {path!r}: {error}") from error
    if not isinstance(content, ArraySpec) or not content.shape:
        raise Corrupt(f"{where}: {path!r} is not an array with rows", key=zarr3.KEY)
    return content


def _identity(text: Any, path: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise Corrupt(
            f"{where} has {short(text)} as the identity of {path!r}", key=zarr3.KEY
        ) from error


def _field(kind: Kind, specs: list[ArraySpec], path: str, where: str) -> Field:
    spec = specs[0]
    sort = {"text": "T", "json": "T", "bytes": "O", "object": "O"}.get(kind, "")
    if not sort and spec.dtype.kind in "TO":
        raise Corrupt(f"{where}: field {path!r} is {kind} but of {spec.dtype}", key=zarr3.KEY)
    if kind == "fixed":
        return Field(kind, spec.dtype, spec.shape[1:])
    if kind == "ragged":
        columns = specs[1].shape[1] if len(specs[1].shape) == 2 else 0
        if len(spec.shape) != 1 or specs[1].dtype != "int64" or columns not in (2, *range(4, 35)):
            raise Corrupt(f"{where}: the arrays of ragged field {path!r} do not fit", key=zarr3.KEY)
        return Field(kind, spec.dtype, (), max(1, columns - 2))
    if spec.dtype.kind != sort or len(spec.shape) != 1:
        raise Corrupt(f"{where}: field {path!r} is not {kind} but {spec.dtype}", key=zarr3.KEY)
    return Field(kind, spec.dtype)


def _group_document() -> dict[str, Any]:
    return zarr3.group_document(GroupDocument())


# -- how long ragged rows are taken to be --------------------------------------------------------


RowSize: TypeAlias = tuple[int, int]
"""From how many rows on it holds, and how many values a row has.

Blocks and pools of a loader go by it, and so the order of an epoch: every rank, and every run that
is resumed, must come to the same. What is stored now does not do, for rows are rewritten. So the
mean is estimated when rows are added, for as many rows or more, and never changed again. For a view
of the first ``n`` rows holds the last estimate that begins at ``n`` rows or fewer. Rows that were
appended one by one have one for each doubling."""

RowSizes: TypeAlias = tuple[RowSize, ...]

_MOST_VALUES = 1 << 62


def with_row_size(row_sizes: Sequence[RowSize], before: int, rows: int, values: int) -> RowSizes:
    """``row_sizes`` after rows were added to ``before``: ``rows`` have now ``values`` in all."""
    if rows <= before or (row_sizes and before + 1 < 2 * row_sizes[-1][0]):
        return tuple(row_sizes)
    return (*row_sizes, (before + 1, -(-values // rows)))


def values_per_row(row_sizes: Sequence[RowSize], rows: int) -> int | None:
    """What holds for the first so many rows; ``None`` where there is no estimate, as of rows that
    were created empty and then written."""
    for since, values in reversed(row_sizes):
        if since <= rows:
            return values
    return None


def parse_row_sizes(stored: Any) -> dict[str, RowSizes] | None:
    """Estimates by field out of a document; ``None`` for what is none."""
    if not isinstance(stored, Mapping):
        return None
    found: dict[str, RowSizes] = {}
    for path, row_sizes in stored.items():
        if not isinstance(row_sizes, list) or not all(_is_row_size(one) for one in row_sizes):
            return None
        found[path] = tuple((one[0], one[1]) for one in row_sizes)
        if any(a >= b for (a, _), (b, _) in zip(found[path], found[path][1:], strict=False)):
            return None
    return found


def _is_row_size(stored: Any) -> bool:
    return (
        isinstance(stored, list)
        and len(stored) == 2
        and all(type(n) is int and 0 <= n < _MOST_VALUES for n in stored)
    )


# -- what is stored ------------------------------------------------------------------------------


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


def describe(driver: Driver, path: str, catalog: Catalog, names: Sequence[str]) -> RecordsInfo:
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
