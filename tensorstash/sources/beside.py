"""Arrays of one length side by side, in memory or stored, as a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import is_tensor, natural
from ..errors import Invalid, counted, short
from ..handle import Handle
from ..loading.source import Blocks, Columns, Source, fingerprint_of
from ..loading.touched import Touched
from ..view import View
from .arrays import Arrays

_BLOCK = 64 << 10  # bytes of rows in memory that are copied together


def as_rows(given: Any) -> Source:
    """What a loader can take rows from: a source as it is; an array, a tensor, a stored array, or
    a tuple or dict of these, side by side."""
    if hasattr(type(given), "take") and hasattr(type(given), "present"):
        source: Source = given
        return source
    if isinstance(given, (Handle, View, np.ndarray)) or is_tensor(given):
        return Beside({"0": given}, None)
    if isinstance(given, Mapping):
        return Beside({str(name): array for name, array in given.items()}, dict)
    if isinstance(given, (tuple, list)):
        return Beside({str(k): array for k, array in enumerate(given)}, tuple)
    raise Invalid(
        f"{short(given)} has no rows to load: give records, an array, or a tuple or dict of arrays"
    )


class Beside:
    """Arrays that share their first axis, as a :class:`~tensorstash.loading.source.Source`; they
    are shown as they were given: one, a tuple or a dict."""

    def __init__(self, arrays: Mapping[str, Any], shape: type | None) -> None:
        """``shape``: ``tuple``, ``dict``, or ``None`` for the only one by itself."""
        if not arrays:
            raise Invalid("rows need at least one array")
        self._names = list(arrays)
        self._shape = shape
        stored = {k: a for k, a in arrays.items() if isinstance(a, (Handle, View))}
        self._stored = Arrays(stored) if stored else None
        self._memory = {k: _array(a, k) for k, a in arrays.items() if k not in stored}
        lengths = {k: len(array) for k, array in self._memory.items()}
        if self._stored is not None:
            lengths[next(iter(stored))] = len(self._stored)
        self._length = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1:
            raise Invalid(f"the arrays have different lengths: {lengths}")

    def at_rows(self, rows: int) -> Beside:
        """The arrays as they were when they had so many rows."""
        made: Beside = object.__new__(Beside)
        made._names, made._shape, made._length = self._names, self._shape, rows
        made._stored = None if self._stored is None else self._stored.at_rows(rows)
        made._memory = {name: array[:rows] for name, array in self._memory.items()}
        return made

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        named = f" of arrays {', '.join(self._names)}" if self._shape is dict else ""
        return f"<{counted(self._length, 'row')}{named}>"

    @Cached
    def blocks(self) -> Blocks:
        """As the stored ones are cut; in memory alone, runs worth a copy."""
        if self._stored is not None:
            return self._stored.blocks
        return Blocks.regular(self._length, max(1, _BLOCK // self.row_bytes))

    @property
    def far(self) -> bool:
        """Whether reading mostly waits for round trips."""
        return bool(getattr(self._stored, "far", False))

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory."""
        stored = self._stored.row_bytes if self._stored is not None else 0
        return max(1, stored + sum(a.nbytes // max(1, len(a)) for a in self._memory.values()))

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the arrays of plain memory."""
        found = dict(self._stored.fixed) if self._stored is not None else {}
        plain = {k: a for k, a in self._memory.items() if a.dtype.kind not in "TO"}
        return found | {k: (a.shape[1:], a.dtype) for k, a in plain.items()}

    @property
    def fingerprint(self) -> str:
        """Tells arrays of other names, shapes or types apart."""
        stored = self._stored.fingerprint if self._stored is not None else ""
        told = [stored, [(k, a.shape, str(a.dtype)) for k, a in self._memory.items()]]
        return fingerprint_of(told)

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks that rows have a part in; see :meth:`Arrays.touches`."""
        return [] if self._stored is None else self._stored.touches(rows, length)

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """See :meth:`~tensorstash.loading.source.Source.take`."""
        out = out or {}
        found: Columns = {}
        if self._stored is not None:
            names = self._stored.columns
            found = self._stored.take(rows, {k: a for k, a in out.items() if k in names})
        for name, array in self._memory.items():
            # "clip", as "raise" copies once more; rows are in range.
            place = out.get(name)
            found[name] = array.take(rows, axis=0, out=place, mode="clip")
        return {name: found[name] for name in self._names}

    def present(self, columns: Columns) -> Any:
        """The columns as the arrays were given."""
        if self._shape is None:
            return columns[self._names[0]]
        return tuple(columns.values()) if self._shape is tuple else dict(columns)


def _array(given: Any, name: str) -> NDArray[Any]:
    if not isinstance(given, np.ndarray) and not is_tensor(given):
        raise Invalid(f"array {name!r} is {short(given)}: give an array, a tensor or a stored one")
    array = natural(given)
    if not array.ndim:
        raise Invalid(f"array {name!r} has no axis, so it has no rows")
    return array
