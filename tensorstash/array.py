"""Arrays: chunked, stored, indexed like NumPy's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import coerce
from .attributes import Attributes
from .columns import Placed
from .driver import Check, Driver, Tag, held
from .engine import resize as sizes
from .engine.caching.cache import Cache
from .engine.chunks import Chunks
from .engine.in_place.writing import writer_kind
from .engine.look import Found, Guard, Look, blame
from .engine.mmap import mapped
from .engine.read import Reader
from .engine.stats import Meter, Stats
from .engine.stored import present_blocks
from .engine.update import Guess
from .engine.write import Writer
from .errors import (
    Corrupt,
    Invalid,
    InvalidSelection,
    NoMemory,
    NotFound,
    Unsupported,
)
from .explain import Explanation, Info, explain, info
from .handle import Settings
from .indexing.fields import Fields, named
from .indexing.grid import blocks, cut, cuts
from .indexing.selection import Transform, has_ellipsis, identity, outer, point, select, spans
from .metadata.node import Node, lock_key, require_array, reread, reread_copied
from .metadata.spec import ArraySpec
from .view import Indexer, Lazy, Rule, Tensors
from .writer import SingleRows, WritableHandle


class Array(WritableHandle):
    """A handle on a stored array: ``a[...]`` reads into new memory, ``a[...] = value`` stores.

    Selections are NumPy's, and return what NumPy would return. A handle holds no connection that
    must be closed, may be used by several threads, works in forked processes, and pickles small. It
    knows the shape from when it was opened, or last changed the shape itself; :meth:`refresh` looks
    again. Each call looks once whether the array is still the same, unless ``immutable``.

    Raises:
        NotFound, Conflict: the array was deleted or replaced by another. InvalidSelection: an
        index does not fit. Invalid: a value does not fit. ReadOnly, Closed: this handle may not.

    >>> a = stash.create({}, (2, 3), "int32")
    >>> a[:, 1] = [7, 8]
    >>> a[1].tolist()
    [0, 8, 0]
    """

    def __init__(
        self,
        driver: Driver,
        path: str,
        settings: Settings,
        spec: ArraySpec | None = None,
        created: bool = False,
        tag: Tag | None = None,
        identity: bytes | None = None,
    ) -> None:
        """Made by ``tensorstash.open`` and ``create``. Without ``spec`` it is read on first use,
        and must then have the ``identity``, where that is known; ``created``: just now, so that
        there is no chunk yet; ``tag``: of its document, if known."""
        self.driver = driver
        self.path = path
        self.settings = settings
        self._spec = spec
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._cache = Cache(settings.cache_bytes, settings.memory) if settings.cache_bytes else None
        self._meter = Meter()
        self._guess = Guess(absent=created)
        self._singles = SingleRows()
        self._grown: sizes.Grown | None = None  # by the last append
        self._chunks: Chunks | None = None  # as they were last bound
        self._identity = identity
        self._tag = tag  # of the document, where it is known to be this array's
        self._watched = not settings.immutable
        self.guard: Guard | None = None
        self.copied = False
        """``spec`` is from consolidated metadata, and the array's own was not looked at yet."""
        self._closed = False

    # -- what it is -------------------------------------------------------------------------

    @property
    def spec(self) -> ArraySpec:
        """The metadata, as this handle knows it."""
        if self._spec is None:
            self.refresh()
        assert self._spec is not None
        return self._spec

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Shape of what is decoded at once (inner chunks, where there are shards); ``None``
        when chunks differ."""
        return self._read.chunks.grid.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Shape of a stored shard, or ``None`` when the array is not sharded."""
        return self.spec.grid.chunks if self._read.chunks.sharding is not None else None

    @property
    def attrs(self) -> Attributes:
        """The user's attributes: a mapping whose changes are stored at once."""
        return Attributes(self)

    def info(self) -> Info:
        """Describe the array and what is stored of it; this lists the stored chunks.

        Returns:
            An ``Info``, which prints as a table.

        >>> stash.save({}, np.arange(4)).info().stored_chunks
        1
        """
        self._open()
        self.settle()
        found = info(self.driver, self.path, self.spec, self._read.chunks)
        self.check_same()
        return found

    @property
    def stats(self) -> Stats:
        """What this handle cost so far, in this process: chunks, bytes, requests, time."""
        return self._meter.stats(self.driver)

    # -- reading ----------------------------------------------------------------------------

    def __getitem__(self, selection: Any) -> Any:
        """``numpy_array[selection]``, read from storage into memory that is yours."""
        reader, tag = self._reader, self._tag if self._watched else None
        if reader and not (self.guard or self.copied or (self._watched and tag is None)):
            found = reader.small.take(selection, tag, reader.follow)
            if found is not None:
                return found
        result, rest = self._take(selection, None)
        return result[()] if result.ndim == 0 and not has_ellipsis(rest) else result

    def read(self, selection: Any = ..., *, out: Any = None) -> NDArray[Any]:
        """Read a selection into an array, as ``a[selection]`` but never a scalar.

        Args:
            selection: any that NumPy takes; by default everything.
            out: an array or torch tensor of the result's shape and dtype to decode chunks into.

        Returns:
            A new NumPy array of the array's dtype, or the array of ``out``.

        >>> stash.save({}, np.arange(4)).read(slice(1, 3)).tolist()
        [1, 2]
        """
        return self._take(selection, out)[0]

    @property
    def oindex(self) -> Indexer[Any]:
        """Orthogonal selection, ``a.oindex["x", rows]``: each array or mask has its own axis."""
        return self._indexer(outer)

    @property
    def vindex(self) -> Indexer[Any]:
        """Pointwise selection: index arrays broadcast together, their dimensions come first."""
        return self._indexer(point)

    @property
    def blocks(self) -> Indexer[Any]:
        """Selection in whole chunks (shards, where there are shards): ``a.blocks[0, 2:4]``."""
        return self._indexer(blocks(self.settle().spec.grid))

    @property
    def lazy(self) -> Lazy:
        """Selections that compose and read nothing until asked: ``a.lazy[10:20][..., 3]``."""
        return Lazy(self.settle())

    @property
    def torch(self) -> Tensors:
        """The same selections as torch tensors: ``a.torch[10:20]``."""
        return Tensors(self.settle())

    def mmap(self, selection: Any = ...) -> NDArray[Any]:
        """Map an uncompressed chunk into memory: a view of where it is stored, without reading it.

        Args:
            selection: what to view, which lies in one chunk.

        Returns:
            A read-only array, which shows what is stored there now.

        Raises:
            Unsupported: chunks are compressed, the driver cannot, or there are several chunks.

        >>> stash.save("mapped", np.arange(4), codecs=None).mmap(slice(1, 3)).tolist()
        [1, 2]
        """
        self._open()
        self.settle()
        found = mapped(self._read.chunks, select(selection, self.spec.shape))
        self.check_same()
        return found

    def iter_blocks(
        self, selection: Any = ..., *, absent: bool = False
    ) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        """Iterate over the stored chunks (shards) that a selection touches, clipped to it.

        Args:
            selection: integers and slices of step 1; by default everything.
            absent: yield chunks that are not stored too, which hold nothing but the fill value.

        Returns:
            An iterator over ``(where, block)``, one at a time: ``a[where]`` equals ``block``.

        >>> a = stash.save({}, np.arange(4), chunks=2)
        >>> [(where[0].start, block.tolist()) for where, block in a.iter_blocks(slice(1, None))]
        [(1, [1]), (2, [2, 3])]
        """
        bounds = spans(select(selection, self.settle().shape))
        blocks = cuts(self.spec.grid.axes, bounds)
        if not absent and self.settings.missing == "fill":
            self._open()
            blocks = present_blocks(self.driver, self.path, self.spec, bounds)
        for where in blocks:
            yield where, self.read(where)
        self.check_same()  # what is not stored was none of another's either

    def explain(self, selection: Any = ...) -> Explanation:
        """Work out what reading a selection costs, without reading.

        Args:
            selection: any that NumPy takes; by default everything.

        Returns:
            An ``Explanation``: chunks, objects, requests and bytes.

        >>> stash.save({}, np.arange(4), chunks=2).explain(slice(2)).chunks
        1
        """
        self._open()
        selection = named(selection, self.spec.dtype)[1]
        return explain(self._read.chunks, select(selection, self.spec.shape))

    def read_transform(
        self, transform: Transform, out: Any, fields: Fields | None = None
    ) -> NDArray[Any]:
        """Read a prepared transform, of records only ``fields``; for views and adapters."""
        if not self._watched:
            self.settle()
            return self.read_unwatched(transform, out, fields)
        look = None if self.driver.capabilities.local else self._look()
        try:
            result = self.read_unwatched(transform, out, fields, look)
        except (Corrupt, Invalid, NotFound, Unsupported) as error:
            self._open()
            if not isinstance(error, InvalidSelection):
                blame(self.check_same, error)
            raise
        if look is None and result.size:
            self.check_same()  # so what was read before was this array's
        return result

    def read_unwatched(
        self,
        transform: Transform,
        out: Any,
        fields: Fields | None = None,
        look: Look | None = None,
    ) -> NDArray[Any]:
        """As :meth:`read_transform`, but ``look`` alone checks that it is the same array."""
        self._open()
        dtype = self.spec.dtype if fields is None else fields.dtype
        try:
            if out is None:
                try:
                    result = np.empty(transform.shape, dtype)
                except ValueError as error:
                    raise InvalidSelection(
                        f"no memory can hold shape {transform.shape} of {dtype}; select less"
                    ) from error
            elif isinstance(out, Placed) and fields is None:
                self._read.read(transform, out, look=look)
                return out.array
            else:
                result = coerce.as_out(out, transform.shape + dtype.shape, dtype.base)
            into = result if fields is None else fields.records(result, transform.shape)
            self._read.read(transform, into, fields, look)
        except MemoryError as error:
            raise self._read.chunks.no_memory("read", transform.shape, error) from error
        return result

    def __iter__(self) -> Iterator[Any]:
        """Rows along the first axis; each chunk is read once."""
        if not self.settle().shape:
            raise TypeError("iteration over a 0-d array")
        runs = cut(self.spec.grid.axes[0], 0, self.shape[0])
        return (row for rows in runs for row in self[rows])

    # -- writing ----------------------------------------------------------------------------

    def __setitem__(self, selection: Any, value: Any) -> None:
        """``numpy_array[selection] = value``, stored. Bytes of other writers are never lost;
        whole chunks are replaced without being read."""
        spec = self.spec
        fields, selection = named(selection, spec.dtype)
        self.write_transform(select(selection, spec.shape), value, fields)

    def write_transform(
        self, transform: Transform, value: Any, fields: Fields | None = None
    ) -> None:
        """Store ``value`` at a prepared transform, of records only ``fields``; for views and
        adapters."""
        self._open(write=True)
        look = None
        if self._watched and 0 not in transform.shape:
            if self.driver.capabilities.local:
                self.check_same()
            else:
                look = self._look()
        self._store(transform, value, fields, look)

    def write_unwatched(
        self,
        transform: Transform,
        value: Any,
        fields: Fields | None = None,
        look: Look | None = None,
    ) -> None:
        """As :meth:`write_transform`, but ``look`` alone checks that it is the same array."""
        self._open(write=True)
        self._store(transform, value, fields, look)

    def _store(
        self, transform: Transform, value: Any, fields: Fields | None, look: Look | None
    ) -> None:
        try:
            if fields is None:
                self._write.write(transform, self.as_value(value, transform.shape), look)
            else:
                writer = self.make_writer(self.spec, fields=fields)
                writer.write(transform, fields.source(value, transform.shape), look)
        except MemoryError as error:
            raise self._read.chunks.no_memory("write", transform.shape, error) from error

    def append(self, rows: Any, axis: int = 0) -> int:
        """Grow the array along an axis, atomically: readers see all new rows or none.

        Concurrent appends from any number of processes all land; one that fails changes nothing.

        Args:
            rows: values that have the array's shape in all other axes.
            axis: which axis grows; by default the first.

        Returns:
            The index of the first new row along ``axis``.

        Raises:
            TimedOut: another held the array's lock for longer than ``lock_timeout`` seconds.

        >>> a = stash.save({}, [[1, 2]])
        >>> a.append([[3, 4], [5, 6]]), a.shape
        (1, (3, 2))
        """
        self._open(write=True)
        self._refuse_field()
        axis = self.as_axis(axis)
        value = self.as_rows(rows, axis)
        self._singles.note(value.shape[axis], self.driver, self.path, (self.spec,))
        try:
            wait, make = self.settings.lock_timeout, self.make_writer
            self._grown, start = sizes.append(
                self.driver, self.path, self.spec, value, axis, make, wait, self._grown
            )
        except MemoryError as error:
            raise self._read.chunks.no_memory("append", value.shape, error) from error
        self._adopt(self._grown.node)
        return start

    def resize(self, shape: Sequence[int] | int) -> None:
        """Change the shape, in one step for every reader.

        Args:
            shape: the new length of each axis; new elements read as the fill value.

        Raises:
            TimedOut: another held the array's lock for longer than ``lock_timeout`` seconds.

        >>> a = stash.save({}, [1, 2, 3])
        >>> a.resize(2)
        >>> a.shape
        (2,)
        """
        self._open(write=True)
        self._refuse_field()
        wanted = coerce.parse_lengths(shape, "shape")
        try:
            node = sizes.resize(
                self.driver,
                self.path,
                self.spec,
                wanted,
                self.make_writer,
                self.settings.lock_timeout,
            )
        except MemoryError as error:
            raise self._read.chunks.no_memory("resize to", wanted, error) from error
        self._adopt(node)

    # -- the handle -------------------------------------------------------------------------

    def refresh(self) -> Array:
        """Read the stored metadata again: others may have changed the shape or the attributes.

        Returns:
            This handle.

        >>> a = stash.save({}, [1, 2, 3])
        >>> a.refresh() is a
        True
        """
        self._open()
        if self._spec is None:
            allow = self.settings.allow_pickle
            node = require_array(self.driver, self.path, allow, self._identity)
        else:
            node = reread(self.driver, self.path, self._spec)
        return self._adopt(node)

    def check_stored(self) -> None:
        """:class:`~tensorstash.errors.Conflict` where another array was put in the place of this
        one; for who is about to write to it in part. One request that moves no bytes, while the
        document is the one that was read."""
        tag = None
        if self.spec.zarr_format == 3:  # beside v2's document, v3's may be stored at any time
            tag = self.driver.tag(lock_key(self.path, self.spec))
        if tag is None or tag != self._tag:
            self._tag = reread(self.driver, self.path, self.spec).tag

    def check_same(self) -> None:
        """:class:`~tensorstash.errors.Conflict` or :class:`~tensorstash.errors.NotFound` where
        this array is no more, or another is in its place; nothing with ``immutable``. One request
        that moves no bytes, while the document is the one that was read."""
        if not self._watched:
            return
        tag = self._tag
        if self.guard is not None:
            self.guard.check(self.spec)
        elif tag is None or self.driver.tag(lock_key(self.path, self.spec)) != tag:
            self._verify()

    def _look(self) -> Look:
        """As :meth:`check_same`, to be asked for together with what a call reads."""
        if self.guard is not None:
            return self.guard.look(self.spec)
        return Look(self.driver, lock_key(self.path, self.spec), self._tag, self._verify)

    def _verify(self, found: Found = None) -> None:
        """The document is not of the version that is known: whether it is this array's still."""
        known = self.spec
        if self.copied:
            self._adopt(reread_copied(self.driver, self.path, known, found))
            return
        node = reread(self.driver, self.path, known, found)
        if known.identity is None and isinstance(node.content, ArraySpec):
            self._spec = replace(known, identity=node.content.identity)
            self._reader = None
        self._tag = node.tag

    def watch(self, watched: bool) -> None:
        """Set whether calls check that the array has not been replaced; for creating arrays."""
        self._watched = watched

    def close(self) -> None:
        """Refuse further use of this handle. Nothing else needs closing.

        >>> with stash.create({}, 3, "int8") as a:
        ...     a[0] = 1
        """
        self._closed = True
        self._cache = self._reader = self._writer = self._chunks = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Metadata is read again on the other side: it may be large, and may have changed.
        identity = self._identity if self._spec is None else self._spec.identity
        return Array, (self.driver, self.path, self.settings, None, False, None, identity)

    # -- inside -----------------------------------------------------------------------------

    @property
    def _read(self) -> Reader:
        reader = self._reader
        if reader is None:
            how, spec = self.settings, self.spec
            known = self._chunks or Chunks(self.driver, self.path, spec, most=how.limits.chunk)
            chunks = self._chunks = known.of(spec, how.missing)
            own = how.threads, how.immutable, self._meter, how.memory
            reader = self._reader = Reader(chunks, self._cache, *own)
        return reader

    @property
    def _write(self) -> Writer:
        writer = self._writer
        if writer is None or writer.chunks.spec is not self.spec:
            writer = self._writer = self.make_writer(self.spec)
        return writer

    def make_writer(
        self,
        spec: ArraySpec,
        grown_from: tuple[int, ...] | None = None,
        check: Check = held,
        fields: Fields | None = None,
    ) -> Writer:
        """The writer for this array as ``spec`` has it."""
        how, chunks, seen = self.settings, self._chunks or self._read.chunks, self._guess
        if chunks.spec is not spec:
            chunks = self._chunks = chunks.of(spec)
        own = how.threads, how.write_fill, grown_from, check
        return writer_kind(chunks)(chunks, *own, seen, fields, how.memory)

    def _take(self, selection: Any, out: Any) -> tuple[NDArray[Any], Any]:
        """What a selection gives, and the rest of it, without names of fields. Where what is known
        comes from a copy, the look at the array's own metadata is that of this read, which is
        repeated where they tell of another shape."""
        while True:
            copied, spec = self.copied, self.spec
            shape = spec.shape
            try:
                fields, rest = named(selection, spec.dtype)
                result = self.read_transform(select(rest, shape), out, fields)
            except (Invalid, NoMemory):
                if not copied:
                    raise
            else:
                if not copied or (shape == self.spec.shape and not self.copied):
                    return result, rest
            self.settle()

    def settle(self) -> Array:
        """Read the array's own metadata, if this handle has it from a copy in a group."""
        if self.copied:
            self._verify()
        return self

    def _adopt(self, node: Node) -> Array:
        """``node`` is what is stored now."""
        assert isinstance(node.content, ArraySpec)
        self._spec, self._tag = node.content, node.tag
        self._reader = None
        self.copied = False
        return self

    def _content(self) -> ArraySpec | None:
        return self._spec if self._identity is None else self.spec

    def _indexer(self, rule: Rule) -> Indexer[Any]:
        names = partial(named, dtype=self.settle().dtype)
        return Indexer(self._result, self.write_transform, rule, identity(self.shape), names)

    def _result(self, transform: Transform, fields: Fields | None) -> Any:
        result = self.read_transform(transform, None, fields)
        return result[()] if result.ndim == 0 else result


def renewed(array: Array, spec: ArraySpec) -> Array:
    """A handle on the same array as ``spec`` has it now, with what ``array`` has cached."""
    made = object.__new__(type(array))
    made.__dict__.update(array.__dict__)
    made._spec, made._identity, made._closed = spec, None, False
    made._reader = made._writer = made._grown = None
    return made
