"""What a loader reads from: rows, and how they lie in stored chunks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, Placed, runs_of
from ..errors import Invalid, NoMemory, counted, short
from ..limits import HUGE

Numbers = NDArray[np.int64]
Fields = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Element shape and dtype by the name of the field."""

_OPTIONAL = ("touches", "names", "select", "at_epoch", "at_rows", "extent", "order")


def fingerprint_of(identity: Any) -> str:
    """A few characters for what tells a source from others; see :attr:`Source.fingerprint`."""
    return hashlib.blake2b(repr(identity).encode(), digest_size=4).hexdigest()


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


class Touched(NamedTuple):
    """The chunks of one stored array that some rows have a part in: ``chunk[i]`` is one of row
    ``owner[i]`` of them. ``kept``: the part of its decoded chunks that stays in a cache."""

    owner: Numbers
    chunk: Numbers
    kept: float = 0.0

    @classmethod
    def between(cls, first: Numbers, last: Numbers, kept: float = 0.0) -> Touched:
        """Row ``i`` has a part in the chunks ``first[i]`` to ``last[i]``."""
        counts = last - first + 1
        return cls(np.repeat(np.arange(len(first)), counts), runs_of(first, counts), kept)

    @classmethod
    def of_runs(
        cls, touches: Callable[[Numbers], list[Touched]], starts: Numbers, length: int
    ) -> list[Touched]:
        """What runs of ``length`` rows from ``starts`` on touch, by what single rows do."""
        rows = (starts[:, None] + np.arange(length)).reshape(-1)
        return [cls(owner // length, chunk, kept) for owner, chunk, kept in touches(rows)]


MakeOrder: TypeAlias = Callable[[Blocks, int, float], Any]
"""The order of one part of a source, by its blocks, its number, and its share of the rows: see
:class:`~tensorstash.loading.order.Order`."""


class Source(ABC):
    """Rows by number, from 0 on, which a loader may ask for from several threads, and in a child
    forked while they read.

    What has no default must be there. The defaults say what is true of any source, at some cost:
    a source that knows better says so, and loaders read less, or more at once.
    """

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @property
    @abstractmethod
    def blocks(self) -> Blocks:
        """How the rows lie in stored chunks."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """About how many bytes one row has in memory."""

    @property
    @abstractmethod
    def fixed(self) -> Fields:
        """Element shape and dtype of the fields that are plain arrays: :meth:`take` reads
        these straight into memory of the loader's."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A few characters that tell this source from others, to refuse a state of another."""

    @abstractmethod
    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These rows, in this order, repeated ones included; each chunk is read once. Fields in
        ``out`` are read into its arrays, of shape ``(len(rows), *element)``, and are these."""

    def take_into(self, rows: NDArray[Any], out: Mapping[str, Placed]) -> Columns:
        """These rows, those of a field in ``out`` each at its place in an array, which is that
        field's column then."""
        columns = self.take(rows)
        for name, (array, places) in out.items():
            array[places] = columns[name]
            columns[name] = array
        return columns

    @property
    def places(self) -> bool:
        """Whether :meth:`take_into` takes no memory beside: more rows are read by it at a time."""
        return False

    @abstractmethod
    def present(self, columns: Columns) -> Any:
        """The columns as the source's user wants to see them: its format and transform."""

    # -- what is read, and at what cost -------------------------------------------------------

    @property
    def fingerprint_inside(self) -> str:
        """The fingerprint where windows or mixtures are made of this source."""
        return self.fingerprint

    @property
    def remote(self) -> bool:
        """Whether reading mostly waits for round trips: more threads read then."""
        return False

    @property
    def raw(self) -> bool:
        """Whether any rows are read without decoding others: in order no blocks are held then."""
        return False

    @property
    def goes_on(self) -> bool:
        """Whether rows in order decode each chunk once, however they are cut into reads."""
        return False

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks of each array that rows have a part in, or runs of ``length`` from them on:
        how often chunks are decoded is estimated from it. Nothing where it is not known."""
        return []

    # -- how rows are shown -------------------------------------------------------------------

    @property
    def format(self) -> str | None:
        """The format that its user chose; ``None``: a torch loader makes tensors of what is
        presented."""
        return None

    @property
    def in_any_thread(self) -> bool:
        """Whether rows may be read and shown by the thread of a loop over them: not where something
        of a user's own has a part in it, which is called in the background alone."""
        return False

    @property
    def default_ragged(self) -> str | None:
        """In which layout ragged columns are shown, where nothing else is to be done: a torch
        loader makes tensors of the columns themselves."""
        return None

    # -- fields -------------------------------------------------------------------------------

    @property
    def ragged_names(self) -> tuple[str, ...]:
        """Fields whose rows differ in length; windows refuse them."""
        return ()

    @property
    def selectable(self) -> tuple[str, ...]:
        """The fields that :meth:`select` chooses among; none where it cannot be asked."""
        return ()

    def select(self, *names: str) -> Source:
        """The source with some of its fields only."""
        raise Invalid(f"{short(self)} cannot leave fields out; select them before")

    # -- epochs, and rows that are added meanwhile ----------------------------------------------

    def at_epoch(self, epoch: int) -> Source:
        """The source as it is in an epoch."""
        return self

    @property
    def can_shrink(self) -> bool:
        """Whether :meth:`at_rows` gives the source as it was."""
        return False

    @property
    def extent(self) -> int:
        """How many rows the source has that :meth:`at_rows` counts, where these are not its own:
        of windows, the rows that they are of. 0: they are its own."""
        return 0

    def at_rows(self, rows: int) -> Source:
        """The source as it was when there were fewer rows: an epoch that was begun then is
        resumed."""
        return self

    def order(self, make: MakeOrder) -> Any:
        """The order of an epoch, by ``make``; or one of the source's own, of such orders of its
        parts."""
        return make(self.blocks, 0, 1.0)


class SourceHolder(ABC):
    """What has rows without being a source, and says which source they are of: a dataset."""

    @property
    @abstractmethod
    def source(self) -> Source:
        """The source of its rows."""


def _text(found: object) -> str | None:
    return found if isinstance(found, str) else None  # not a method of that name


class WrappedSource(Source):
    """An object that has the members of a :class:`Source` without being one. What it leaves out is
    found out here, once."""

    def __init__(self, given: Any) -> None:
        """:class:`~tensorstash.errors.Invalid` where it lacks what has no default."""
        needed = sorted(Source.__abstractmethods__)
        if lacking := [name for name in needed if not hasattr(given, name)]:
            raise Invalid(f"{short(given)} has no rows to load: it lacks {', '.join(lacking)}")
        self.given = given
        self._remote = bool(getattr(given, "remote", False))
        self._raw = bool(getattr(given, "raw", False))
        self._goes_on = bool(getattr(given, "goes_on", False))
        self._format = _text(getattr(given, "format", None))
        self._default_ragged = _text(getattr(given, "default_ragged", None))
        self._ragged_names = tuple(getattr(given, "ragged_names", ()))
        self._has = frozenset(name for name in _OPTIONAL if hasattr(given, name))

    def __repr__(self) -> str:
        return repr(self.given)

    def __len__(self) -> int:
        return len(self.given)

    @property
    def blocks(self) -> Blocks:
        """See :attr:`Source.blocks`."""
        blocks: Blocks = self.given.blocks
        return blocks

    @property
    def row_bytes(self) -> int:
        """See :attr:`Source.row_bytes`."""
        return int(self.given.row_bytes)

    @property
    def fixed(self) -> Fields:
        """See :attr:`Source.fixed`."""
        fixed: Fields = self.given.fixed
        return fixed

    @property
    def fingerprint(self) -> str:
        """See :attr:`Source.fingerprint`."""
        return str(self.given.fingerprint)

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """See :meth:`Source.take`."""
        columns: Columns = self.given.take(rows, out)
        return columns

    def present(self, columns: Columns) -> Any:
        """See :meth:`Source.present`."""
        return self.given.present(columns)

    @property
    def remote(self) -> bool:
        """See :attr:`Source.remote`."""
        return self._remote

    @property
    def raw(self) -> bool:
        """See :attr:`Source.raw`."""
        return self._raw

    @property
    def goes_on(self) -> bool:
        """See :attr:`Source.goes_on`."""
        return self._goes_on

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """See :meth:`Source.touches`."""
        if "touches" not in self._has:
            return []
        if length == 1:
            return list(self.given.touches(rows))
        return Touched.of_runs(self.given.touches, rows, length)

    @property
    def format(self) -> str | None:
        """See :attr:`Source.format`."""
        return self._format

    @property
    def default_ragged(self) -> str | None:
        """See :attr:`Source.default_ragged`."""
        return self._default_ragged

    @property
    def ragged_names(self) -> tuple[str, ...]:
        """See :attr:`Source.ragged_names`."""
        return self._ragged_names

    @property
    def selectable(self) -> tuple[str, ...]:
        """See :attr:`Source.selectable`."""
        return tuple(self.given.names) if {"names", "select"} <= self._has else ()

    def select(self, *names: str) -> Source:
        """See :meth:`Source.select`."""
        if "select" not in self._has:
            return super().select(*names)
        return wrapped(self.given.select(*names))

    def at_epoch(self, epoch: int) -> Source:
        """See :meth:`Source.at_epoch`."""
        return wrapped(self.given.at_epoch(epoch)) if "at_epoch" in self._has else self

    @property
    def can_shrink(self) -> bool:
        """See :attr:`Source.can_shrink`."""
        return "at_rows" in self._has

    @property
    def extent(self) -> int:
        """See :attr:`Source.extent`."""
        return int(self.given.extent) if "extent" in self._has else 0

    def at_rows(self, rows: int) -> Source:
        """See :meth:`Source.at_rows`."""
        return wrapped(self.given.at_rows(rows)) if "at_rows" in self._has else self

    def order(self, make: MakeOrder) -> Any:
        """See :meth:`Source.order`."""
        return self.given.order(make) if "order" in self._has else super().order(make)


def wrapped(given: Any) -> Source:
    """``given`` where it is a source, or the one that it holds; else a source around it."""
    if isinstance(given, SourceHolder):
        return given.source
    return given if isinstance(given, Source) else WrappedSource(given)
