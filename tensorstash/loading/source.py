"""What a loader reads from: rows, and how they lie in stored chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import NoMemory, counted
from ..limits import HUGE

Columns: TypeAlias = dict[str, Any]
"""Values of several rows by field: arrays whose first axis is the rows, ``Ragged`` values, or
lists. Fields within fields are named by their path, ``"next/obs"``."""


def nested(flat: Mapping[str, Any], kind: type[dict[str, Any]] = dict) -> dict[str, Any]:
    """Values by path as dicts within dicts, of one ``kind``."""
    out = kind()
    for path, value in flat.items():
        *above, name = path.split("/")
        place = out
        for step in above:
            place = place.setdefault(step, kind())
        place[name] = value
    return out


class KnownColumns(dict[str, Any]):
    """Nested columns that know more of their fields than the arrays tell."""


def fingerprint_of(told: Any) -> str:
    """A few characters of what a source tells of itself; see :attr:`Source.fingerprint`."""
    return hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest()


class Blocks:
    """Rows grouped as they lie in stored chunks: what is cheap to read together.

    Block ``k`` holds the rows ``order[bounds[k]:bounds[k + 1]]``; without ``order``, the rows
    ``bounds[k]`` to ``bounds[k + 1]`` themselves. Every row is in one block. Never changed.
    """

    __slots__ = ("_bounds", "_regular", "order")

    def __init__(
        self, bounds: NDArray[np.int64] | None, order: NDArray[np.int64] | None = None
    ) -> None:
        self._bounds = bounds
        self._regular = 0, 1
        self.order = order

    @classmethod
    def regular(cls, rows: int, size: int) -> Blocks:
        """Runs of ``size`` rows, the last one shorter."""
        made = cls(None)
        made._regular = rows, max(1, size)
        return made

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Where blocks begin, and the end of the last. Regular ones are only written out here:
        whether rows have an order of their own is asked of sources with any number of rows."""
        if self._bounds is None:
            self._bounds = self._written_out()
        return self._bounds

    def _written_out(self) -> NDArray[np.int64]:
        rows, size = self._regular
        try:
            if rows + size > HUGE:  # which NumPy would take for few
                raise MemoryError
            bounds = np.arange(0, rows + size, size, dtype=np.int64)
        except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
            raise NoMemory(
                f"no memory to order {counted(rows, 'row')} in blocks of {size}; use larger "
                f"chunks, or a slice"
            ) from error
        bounds[-1] = rows
        return bounds if rows else bounds[-1:]

    def __len__(self) -> int:
        if self._bounds is not None:
            return len(self._bounds) - 1
        rows, size = self._regular
        return -(-rows // size)

    def rows(self, k: int) -> NDArray[np.int64]:
        """The rows of block ``k``."""
        start, stop = int(self.bounds[k]), int(self.bounds[k + 1])
        return np.arange(start, stop) if self.order is None else self.order[start:stop]


@runtime_checkable
class Source(Protocol):
    """Rows by number, from 0 on, which a loader may ask for from several threads, and in a child
    forked while they read.

    A loader asks for some more, where a source has it: ``far``, whether reading mostly waits for
    round trips (more threads read then); ``raw``, whether any rows are read without decoding
    others (in order, none are held); ``form``, the format that its user chose (``None``: a
    torch loader makes tensors of what is presented); ``untouched``, in which layout ragged columns
    are shown, where nothing else is to be done (a torch loader makes tensors of the columns
    themselves); ``ragged_names``, fields whose rows differ in length (windows refuse them);
    ``at_epoch(epoch)``, the source as it is in an epoch; ``at_rows(rows)``, the source as it was
    when there were fewer rows (an epoch that was begun then is resumed); ``touches(rows)``, which
    chunks of which arrays rows have a part in (how often they are decoded is told by it), and
    ``goes_on``, whether rows in order decode each once; ``order(make)``, an order of its own made
    of such orders of its parts.
    """

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    @property
    def blocks(self) -> Blocks:
        """How the rows lie in stored chunks."""
        ...

    @property
    def row_bytes(self) -> int:
        """About how many bytes one row has in memory."""
        ...

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the fields that are plain arrays: :meth:`take` reads
        these straight into memory of the loader's."""
        ...

    @property
    def fingerprint(self) -> str:
        """A few characters that tell this source from others, to refuse a state of another."""
        ...

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These rows, in this order, repeated ones included; each chunk is read once. Fields in
        ``out`` are read into its arrays, of shape ``(len(rows), *element)``, and are these."""
        ...

    def present(self, columns: Columns) -> Any:
        """The columns as the source's user wants to see them: its format and transform."""
        ...
