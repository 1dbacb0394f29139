"""Patches of N-dimensional arrays: on a grid, or anywhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import parse_lengths, parse_whole
from ..columns import Columns
from ..errors import Invalid, counted, short
from ..loading.permutation import key_of
from ..loading.source import Blocks, Touched, fingerprint_of
from .arrays import ONE, stored_arrays
from .boxes import Boxes
from .mapstyle import MapStyle, within
from .reader import Sliced

Places = NDArray[np.int64]


class Corners(ABC):
    """The first position of every patch, an axis a column, by the patch's number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def at(self, patches: Places) -> Places:
        """The corners of some patches, of shape ``(patches, axes)``."""


class GridCorners(Corners):
    """Patches at equal distances, numbered in C order: patch ``i`` is ``i`` of ``counts`` by
    ``np.unravel_index``."""

    def __init__(self, counts: Sequence[int], stride: Sequence[int]) -> None:
        """So many along each axis, so far apart."""
        self.counts = tuple(counts)
        self.stride = tuple(stride)

    @classmethod
    def over(
        cls, lengths: Sequence[int], shape: Sequence[int], stride: Sequence[int], cover: bool
    ) -> GridCorners:
        """Patches of ``shape`` over axes of ``lengths``: whole ones only, or with ``cover`` as
        many more as it takes to reach the end, of which the last reach beyond it."""
        sizes = list(zip(lengths, shape, stride, strict=True))
        if cover:
            counts = [
                min(-(-n // step), 1 + max(0, -(-(n - size) // step))) for n, size, step in sizes
            ]
        else:
            counts = [max(0, (n - size) // step + 1) for n, size, step in sizes]
        return cls(counts, stride)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def at(self, patches: Places) -> Places:
        """See :meth:`Corners.at`."""
        found = np.empty((len(patches), len(self.counts)), np.int64)
        rest = patches
        for k in reversed(range(len(self.counts))):
            rest, place = np.divmod(rest, max(1, self.counts[k]))
            found[:, k] = place * self.stride[k]
        return found


class RandomCorners(Corners):
    """Patches anywhere, whole: the place of each is a function of ``(seed, epoch, number)``
    alone, the same for ever."""

    def __init__(self, rooms: Sequence[int], count: int, seed: int, epoch: int) -> None:
        """``count`` patches that may begin at ``rooms`` positions along each axis."""
        self.rooms = tuple(rooms)
        self.count = count
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def at(self, patches: Places) -> Places:
        """See :meth:`Corners.at`."""
        found = np.empty((len(patches), len(self.rooms)), np.int64)
        for k, room in enumerate(self.rooms):
            drawn = key_of(self.seed, self.epoch, k, patches)
            found[:, k] = drawn % np.uint64(room)
        return found


class Patches(MapStyle):
    """Boxes of ``shape`` cut out of an array, on a grid or at random places, as rows to load.

    Columns have the shape ``(patches, ...)``, with the array's other axes in their places.

    On a grid, patches are ``stride`` apart along each axis (by default next to each other) and
    numbered in C order. There are only whole patches, unless ``pad`` gives the value beyond the
    end; then every element is in a patch. With ``count``, an epoch has that many whole patches, at
    places that depend on ``(seed, epoch, number)``. Several arrays, such as an image and its
    labels, are cut at the same places. A batch reads each chunk once.
    """

    _moved: Patches | None = None  # what at_epoch returned last: a loader asks again
    _state = ("shape", "stride", "pad", "count", "seed", "epoch", "_columns", "_dims", "_single")

    def __init__(
        self,
        arrays: Any,
        shape: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        count: int | None = None,
        axes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        pad: Any = None,
        seed: int = 0,
    ) -> None:
        """The patches of the arrays as long as they are now.

        Args:
            arrays: one stored array or lazy view of one, or a dict of such.
            shape: how long a patch is along each of its axes; one number: along one axis.
            stride: how far apart patches of a grid begin, along each axis or along all; if left
                out, ``shape``.
            count: draw so many patches an epoch, anywhere, instead of those of a grid.
            axes: those that ``shape`` is along; a dict of them where arrays have them in different
                places; if left out, the last ones.
            pad: what stands beyond the end, a value or a dict of one for each array; if left out,
                no patch reaches beyond it.
            seed: which patches ``count`` draws, with the epoch's number; an integer.

        Raises:
            Invalid: the arrays differ in length along the axes, no patch fits, or arguments are
                wrong or of a grid and of ``count`` at once.

        ::

            patches = Patches(volume, (64, 64, 64), stride=32)
            patches[5]  # an array of shape (64, 64, 64)
        """
        if count is not None and (stride is not None or pad is not None):
            raise Invalid("count= draws patches anywhere; stride= and pad= are for a grid")
        self._single, self._columns = stored_arrays(arrays, "patches")
        self.shape = _sizes(shape, "shape")
        self.stride = self.shape if stride is None else _sizes(stride, "stride", len(self.shape))
        self.count = None if count is None else _sizes(count, "count", 1)[0]
        self.pad = None if pad is None else _values(pad, self._columns)
        self.seed = parse_whole(seed, "seed must be")
        self.epoch = 0
        self._dims = {
            name: _dims(column, axes.get(name) if isinstance(axes, Mapping) else axes, self.shape)
            for name, column in self._columns.items()
        }
        self._check()

    def _check(self) -> None:
        lengths = {
            name: tuple(column.shape[dim] for dim in self._dims[name])
            for name, column in self._columns.items()
        }
        if len(set(lengths.values())) > 1:
            raise Invalid(f"the arrays differ in length along the axes of a patch: {lengths}")
        for column, dims in zip(self._columns.values(), self._dims.values(), strict=True):
            for dim in dims:
                column.edges(dim)
        if self.pad is None and any(
            size > n for size, n in zip(self.shape, self.lengths, strict=True)
        ):
            raise Invalid(
                f"no patch of {self.shape} fits into axes of {self.lengths}; take a smaller one, "
                "or pad= what stands beyond the end"
            )

    def __len__(self) -> int:
        return len(self._corners)

    def __repr__(self) -> str:
        where = "anywhere" if self.count is not None else f"on a grid, {self.stride} apart"
        names = "" if self._single else f" of {', '.join(self._columns)}"
        return f"<tensorstash.Patches {len(self)} of {self.shape} {where} in {self.lengths}{names}>"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the axes that patches are cut along."""
        name, column = next(iter(self._columns.items()))
        return tuple(column.shape[dim] for dim in self._dims[name])

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Patches along each axis, so that patch ``i`` is number ``np.unravel_index(i, grid)``;
        ``None`` where they lie anywhere."""
        corners = self._corners
        return corners.counts if isinstance(corners, GridCorners) else None

    @Cached
    def _corners(self) -> Corners:
        if self.count is None:
            return GridCorners.over(self.lengths, self.shape, self.stride, self.pad is not None)
        rooms = [n - size + 1 for n, size in zip(self.lengths, self.shape, strict=True)]
        return RandomCorners(rooms, self.count, self.seed, self.epoch)

    def corners(self, patches: Any = None) -> NDArray[np.int64]:
        """Where some patches begin along each axis (a list of their numbers, negative ones from
        the end), or all: of shape ``(patches, axes)``."""
        count = len(self)
        return self._corners.at(np.arange(count) if patches is None else within(patches, count))

    def at_epoch(self, epoch: int) -> Patches:
        """The patches of an epoch: others in each where they lie anywhere, always the same on a
        grid."""
        if epoch == self.epoch or self.count is None:
            return self
        known = self._moved
        if known is not None and known.epoch == epoch:
            return known
        made: Patches = object.__new__(type(self))
        made.__dict__ = {**self.__getstate__(), "epoch": epoch}
        self._moved = made
        return made

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch, in this process: as :meth:`at_epoch`."""
        self.__dict__ = self.at_epoch(epoch).__dict__ | {"epoch": epoch}

    @property
    def can_shrink(self) -> bool:
        """Whether the arrays are of one length along their first axis."""
        return self.extent > 0

    @property
    def extent(self) -> int:
        """How long the arrays are along their first axis; 0 where they differ in it."""
        lengths = {column.shape[0] for column in self._columns.values()}
        return lengths.pop() if len(lengths) == 1 else 0

    def at_rows(self, rows: int) -> Patches:
        """The patches as they were when the arrays were so long along their first axis."""
        made: Patches = object.__new__(type(self))
        columns = {name: column.first(rows) for name, column in self._columns.items()}
        made.__dict__ = {**self.__getstate__(), "_columns": columns}
        made._check()
        return made

    # -- a source -------------------------------------------------------------------------------

    @Cached
    def blocks(self) -> Blocks:
        """Patches by the stored chunk (shard, where there are shards) that holds their corner."""
        name = max(self._columns, key=self._bytes)
        count = len(self)
        corners, label = self.corners(), np.zeros(count, np.int64)
        for k, dim in enumerate(self._dims[name]):
            chunk = self._columns[name].stored_edges(dim).of(corners[:, k])
            label = label * (int(chunk.max(initial=0)) + 1) + chunk
        order = np.argsort(label, kind="stable")
        inner = np.flatnonzero(np.diff(label[order])) + 1
        bounds = np.concatenate([np.zeros(1, np.int64), inner, np.array([count] * (count > 0))])
        return Blocks(bounds.astype(np.int64), order)

    def _element(self, name: str) -> tuple[int, ...]:
        shape = list(self._columns[name].shape)
        for dim, size in zip(self._dims[name], self.shape, strict=True):
            shape[dim] = size
        return tuple(shape)

    def _bytes(self, name: str) -> int:
        return int(np.prod(self._element(name), dtype=object)) * self._columns[name].item_bytes

    @property
    def remote(self) -> bool:
        """Whether a read costs round trips."""
        return not all(column.local for column in self._columns.values())

    @property
    def row_bytes(self) -> int:
        """About how many bytes a patch has in memory."""
        return sum(self._bytes(name) for name in self._columns)

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of the patches of plain memory."""
        return {
            name: (self._element(name), column.dtype)
            for name, column in self._columns.items()
            if column.plain
        }

    @property
    def fingerprint(self) -> str:
        """Tells patches of other arrays, shapes or places apart."""
        columns = [(n, c.shape, str(c.dtype), self._dims[n]) for n, c in self._columns.items()]
        identity = (columns, self.shape, self.stride, self.pad, self.count, self.seed)
        return fingerprint_of(identity)

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks that patches have a part in."""
        if length > 1:
            return Touched.of_runs(self.touches, rows, length)
        corners = self._corners.at(rows)
        found = []
        for name, column in self._columns.items():
            boxes = Boxes.clipped(column, self._dims[name], corners, self.shape)
            found.append(Touched(*boxes.chunks(), column.kept))
        return found

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These patches, in this order, repeated ones included; each chunk is read once."""
        corners = self._corners.at(np.asarray(rows, np.int64))
        found: Columns = {}
        for name, column in self._columns.items():
            column.settle()
            place = None if out is None else out.get(name)
            if place is None:
                place = np.empty((len(corners), *self._element(name)), column.dtype)
            boxes = Boxes.clipped(column, self._dims[name], corners, self.shape)
            if self.pad is not None:
                place[boxes.short(self.shape)] = self.pad[name]
            boxes.read(place)
            found[name] = place
        return found

    @property
    def in_any_thread(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.in_any_thread`."""
        return True

    def present(self, columns: Columns) -> Any:
        """The patches of a lone array as they are, those of several as a dict."""
        return columns[ONE] if self._single else dict(columns)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._state}


def _sizes(value: Any, what: str, count: int | None = None) -> tuple[int, ...]:
    sizes = parse_lengths(value, what)
    if count is not None and len(sizes) == 1 and count > 1 and isinstance(value, (int, np.integer)):
        sizes *= count
    if not sizes or min(sizes) < 1 or len(sizes) != (count or len(sizes)):
        need = "" if count is None else f" and as many as axes, {count}"
        raise Invalid(f"{what} must be whole numbers above 0{need}, not {short(value)}")
    return sizes


def _dims(column: Sliced, axes: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of an array that patches are cut along."""
    ndim = len(column.shape)
    if axes is None:
        if len(shape) > ndim:
            raise Invalid(
                f"{column.what} has {counted(ndim, 'axis', 'axes')}, a patch of "
                f"{shape} needs {len(shape)}"
            )
        return tuple(range(ndim - len(shape), ndim))
    given = [axes] if isinstance(axes, (int, np.integer)) else list(axes)
    if not all(isinstance(a, (int, np.integer)) and -ndim <= a < ndim for a in given):
        raise Invalid(f"{column.what} has axes 0 to {ndim - 1}, not {short(axes)}")
    dims = tuple(int(axis) % ndim for axis in given)
    if len(dims) != len(shape) or len(set(dims)) != len(dims):
        raise Invalid(f"axes must name {len(shape)} different ones for patches of {shape}: {axes}")
    return dims


def _values(pad: Any, columns: Mapping[str, Sliced]) -> dict[str, Any]:
    """What stands beyond the end of each array."""
    given = dict(pad) if isinstance(pad, Mapping) else dict.fromkeys(columns, pad)
    if given.keys() != columns.keys():
        raise Invalid(f"pad names {', '.join(given)}; the arrays are {', '.join(columns)}")
    for name, column in columns.items():
        try:
            np.full(1, given[name], column.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise Invalid(f"{column.what} of {column.dtype} cannot hold {pad!r}: {error}") from None
    return given
