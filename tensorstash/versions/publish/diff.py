"""What two versions differ in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import StashError
from ...metadata import zarr2, zarr3
from ...metadata.spec import ArraySpec
from ..access.snapshot import TABLE, Snapshot
from ..pages import Load
from ..refs import RefPage
from ..table import ChunkTable
from ..tree import differences
from .race import documents_between

Box = tuple[slice, ...]


@dataclass(frozen=True)
class ArrayDifference:
    """Chunks of one array that are not the same: ``chunks`` are their indices (n, ndim), and
    ``boxes`` the parts of the array that they cover, as slices."""

    chunks: NDArray[np.int64]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Difference:
    """What ``repo.diff()`` returns: paths of arrays and groups that were ``created``, ``deleted``,
    or of which the metadata ``changed`` (shape, attributes, ...), and by path the ``arrays`` of
    which chunks did."""

    created: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    arrays: dict[str, ArrayDifference] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.created or self.deleted or self.changed or self.arrays)


def diff(old: Snapshot, new: Snapshot) -> Difference:
    """What differs; costs by that."""
    created, deleted, changed = set[str](), set[str](), set[str]()
    for key, (before, after) in documents_between(old, new).items():
        path, name = key[: key.rfind("/") + 1], key.rpartition("/")[2]
        if name in (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP) and (before is None or after is None):
            (created if before is None else deleted).add(path)
        else:
            changed.add(path)
    both = created & deleted  # of another format now
    arrays: dict[str, ArrayDifference] = {}
    for key, _, _ in differences(old.tree, new.tree, old.load):
        if key != TABLE and not key.endswith("/" + TABLE):
            continue
        path = key[: -len(TABLE)]
        if path in created or path in deleted:
            continue
        found = _chunks(old.table(path), new.table(path), old.load)
        if len(found):
            arrays[path] = ArrayDifference(found, _boxes(found, _spec(new, path)))

    def names(paths: set[str]) -> tuple[str, ...]:
        return tuple(sorted(path.strip("/") for path in paths))

    return Difference(
        names(created - both),
        names(deleted - both),
        names((changed | both) - (created ^ deleted)),
        {path.strip("/"): each for path, each in sorted(arrays.items())},
    )


def _chunks(old: ChunkTable | None, new: ChunkTable | None, load: Load) -> NDArray[np.int64]:
    """Indices of chunks that are elsewhere, or nowhere, in the other table."""
    tables = [table for table in (old, new) if table is not None]
    ndim = tables[0].blocks.ndim
    found: list[NDArray[np.int64]] = []
    if len(tables) == 2 and tables[0].blocks == tables[1].blocks:
        one, other = tables
        pages = [(one.top(load)[0], other.top(load)[0], (0,) * ndim)]
        for level in reversed(range(one.blocks.levels)):
            below: list[tuple[RefPage, RefPage, tuple[int, ...]]] = []
            for a, b, place in pages:
                differ = _positions(a, b)
                inside = one.blocks.inside(place, differ, level)
                if not level:
                    found.append(inside)
                    continue
                for position, at in zip(differ.tolist(), inside.tolist(), strict=True):
                    sides = []
                    for table, page in ((one, a), (other, b)):
                        reference = page.find(position)
                        sides.append(
                            RefPage.empty(table.blocks.size(level - 1), pages=level > 1)
                            if reference is None
                            else table.load_pages([reference], level - 1, load)[0]
                        )
                    below.append((sides[0], sides[1], tuple(at)))
            pages = below
    else:
        known: dict[tuple[int, ...], object] = {}
        for table in tables:
            if table.blocks.ndim != ndim:
                continue
            for indices, refs in table.iterate(load):
                for index, reference in zip(map(tuple, indices.tolist()), refs, strict=True):
                    if known.get(index) == reference:
                        del known[index]
                    else:
                        known[index] = reference
        found = [np.array(sorted(known), np.int64).reshape(-1, ndim)]
    every = np.concatenate(found) if found else np.zeros((0, ndim), np.int64)
    return every[np.lexsort(every.T[::-1])] if ndim and len(every) else every


def _positions(a: RefPage, b: RefPage) -> NDArray[np.uint16]:
    """Where two pages refer to other things."""
    one = dict(zip(a.positions.tolist(), a.refs, strict=True))
    other = dict(zip(b.positions.tolist(), b.refs, strict=True))
    differ = {at for at in one.keys() | other.keys() if one.get(at) != other.get(at)}
    return np.array(sorted(differ), np.uint16)


def _spec(snapshot: Snapshot, path: str) -> ArraySpec | None:
    documents = snapshot.documents([path + zarr3.KEY, path + zarr2.ARRAY])
    try:
        if path + zarr3.KEY in documents:
            found = zarr3.parse(documents[path + zarr3.KEY])[1]
        else:
            found = zarr2.parse_array(documents[path + zarr2.ARRAY], None, allow_pickle=None)
    except (StashError, KeyError):
        return None
    return found if isinstance(found, ArraySpec) else None


def _boxes(chunks: NDArray[np.int64], spec: ArraySpec | None) -> tuple[Box, ...]:
    """Boxes of the array that cover chunks, those beside each other along the last axis as one,
    and rows of such that are alike along the others."""
    if spec is None or spec.ndim != chunks.shape[1]:
        return ()
    boxes = [tuple((i, i + 1) for i in index) for index in chunks.tolist()]
    for axis in reversed(range(spec.ndim)):
        boxes = _merged(boxes, axis)
    out = []
    for box in boxes:
        slices = []
        for axis, (first, last) in enumerate(box):
            grid, length = spec.grid.axes[axis], spec.shape[axis]
            stop = grid.start(last - 1) + grid.size(last - 1)
            slices.append(slice(min(grid.start(first), length), min(stop, length)))
        out.append(tuple(slices))
    return tuple(box for box in out if all(each.start < each.stop for each in box))


def _merged(
    boxes: list[tuple[tuple[int, int], ...]], axis: int
) -> list[tuple[tuple[int, int], ...]]:
    """Boxes that touch along an axis and are alike along the others, as one."""

    def rest(box: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return box[:axis] + box[axis + 1 :]

    out: list[tuple[tuple[int, int], ...]] = []
    for box in sorted(boxes, key=lambda box: (rest(box), box[axis])):
        last = out[-1] if out else None
        if last is not None and rest(last) == rest(box) and last[axis][1] == box[axis][0]:
            out[-1] = (*box[:axis], (last[axis][0], box[axis][1]), *box[axis + 1 :])
        else:
            out.append(box)
    return sorted(out)
