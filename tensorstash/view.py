"""Views: selections that compose and read nothing until asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .handle import Handle, NoOperators
from .indexing.axis import StrideTable
from .indexing.fields import Fields, named
from .indexing.selection import Stride, Transform, compose, dims_of, identity, outer, point, select
from .tensors import to_tensor

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Rule = Callable[[Any, Sequence[int]], Transform]
Names = Callable[[Any], tuple[Fields | None, Any]]


class View(NoOperators):
    """A selection of an array that has not been read.

    Indexing a view gives a view, by NumPy's rules and counted from 0; nothing is read until
    :meth:`read`, ``np.asarray`` or iteration. Assigning writes through to the array. Pickles
    as the array's handle and the selection.

    Raises:
        InvalidSelection: an index does not fit. NotFound, Conflict: the array was deleted or
        replaced by another.

    >>> view = stash.save({}, np.arange(10)).lazy[2:8][::2]
    >>> view.shape, view.read().tolist()
    ((3,), [2, 4, 6])
    """

    def __init__(self, array: Handle, transform: Transform, fields: Fields | None = None) -> None:
        """A view of ``array``, of its records only ``fields``; made by ``array.lazy[...]``."""
        self.array = array
        self.transform = transform
        self.fields = fields

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what :meth:`read` returns."""
        return self.transform.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype, or that of the fields named."""
        return self.array.dtype if self.fields is None else self.fields.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes of what :meth:`read` returns."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d view")
        return self.shape[0]

    def __getitem__(self, selection: Any) -> View:
        fields, selection = self._named(selection)
        return View(self.array, compose(select(selection, self.shape), self.transform), fields)

    def __setitem__(self, selection: Any, value: Any) -> None:
        fields, selection = self._named(selection)
        chosen = compose(select(selection, self.shape), self.transform)
        self.array.write_transform(chosen, value, fields)

    def _named(self, selection: Any) -> tuple[Fields | None, Any]:
        """The fields of the array that a selection of this view means, and its rest."""
        within = self.array.dtype if self.fields is None else self.fields.within
        fields, rest = named(selection, within)
        return (self.fields if fields is None else fields.view()), rest

    @property
    def oindex(self) -> Indexer[View]:
        """Orthogonal selection: every item acts on its own axis."""
        return Indexer(self._view, self._put, outer, self.transform, self._named)

    @property
    def vindex(self) -> Indexer[View]:
        """Pointwise selection: arrays broadcast together, their dimensions come first."""
        return Indexer(self._view, self._put, point, self.transform, self._named)

    def _view(self, transform: Transform, fields: Fields | None) -> View:
        return View(self.array, transform, fields)

    def _put(self, transform: Transform, value: Any, fields: Fields | None) -> None:
        self.array.write_transform(transform, value, fields)

    def read(self, *, out: Any = None) -> NDArray[Any]:
        """Read the selected elements.

        Args:
            out: an array or torch tensor of this shape and dtype to decode chunks into.

        Returns:
            A new NumPy array, or the array of ``out``.

        Raises:
            Corrupt: a chunk is damaged. Invalid: ``out`` has another shape or dtype.

        >>> stash.save({}, np.arange(4)).lazy[1:3].read().tolist()
        [1, 2]
        """
        return self.array.read_transform(self.transform, out, self.fields)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a view has no memory of its own: copy=False cannot be had")
        return self.read().astype(dtype or self.dtype, copy=False)

    def __iter__(self) -> Iterator[Any]:
        """Rows along the first dimension; along a slice, each chunk is read once."""
        length = len(self)
        return (row for rows in self._runs(length) for row in self[rows].read())

    def _runs(self, length: int) -> Iterator[slice]:
        """Slices of the first dimension that lie in one chunk each; single rows where the array
        is not sliced along it."""
        spec, maps = self.array.spec, self.transform.maps
        axes = [k for k, axis_map in enumerate(maps) if 0 in dims_of(axis_map)]
        axis_map = maps[axes[0]] if len(axes) == 1 else None
        if not isinstance(axis_map, Stride):
            yield from (slice(i, i + 1) for i in range(length))
            return
        table = StrideTable(axis_map, length, spec.grid.axes[axes[0]], spec.shape[axes[0]])
        for piece in table.pieces():
            yield from piece.outsides or ()

    def __repr__(self) -> str:
        dtype = "" if self.fields is None else f" {self.fields.dtype}"
        return f"<View {self.shape}{dtype} of {self.array!r}>"


class Indexer(Generic[Result]):
    """``array.oindex``, ``array.vindex``: one selection rule, to read and to assign by.

    Named fields stand in a selection as in ``array[...]``: ``array.oindex["x", rows, columns]``.

    >>> a = stash.save({}, np.arange(6).reshape(2, 3))
    >>> a.oindex[[0, 1], [2, 0]].tolist(), a.vindex[[0, 1], [2, 0]].tolist()
    ([[2, 0], [5, 3]], [2, 3])
    """

    def __init__(
        self,
        get: Callable[[Transform, Fields | None], Result],
        put: Callable[[Transform, Any, Fields | None], None],
        rule: Rule,
        base: Transform,
        names: Names,
    ) -> None:
        """Select from ``base`` by ``rule``, and the fields that ``names`` finds."""
        self._get = get
        self._put = put
        self._rule = rule
        self._base = base
        self._names = names

    def _chosen(self, selection: Any) -> tuple[Transform, Fields | None]:
        fields, selection = self._names(selection)
        return compose(self._rule(selection, self._base.shape), self._base), fields

    def __getitem__(self, selection: Any) -> Result:
        return self._get(*self._chosen(selection))

    def __setitem__(self, selection: Any, value: Any) -> None:
        transform, fields = self._chosen(selection)
        self._put(transform, value, fields)


class Lazy:
    """``array.lazy``: selections that return a :class:`View`, and read nothing.

    >>> stash.save({}, np.arange(4)).lazy[1:3].shape
    (2,)
    """

    def __init__(self, array: Handle) -> None:
        """Views of ``array``."""
        self._array = array

    def __getitem__(self, selection: Any) -> View:
        return View(self._array, identity(self._array.shape))[selection]

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._array[selection] = value


class Tensors:
    """``a.torch``: read selections of the array as torch tensors, without another copy.

    >>> a = stash.save({}, np.arange(4))
    >>> a.torch[1:3].tolist()
    [1, 2]
    """

    def __init__(self, array: Handle) -> None:
        """Tensors of ``array``."""
        self._array = array

    def __getitem__(self, selection: Any) -> torch.Tensor:
        fields, selection = named(selection, self._array.dtype)
        return self._tensor(select(selection, self._array.shape), fields)

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._array[selection] = value

    @property
    def oindex(self) -> Indexer[torch.Tensor]:
        """Orthogonal selection, as a tensor."""
        return self._indexer(outer)

    @property
    def vindex(self) -> Indexer[torch.Tensor]:
        """Pointwise selection, as a tensor."""
        return self._indexer(point)

    def _indexer(self, rule: Rule) -> Indexer[torch.Tensor]:
        array = self._array
        names = partial(named, dtype=array.dtype)
        return Indexer(self._tensor, array.write_transform, rule, identity(array.shape), names)

    def _tensor(self, transform: Transform, fields: Fields | None = None) -> torch.Tensor:
        return to_tensor(self._array.read_transform(transform, None, fields))
