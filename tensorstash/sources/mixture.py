"""Rows of several sources, interleaved by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import parse_whole
from ..columns import Columns, Ragged, joined, picked
from ..errors import Invalid, counted, short
from ..loading.order import Order
from ..loading.source import Blocks, MakeOrder, Source, Touched, fingerprint_of
from .arrays import ONE, as_source
from .interleave import (
    InterleavedIndex,
    MixedOrder,
    Numbers,
    RepeatedShuffle,
    WeightedInterleave,
    parse_weights,
)
from .mapstyle import MapStyle, within

_MOST_ROWS = 1 << 62


def check_same_fields(names: Sequence[str], sources: Sequence[Source], own: str | None) -> None:
    """Raise :class:`~tensorstash.errors.Invalid`, naming the difference, unless all ``sources``
    have the same fields of the same kinds, and none of the name ``own``."""
    kinds = {name: _kinds(source) for name, source in zip(names, sources, strict=True)}
    one, first = names[0], kinds[names[0]]
    for name in names[1:]:
        for has, lacks in ((one, name), (name, one)):
            for field in kinds[has]:
                if field not in kinds[lacks]:
                    raise Invalid(
                        f"source {lacks!r} has no field {field!r}, which {has!r} has; select the "
                        "fields that all have"
                    )
        for field, kind in first.items():
            other = kinds[name][field]
            if other != kind:
                raise Invalid(f"field {field!r} is {kind} in source {one!r}, {other} in {name!r}")
    if own in first:
        raise Invalid(f"the sources have a field {own!r} already; call the origin another name")


def _kinds(source: Source) -> dict[str, str]:
    """What each field is, in words."""
    columns = source.take(np.empty(0, np.int64))
    fixed = source.fixed
    return {
        name: _plain(*fixed[name]) if name in fixed else _kind(column)
        for name, column in columns.items()
    }


def _plain(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} of shape {shape}"


def _kind(column: Any) -> str:
    if isinstance(column, Ragged):
        return f"ragged {column.dtype} of {counted(column.ndim, 'axis', 'axes')}"
    if isinstance(column, np.ndarray):
        return _plain(column.shape[1:], column.dtype)
    return "a list"


def mix(
    sources: Mapping[str, Any] | Sequence[Any],
    weights: Mapping[str, float] | Sequence[float] | None = None,
    *,
    seed: int | None = 0,
    stop: int | str = "first",
    origin: str | None = None,
) -> Mix:
    """Interleave the rows of several sources in fixed proportions, which hold in every part.

    Args:
        sources: a list, or a dict by name, of what has rows and the same fields: records, arrays,
            windows, patches, or mixtures in turn.
        weights: a proportion for each source, above 0; if left out, by the sources' lengths.
        seed: by which the blocks of a source are shuffled for each pass through it, an integer;
            ``None``: they are as stored.
        stop: when an epoch ends: ``"first"``, as soon as one source has no more rows; ``"all"``,
            when every row of all sources has come, while shorter ones start again; or a number
            of rows.
        origin: the name of a field to be added: which of the sources a row is from, by number.

    Returns:
        The mixture, a source and a map-style dataset.

    Raises:
        Invalid: a source is empty or has other fields than the first, or arguments do not fit.

    ::

        mixture = mix({"web": web, "code": code}, {"web": 3, "code": 1})
        mixture.counts  # rows of each in an epoch
    """
    if isinstance(sources, Mapping):
        names, given = [str(name) for name in sources], list(sources.values())
    else:
        given = list(sources)
        names = [str(k) for k in range(len(given))]
    if not given:
        raise Invalid("a mixture needs at least one source")
    if isinstance(weights, Mapping):
        by_name = {str(name): weight for name, weight in weights.items()}
        if by_name.keys() != set(names):
            raise Invalid(f"weights name {', '.join(by_name)}; the sources are {', '.join(names)}")
        weights = [by_name[name] for name in names]
    if weights is not None and len(weights) != len(names):
        raise Invalid(f"{len(weights)} weights for {counted(len(names), 'source')}")
    return Mix(names, [as_source(one) for one in given], weights, seed, stop, origin)


def _exactly(number: int) -> NDArray[Any]:
    """To be counted with beyond 64 bits: a long source of little weight lasts for ever."""
    return np.array([number], object)


class Mix(MapStyle):
    """Rows of several sources, interleaved; made by :func:`mix`.

    Which source a position takes from is a function of the position alone: of the first ``p`` rows
    each source has given its share of ``p``, of two sources rounded, of more to within
    :attr:`off`, which is about 1. A source's rows come in the order of its blocks, which
    are shuffled by the seed for each pass, and go on in the next epoch where they stood in the
    last: no row comes again before all others have. Nothing is counted on the way, so a
    position is all there is to resume from.
    """

    _moved: Mix | None = None  # what at_epoch returned last: a loader asks again
    _state = ("names", "sources", "seed", "epoch", "origin", "_weights", "_length")

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[Source],
        weights: Sequence[Any] | None,
        seed: int | None,
        stop: int | str,
        origin: str | None,
    ) -> None:
        self.names = list(names)
        self.sources = list(sources)
        self.seed = None if seed is None else parse_whole(seed, "seed must be")
        self.epoch = 0
        self.origin = origin
        lengths = list(map(len, sources))
        for name, length in zip(names, lengths, strict=True):
            if not length:
                raise Invalid(f"source {name!r} has no rows; leave it out of the mixture")
        check_same_fields(self.names, self.sources, origin)
        self._weights = (
            parse_weights(lengths) if weights is None else parse_weights(weights, strict=True)
        )
        self._length = self._stop(stop, lengths)

    def _stop(self, stop: int | str, lengths: list[int]) -> int:
        every = enumerate(lengths)
        if stop == "first":
            return min(int(self._interleave.position(k, _exactly(n))[0]) for k, n in every)
        if stop == "all":
            rows = max(int(self._interleave.position(k, _exactly(n - 1))[0]) for k, n in every) + 1
            if rows > _MOST_ROWS:
                raise Invalid(
                    f"all sources have given every row after {counted(rows, 'row')}; stop earlier"
                )
            return rows
        if isinstance(stop, bool) or not isinstance(stop, (int, np.integer)) or stop < 1:
            raise Invalid(f'stop is "first", "all" or a number of rows, not {short(stop)}')
        return int(stop)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        parts = ", ".join(f"{part:.1%} of {name!r}" for name, part in self.weights.items())
        return f"<tensorstash.Mix {counted(len(self), 'row')}, {parts}>"

    @property
    def weights(self) -> dict[str, float]:
        """The share of each source, of 1."""
        total = sum(self._weights)
        return {name: w / total for name, w in zip(self.names, self._weights, strict=True)}

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each source in an epoch."""
        return dict(zip(self.names, self._counts, strict=True))

    @property
    def off(self) -> dict[str, float]:
        """By how much what each source has given may differ from its share, at any position; in
        a stretch between two positions, by twice that."""
        return dict(zip(self.names, self._interleave.off, strict=True))

    def origins(self, rows: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where rows are from: the number of the source, and the row's number there."""
        source, number = self._interleave.find(within(rows, len(self)))
        found = np.empty_like(number)
        for k in np.unique(source).tolist():
            mine = source == k
            found[mine] = self._rows(k, number[mine])
        return source, found

    def at_epoch(self, epoch: int) -> Mix:
        """The mixture of an epoch: sources go on where they stood at the end of the last one."""
        if epoch == self.epoch:
            return self
        known = self._moved
        if known is not None and known.epoch == epoch:
            return known
        made: Mix = object.__new__(type(self))
        made.__dict__ = {**self.__getstate__(), "epoch": epoch}
        made.sources = [one.at_epoch(epoch) for one in self.sources]
        self._moved = made
        return made

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch, in this process: as :meth:`at_epoch`."""
        self.__dict__ = dict(self.at_epoch(epoch).__dict__)

    # -- a source -------------------------------------------------------------------------------

    @Cached
    def blocks(self) -> Blocks:
        """Rows by source and block of it: source after source."""
        bounds = [np.zeros(1, np.int64)]
        for k, count in enumerate(self._counts):
            first = self.epoch * count
            bounds.append(
                self._shuffles[k].bounds(first, first + count)[1:] - first + bounds[-1][-1]
            )
        order = InterleavedIndex(self._interleave, self._counts)  # indexed as an array is
        return Blocks(np.concatenate(bounds), order)  # type: ignore[arg-type]

    def order(self, make: MakeOrder) -> Order:
        """The order of the epoch in which sources take turns and ``make`` puts the turns of each
        in order: what a loader shuffles by, so that proportions stay as they are."""
        bounds, ends = self.blocks.bounds, np.cumsum(self._counts)
        cuts = np.searchsorted(bounds, np.concatenate([[0], ends]))
        total = sum(self._weights)
        orders = [
            make(Blocks(bounds[a : b + 1] - bounds[a]), k, weight / total)
            for k, (a, b, weight) in enumerate(zip(cuts[:-1], cuts[1:], self._weights, strict=True))
        ]
        return MixedOrder(self._interleave, self.blocks, orders)

    @property
    def remote(self) -> bool:
        """Whether a read of any source costs round trips."""
        return any(source.remote for source in self.sources)

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory."""
        return max(source.row_bytes for source in self.sources)

    @property
    def ragged_names(self) -> tuple[str, ...]:
        """The fields whose rows differ in length, where a source says so."""
        return self.sources[0].ragged_names

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the fields that are plain arrays."""
        own = {} if self.origin is None else {self.origin: ((), np.dtype(np.int64))}
        return {**self.sources[0].fixed, **own}

    @property
    def fingerprint(self) -> str:
        """Tells mixtures of other sources, weights, lengths or seeds apart."""
        prints = [source.fingerprint_inside for source in self.sources]
        identity = (self.names, prints, self._weights, self._length, self.seed, self.origin)
        return fingerprint_of(identity)

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks of every source that rows have a part in."""
        if length > 1:
            return Touched.of_runs(self.touches, rows, length)
        found = []
        source, number = self._interleave.find(np.asarray(rows, np.int64))
        for k, one in enumerate(self.sources):
            mine = np.flatnonzero(source == k)
            for owner, chunk, kept in one.touches(self._rows(k, number[mine])):
                found.append(Touched(mine[owner], chunk, kept))
        return found

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These rows, in this order, repeated ones included; each chunk is read once."""
        source, number = self._interleave.find(np.asarray(rows, np.int64))
        present = np.unique(source).tolist() or [0]
        places = dict(out or {})
        if self.origin is not None:
            places.setdefault(self.origin, np.empty(len(source), np.int64))[...] = source
        own = {self.origin: places.pop(self.origin)} if self.origin is not None else {}
        if len(present) == 1:
            return {**self.sources[present[0]].take(self._rows(present[0], number), places), **own}
        members = [np.flatnonzero(source == k) for k in present]
        parts = [
            self.sources[k].take(self._rows(k, number[mine]))
            for k, mine in zip(present, members, strict=True)
        ]
        back = np.argsort(np.concatenate(members), kind="stable")
        found: Columns = {}
        for name, first in parts[0].items():
            if name not in places and name in self.fixed:
                places[name] = np.empty((len(source), *first.shape[1:]), first.dtype)
            if name in places:
                found[name] = places[name]
                for part, mine in zip(parts, members, strict=True):
                    places[name][mine] = part[name]
            else:
                whole = joined([part[name] for part in parts])
                found[name] = picked({name: whole}, back)[name]
        return {**found, **own}

    @property
    def in_any_thread(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.in_any_thread`."""
        return all(source.in_any_thread for source in self.sources)

    def present(self, columns: Columns) -> Any:
        """Columns as the first source shows them, with :attr:`origin` beside."""
        if self.origin is None:
            return self.sources[0].present(columns)
        rest = {name: column for name, column in columns.items() if name != self.origin}
        shown = self.sources[0].present(rest)
        if not isinstance(shown, dict):
            shown = {ONE: shown}
        shown[self.origin] = columns[self.origin]
        return shown

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._state}

    # -- inside ---------------------------------------------------------------------------------

    @Cached
    def _interleave(self) -> WeightedInterleave:
        return WeightedInterleave(self._weights)

    @Cached
    def _counts(self) -> list[int]:
        return self._interleave.counts(self._length)

    @Cached
    def _shuffles(self) -> list[RepeatedShuffle]:
        return [RepeatedShuffle(one.blocks, self.seed, k) for k, one in enumerate(self.sources)]

    def _rows(self, source: int, numbers: Numbers) -> Numbers:
        """The rows of a source that it gives as these of its turns in this epoch."""
        return self._shuffles[source].rows(numbers + self.epoch * self._counts[source])
