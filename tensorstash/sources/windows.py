"""Windows along the first axis: of an array, of several that share it, of records."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import parse_whole
from ..columns import Columns, joined, runs_of
from ..errors import Invalid, counted
from ..handle import Handle
from ..loading.source import Blocks, Source, Touched, fingerprint_of
from ..threads import spread
from ..view import View
from .arrays import ArraySource, as_source, selected
from .block_cache import BlockCache, split_by_blocks
from .mapstyle import MapStyle, within
from .reader import cut_runs, plain, strided_runs

Rows = NDArray[np.int64]
_BLOCK_BYTES = 1 << 20  # blocks of several chunks are not larger
_ONCE_IN = 4  # chunks of a block, for each that is decoded once more
_APART = 4  # batches between two that one reader has in order


class WindowStarts:
    """Windows of ``length`` rows that begin ``stride`` rows apart, from the first row of every
    episode on; only those that end in it. Window ``i`` costs the same to find whatever the
    number of rows and of windows; memory is a few numbers an episode."""

    def __init__(self, rows: int, length: int, stride: int, ends: Rows | None = None) -> None:
        """Over ``rows`` rows that are one episode, or are cut where ``ends`` say; rows beyond
        the last end are one more."""
        self.rows = rows
        self.length = length
        self.stride = stride
        inner = np.empty(0, np.int64) if ends is None else ends
        begins = np.concatenate([np.zeros(1, np.int64), inner, np.array([rows], np.int64)])
        counts = np.maximum(0, (np.diff(begins) - length) // stride + 1)
        used = np.flatnonzero(counts)
        self._begins: Rows = begins[:-1][used]
        self._counts: Rows = counts[used]
        self._before: Rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._counts)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def at(self, windows: Rows) -> Rows:
        """The row at which each of ``windows`` begins."""
        if len(self._begins) == 1:
            first = int(self._begins[0])
            return windows * self.stride + first if first else windows * self.stride
        episode = np.searchsorted(self._before, windows, side="right") - 1
        return self._begins[episode] + (windows - self._before[episode]) * self.stride

    def before(self, rows: Rows) -> Rows:
        """How many windows begin before each of ``rows``."""
        if not len(self._begins):
            return np.zeros(len(rows), np.int64)
        episode = np.maximum(np.searchsorted(self._begins, rows, side="left") - 1, 0)
        inside = -(-(rows - self._begins[episode]) // self.stride)
        found: Rows = self._before[episode] + np.clip(inside, 0, self._counts[episode])
        return found

    @property
    def unused(self) -> int:
        """How many rows are in no window: those that a whole one does not fit into, and those
        between windows that lie further apart than they are long."""
        covered = (self._counts - 1) * min(self.stride, self.length) + self.length
        return self.rows - int(covered.sum())


def parse_ends(boundaries: Any, rows: int) -> Rows:
    """Episode ends as ascending offsets within ``rows``: from offsets (the one after an
    episode's last row; a leading 0 says nothing), or from a mask that is true in the last row
    of every episode."""
    given = np.asarray(boundaries)
    if given.ndim != 1 or (given.dtype.kind not in "biu" and given.size):
        raise Invalid(
            "boundaries are the offsets at which episodes end, or a mask of their last rows: "
            f"1-D and of integers or booleans, not {given.ndim}-D {given.dtype}"
        )
    if given.dtype.kind == "b":
        if len(given) != rows:
            raise Invalid(
                f"a mask of {counted(len(given), 'boundary', 'boundaries')} does "
                f"not fit {counted(rows, 'row')}"
            )
        return np.flatnonzero(given).astype(np.int64) + 1
    ends = given.astype(np.int64)
    wrong = np.flatnonzero((ends < 0) | (ends > rows))
    if len(wrong):
        at = int(wrong[0])
        raise Invalid(
            f"boundary {at} is {given[at]}; offsets lie within the {counted(rows, 'row')}"
        )
    falls = np.flatnonzero(np.diff(ends) < 0)
    if len(falls):
        at = int(falls[0])
        raise Invalid(
            f"boundaries must ascend: boundary {at + 1} is {ends[at + 1]}, after {ends[at]}"
        )
    return ends


def packed(ends: Rows) -> tuple[str, bytes]:
    """Ends in few bytes, to be pickled: the lengths of episodes, about a byte or two each."""
    lengths = np.diff(ends, prepend=0)
    small = np.min_scalar_type(int(lengths.max(initial=0)))
    return small.str, zlib.compress(lengths.astype(small).tobytes())


def unpacked(dtype: str, data: bytes) -> Rows:
    """What :func:`packed` packed."""
    return np.cumsum(np.frombuffer(zlib.decompress(data), dtype), dtype=np.int64)


class Windows(MapStyle):
    """Windows of ``length`` consecutive rows, ``stride`` rows apart, as rows to load.

    Columns have the shape ``(windows, length, ...)``. With ``boundaries``, windows start again in
    every episode, and none reaches into the next. There are only whole windows: the rows that are
    left at the end of an episode are in no window (:attr:`unused` counts them). Finding a window
    costs the same whatever the number of rows. A batch reads each chunk once, however its windows
    overlap; batches in order, each chunk once an epoch. The windows are those of the rows there
    were when this was made.

    A window is of rows, also where these have values of their own in turn: 512 rows of ragged
    tokens are 512 documents. As that is rarely what is meant, ragged fields are refused by
    :class:`~tensorstash.errors.Invalid` unless ``whole_rows`` says that it is.
    """

    _next = -1
    _state = ("length", "stride", "source", "_rows", "_boundaries")

    def __init__(
        self,
        source: Any,
        length: int,
        stride: int = 1,
        *,
        fields: Sequence[str] | str | None = None,
        boundaries: Any = None,
        whole_rows: bool = False,
    ) -> None:
        """The windows of the rows that there are now.

        Args:
            source: records; an array, stored or in memory, a lazy view of one or a tensor; a tuple
                or dict of these; a dataset, or any other source.
            length: rows of a window.
            stride: rows from the beginning of one window to that of the next.
            fields: the only ones to read, or the only one; if left out, all.
            boundaries: the offsets at which episodes end, ascending, or a mask that is true in
                their last rows. A stored array is read where it is needed; else pickles carry
                them, in a byte or two an episode.
            whole_rows: take rows of ragged fields too, each whole.

        Raises:
            Invalid: ``source`` has no rows, lacks one of ``fields`` or has ragged ones;
                ``boundaries`` do not ascend within its rows.

        ::

            windows = Windows(np.arange(10), 4, 3)
            windows[1]  # array([3, 4, 5, 6])
        """
        self.length = parse_whole(length, "length must be", 1)
        self.stride = parse_whole(stride, "stride must be", 1)
        self.source = selected(as_source(source), fields)
        if not whole_rows:
            _refuse_ragged(self.source, self.length)
        self._rows = len(self.source)
        stored = isinstance(boundaries, (Handle, View))
        self._boundaries: Any = boundaries
        if boundaries is not None and not stored:
            self._boundaries = parse_ends(boundaries, self._rows)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        cut = "" if self._boundaries is None else ", none across a boundary"
        every = f"{counted(self.length, 'row')}, {self.stride} apart{cut}"
        return f"<tensorstash.Windows of {every}, of {self.source!r}>"

    @Cached
    def _starts(self) -> WindowStarts:
        ends = self._boundaries
        if isinstance(ends, (Handle, View)):
            ends = parse_ends(ends, self._rows)
        return WindowStarts(self._rows, self.length, self.stride, ends)

    @Cached
    def _caches(self) -> list[BlockCache]:
        """What was read last, of fields that are cut alike; nothing of what cannot be kept."""
        source = self.source
        if source.blocks.order is not None or (
            isinstance(source, ArraySource) and source.undecoded
        ):
            return []
        return [BlockCache(one, self.length) for one in split_by_blocks(source)]

    def starts(self, windows: Any = None) -> NDArray[np.int64]:
        """The row at which each of some windows begins (a list of their numbers, negative ones
        from the end), or of all."""
        count = len(self)
        return self._starts.at(np.arange(count) if windows is None else within(windows, count))

    @property
    def unused(self) -> int:
        """How many rows are in no window."""
        return self._starts.unused

    @property
    def can_shrink(self) -> bool:
        """Whether the source of the rows can."""
        return self.source.can_shrink

    @property
    def extent(self) -> int:
        """How many rows the windows are of, where :meth:`at_rows` can leave the last ones out."""
        return self._rows if self.source.can_shrink else 0

    def at_rows(self, rows: int) -> Windows:
        """The windows as they were when there were so many rows."""
        ends = self._boundaries
        if ends is not None:
            if isinstance(ends, (Handle, View)):
                ends = parse_ends(ends, self._rows)
            ends = ends[ends <= rows]
        source = self.source.at_rows(rows)
        changed = {"source": source, "_rows": len(source), "_boundaries": ends}
        made: Windows = object.__new__(type(self))
        made.__dict__ |= {name: self.__dict__[name] for name in self._state} | changed
        return made

    # -- a source -------------------------------------------------------------------------------

    @Cached
    def blocks(self) -> Blocks:
        """Windows by the chunks that the rows they begin with lie in."""
        rows = self.source.blocks
        if rows.order is not None:
            return Blocks.regular(len(self), -(-len(self) // max(1, len(rows))))
        bounds = rows.bounds[:: self._chunks_together()]
        return Blocks(np.unique(self._starts.before(np.append(bounds, self._rows))))

    @property
    def _shared(self) -> bool:
        return self.stride < self.length and self._boundaries is None

    def _chunks_together(self) -> int:
        """How many chunks a block is. The windows of a block reach into the chunks after it,
        which are decoded once more for those: of one chunk twice as many were decoded as there
        are, of four a quarter more. But large blocks are few, which makes shuffles worse."""
        chunk = int(np.diff(self.source.blocks.bounds).max(initial=1))
        if self._boundaries is None and self.stride >= self.length and not chunk % self.stride:
            return 1
        after = -(-(self.length - 1) // chunk)
        room = _BLOCK_BYTES // max(1, chunk * self.source.row_bytes)
        return max(1, after, min(_ONCE_IN * after, room))

    @property
    def remote(self) -> bool:
        """Whether a read costs round trips."""
        return self.source.remote

    @Cached
    def row_bytes(self) -> int:
        """About how many bytes a window has in memory, by what the windows of a block have
        together."""
        full = self.length * self.source.row_bytes
        most = int(np.diff(self.blocks.bounds).max(initial=0))
        if not self._shared or not most:
            return full
        return -(-(self.length + (most - 1) * self.stride) * self.source.row_bytes // most)

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of a window's fields that are plain arrays; none where those of a
        block are had for less memory, by :meth:`take`."""
        if self._shared:
            return {}
        return {
            name: ((self.length, *shape), dtype)
            for name, (shape, dtype) in self.source.fixed.items()
        }

    @property
    def fingerprint(self) -> str:
        """Tells windows of other rows, lengths, strides or episodes apart."""
        starts = self._starts
        inside = self.source.fingerprint_inside
        return fingerprint_of((inside, self.length, self.stride, len(starts), starts.unused))

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks that windows have a part in."""
        if length > 1:
            return Touched.of_runs(self.touches, rows, length)
        starts = self._starts.at(rows)
        if self.source.blocks.order is None:
            return self.source.touches(starts, self.length)
        return Touched.of_runs(self.source.touches, starts, self.length)

    @property
    def goes_on(self) -> bool:
        """Whether windows in order have each chunk decoded once."""
        return bool(self._caches)

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These windows, in this order, repeated ones included; each chunk is read once.

        Those of a whole block, where they overlap and there are no boundaries, are a read-only
        view of the rows that they have in common: a fraction of their size.
        """
        windows = np.asarray(rows, np.int64)
        if not out and self._shared and self._is_block(windows):
            return self._sliding(self._starts.at(windows), self._goes_on(windows))
        return self._taken(windows, out or {})

    def shown(self, rows: NDArray[np.int64]) -> Any:
        """Some windows, in memory of their own, as their user sees them."""
        return self.present(self._taken(rows, {}))

    @property
    def in_any_thread(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.in_any_thread`."""
        return self.source.in_any_thread

    def present(self, columns: Columns) -> Any:
        """Columns as the source shows them."""
        return self.source.present(columns)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: self.__dict__[name] for name in self._state}
        if isinstance(self._boundaries, np.ndarray):
            state["_boundaries"] = packed(self._boundaries)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if isinstance(self._boundaries, tuple):
            self._boundaries = unpacked(*self._boundaries)

    # -- inside ---------------------------------------------------------------------------------

    def _taken(self, windows: Rows, out: Mapping[str, NDArray[Any]]) -> Columns:
        starts = self._starts.at(windows)
        if self._goes_on(windows):
            return self._merged(lambda cache: self._followed(cache, starts, out))
        if isinstance(self.source, ArraySource):
            return self.source.take_runs(starts, self.length, out)
        return _gathered(self.source, starts, self.length, out)

    def _goes_on(self, windows: Rows) -> bool:
        """Whether these windows are in order and go on from others, as far as they can be kept.
        Some between them may be another thread's or process' to read."""
        if not self._caches or not _consecutive(windows):
            return False
        count, first, before = len(windows), int(windows[0]), self._next
        self._next = first + count
        return not first or abs(first - before) <= _APART * count

    def _merged(self, read: Callable[[BlockCache], Columns]) -> Columns:
        """What is read through all that is kept, in a remote store at once."""
        found: Columns = {}
        threads = len(self._caches) if self.remote else 1
        spread(self._caches, lambda: lambda cache: found.update(read(cache)), threads, waits=True)
        names = self.source.selectable if len(self._caches) > 1 else found
        return {name: found[name] for name in names}

    def _is_block(self, windows: Rows) -> bool:
        if not _consecutive(windows):
            return False
        bounds, first = self.blocks.bounds, int(windows[0])
        k = int(np.searchsorted(bounds, first))
        found: bool = bounds[k : k + 2].tolist() == [first, first + len(windows)]
        return found

    def _sliding(self, starts: Rows, goes_on: bool) -> Columns:
        """Windows ``stride`` apart, as views of the rows that they have in common."""
        first, stop = int(starts[0]), int(starts[-1]) + self.length
        if goes_on:
            columns = self._merged(lambda cache: cache.run(first, stop))
        else:
            columns = self.source.take(np.arange(first, stop))
        shape = (len(starts), self.length)
        return {
            name: strided_runs(column, self.stride, (*shape, *column.shape[1:]))
            if plain(column)
            else cut_runs(column, starts - first, self.length)
            for name, column in columns.items()
        }

    def _followed(
        self, cache: BlockCache, starts: Rows, out: Mapping[str, NDArray[Any]]
    ) -> Columns:
        """Windows in order, out of what was read for those before them as far as it reaches."""
        cuts = cache.gaps(starts, self.length)
        parts = []
        for a, b in zip([0, *cuts], [*cuts, len(starts)], strict=True):
            first = int(starts[a])
            run = cache.run(first, int(starts[b - 1]) + self.length)
            places = {name: array[a:b] for name, array in out.items()}
            parts.append(_cut(run, starts[a:b] - first, self.length, places))
        return {
            name: out[name] if name in out else joined([part[name] for part in parts])
            for name in parts[0]
        }


def _gathered(
    source: Source, starts: Rows, length: int, out: Mapping[str, NDArray[Any]]
) -> Columns:
    """Windows of a source that is no array: each of its rows is read once."""
    count = len(starts)
    order = np.argsort(starts, kind="stable")
    first = starts[order]
    apart = first[1:] >= first[:-1] + length
    if not apart.all():
        run = np.concatenate([[0], np.cumsum(apart)])
        begins = first[np.concatenate([[True], apart])]
        sizes = first[np.concatenate([apart, [True]])] + length - begins
        offsets = np.empty_like(starts)
        offsets[order] = (np.cumsum(sizes) - sizes - begins)[run] + first
        return _cut(source.take(runs_of(begins, sizes)), offsets, length, out)
    flat = {
        name: array.reshape(count * length, *array.shape[2:])
        for name, array in out.items()
        if array.flags.c_contiguous
    }
    columns = source.take((starts[:, None] + np.arange(length)).reshape(-1), flat)
    found: Columns = {}
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            found[name] = cut_runs(column, np.arange(count) * length, length)
            continue
        found[name] = column.reshape(count, length, *column.shape[1:])
        if name in out:
            if name not in flat:
                out[name][...] = found[name]
            found[name] = out[name]
    return found


def _cut(columns: Columns, offsets: Rows, length: int, out: Mapping[str, NDArray[Any]]) -> Columns:
    return {
        name: cut_runs(column, offsets, length, out.get(name)) for name, column in columns.items()
    }


def _consecutive(windows: Rows) -> bool:
    return len(windows) > 0 and bool((np.diff(windows) == 1).all())


def _refuse_ragged(source: Source, length: int) -> None:
    for name in source.ragged_names[:1]:
        raise Invalid(
            f"field {name!r} is ragged: a window would be {counted(length, 'whole row')} of "
            f"it, not {length} "
            "of its values. For windows of values store them end to end as an array (Windows in "
            f"docs/torch.md); leave {name!r} out by fields=; or say whole_rows=True"
        )
