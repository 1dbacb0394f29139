"""Typed access to records: attributes that are fields, rows that are instances of a class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import Invalid, short
from .classes import RowClass, schema_of
from .ingest import columns_of, flatten
from .schema import Field

if TYPE_CHECKING:
    from .records import Records

__all__ = ["Typed", "schema_of", "typed"]

Row = TypeVar("Row")

_AT_ONCE = 256  # rows that iteration reads for TensorDicts, which part with them one by one
_VALUES = ("json", "object")  # kinds of field that a dict may be the value of


def typed(records: Records, cls: type[Row]) -> Typed[Row]:
    """``records`` seen through ``cls``: a dataclass, a TypedDict, or a TensorClass or
    TypedTensorDict of tensordict, whose names are fields and whose classes within are fields
    within a field. :class:`~tensorstash.errors.Invalid` where a name is no field."""
    return Typed(records, cls)


def view_of(value: Any) -> Any:
    """``value`` itself; of a typed view the records with the fields that its class names."""
    return value._view if isinstance(value, Typed) else value


class Typed(Generic[Row]):
    """Records whose rows are instances of a class.

    ``view[i]`` is an instance of one row's values, ``view[rows]`` one of columns, in the format
    of the records; ``view.obs`` the whole field. ``view[rows] = instance``, ``append`` and
    ``extend`` check every name before anything is stored. Fields that the class does not name
    are never read.

    >>> from dataclasses import make_dataclass
    >>> Row = make_dataclass("Row", [("x", int)])
    >>> view = stash.save_records({}, {"x": np.arange(3)}).as_typed(Row)
    >>> view[1:].x.tolist(), view.x.shape
    ([1, 2], (3,))
    """

    __slots__ = ("_above", "_records", "_row", "_view")

    _above: str
    _records: Records
    _row: RowClass
    _view: Any

    def __init__(self, records: Records, cls: type[Row], above: str = "") -> None:
        """Made by :func:`typed`."""
        row = RowClass.of(cls)
        clash = sorted(row.within.keys() & {"append", "extend", "records", *self.__slots__})
        if clash:
            raise Invalid(f"{row.name}.{clash[0]} is what typed views call their own; rename it")
        paths = _paths(row, above, records.fields)
        view: Any = records if set(paths) == set(records.fields) else records.select(*paths)
        if row.uses_tensors:
            view = view.with_format("tensordict")
        for name, value in (("_above", above), ("_records", records), ("_row", row)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_view", view)

    @property
    def records(self) -> Any:
        """The records themselves."""
        return self._records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, rows: Any) -> Row:
        return self._made(self._view[rows])  # type: ignore[no-any-return]

    def __setitem__(self, rows: Any, value: Any) -> None:
        self._view[rows] = self._several(value) if isinstance(value, list) else self._checked(value)

    def __iter__(self) -> Iterator[Row]:
        if not self._row.uses_tensors:
            return map(self._made, self._view)
        starts = range(0, len(self), _AT_ONCE)
        batches = (self._view[start : start + _AT_ONCE] for start in starts)
        return (self._made(row) for batch in batches for row in batch.unbind(0))

    def append(self, row: Any) -> int:
        """Add one row, atomically.

        Args:
            row: an instance, or a dict of the same names.

        Returns:
            The number of the row.

        Raises:
            Invalid: a name is missing or unknown, or a value does not fit.

        >>> from dataclasses import make_dataclass
        >>> Row = make_dataclass("Row", [("x", int)])
        >>> stash.create_records({}, {"x": int}).as_typed(Row).append(Row(5))
        0
        """
        return self._records.append(self._checked(row))

    def extend(self, rows: Any) -> int:
        """Add rows, atomically.

        Args:
            rows: an instance that holds columns, a list of instances, or what
                ``Records.extend`` takes.

        Returns:
            The number of the first new row.

        Raises:
            Invalid: a name is missing or unknown, or a value does not fit.

        >>> from dataclasses import make_dataclass
        >>> Row = make_dataclass("Row", [("x", int)])
        >>> stash.create_records({}, {"x": int}).as_typed(Row).extend([Row(5), Row(6)])
        0
        """
        return self._records.extend(self._several(rows))

    def __getattr__(self, name: str) -> Any:
        if name in self.__slots__:  # not set yet
            raise AttributeError(name)
        if name not in self._row.within:
            raise AttributeError(self._unknown(name), name=name, obj=self)
        inner = self._row.within[name]
        path = self._above + name
        return self._records[path] if inner is None else Typed(self._records, inner.cls, path + "/")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._row.within:
            raise AttributeError(self._unknown(name), name=name, obj=self)
        raise AttributeError(
            f"assign to rows, view[i] = {self._row.name}(...), or to view.{name}[rows]",
            name=name,
            obj=self,
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._row.within]

    def __reduce__(self) -> tuple[Any, ...]:
        return Typed, (self._records, self._row.cls, self._above)

    def __repr__(self) -> str:
        return f"<Typed {self._row.name} of {self._records!r}>"

    # -- inside -----------------------------------------------------------------------

    def _made(self, found: Any) -> Any:
        """What the records showed, as instances."""
        if isinstance(found, list):
            return [self._made(row) for row in found]
        if not isinstance(found, Mapping):
            raise Invalid(
                f"rows shown as {type(found).__name__} cannot be {self._row.name}; typed access "
                "takes records in the formats numpy, torch and python"
            )
        for name in filter(None, self._above.split("/")):
            found = found[name]
        return self._row.make(found)

    def _checked(self, value: Any) -> dict[str, Any]:
        """The values of an instance, or a dict, by path: those of every field it describes."""
        row, fields = self._row, self._records.fields
        if not isinstance(value, Mapping) and not row.holds(value):
            raise Invalid(f"{short(value)} is neither {row.name} nor a dict of its fields")
        whole = {p.removeprefix(self._above) for p, f in fields.items() if f.kind in _VALUES}
        return self._named({self._above + path: v for path, v in flatten(value, whole).items()})

    def _several(self, rows: Any) -> dict[str, Any]:
        """The columns of rows by path, those of every field that the class describes."""
        fields = self._records.fields
        if isinstance(rows, (list, tuple)):
            return columns_of([self._checked(row) for row in rows], fields)
        if isinstance(rows, Mapping) or self._row.holds(rows):
            return self._checked(rows)
        return self._named(columns_of(rows, fields))

    def _named(self, found: dict[str, Any]) -> dict[str, Any]:
        """``found`` itself, when its paths are those of the fields that the class names."""
        row, fields = self._row, self._records.fields
        wanted = _paths(row, self._above, fields)
        unused = {self._above + n for n in row.optional if not _inside(self._above + n, fields)}
        found = {path: v for path, v in found.items() if path not in unused}
        for path in wanted:
            if path not in found or (found[path] is None and fields[path].kind not in _VALUES):
                raise Invalid(f"no value for {path!r}; {row.name} has {', '.join(row.within)}")
        for path in found:
            if path not in wanted:
                raise Invalid(f"{row.name} has no field {path!r}{_meant(path, wanted)}")
        return found

    def _unknown(self, name: str) -> str:
        return f"{self._row.name} has no field {name!r}{_meant(name, self._row.within)}"


def _paths(row: RowClass, above: str, fields: Mapping[str, Field]) -> list[str]:
    """The paths of the fields that the class names."""
    out: list[str] = []
    for name, inner in row.within.items():
        path = above + name
        inside = _inside(path, fields)
        if not inside and name in row.optional:
            continue
        if not inside:
            raise Invalid(f"{row.name} names {path!r}, which is not a field{_meant(path, fields)}")
        if inner is not None:
            inside = _paths(inner, path + "/", fields)
        elif name in row.unresolved and inside != [path]:
            raise Invalid(
                f"the annotation of {row.name}.{name} names what cannot be found, and there are "
                f"fields within {path!r}; define its class in a module"
            )
        out += inside
    return out


def _inside(path: str, fields: Mapping[str, Field]) -> list[str]:
    return [p for p in fields if p == path or p.startswith(path + "/")]


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
