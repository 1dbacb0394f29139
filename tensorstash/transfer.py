"""Copying and moving arrays, groups and records between any two places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from .array import Array
from .create import create, make_spec
from .driver import Driver
from .errors import Invalid
from .group import Group
from .handle import Settings
from .limits import Limits
from .location import Location, resolve
from .memory import Budget, budget_of
from .metadata import node
from .metadata.consolidated import place_path
from .metadata.document import GroupDocument
from .metadata.mark import is_records
from .options import CopyOptions, shown
from .trees.copying import Bar, Place, copy_tree
from .trees.moving import move_tree
from .trees.patterns import Choice, Wanted
from .trees.rewriting import copy_to, need_tqdm
from .wrapper import limited


@shown(CopyOptions, make_spec, create, left_out="as in the source")
def copy(
    source: Any,
    target: Location,
    *,
    path: str = "",
    include: Wanted = None,
    exclude: Wanted = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **changes: Unpack[CopyOptions],
) -> Any:
    """Copy an array, a group or records between any two places.

    Of a group or records everything below is copied byte for byte, with attributes, dimension
    names, chunks and consolidated metadata; files of other programs are not. An array may be
    stored in another way. It costs what is stored, and as many chunks are in memory at a time as
    fit in 128 MiB. Until the copy is whole, every reader refuses it; after a failure, copy again
    with ``overwrite=True``. What others write meanwhile may be in the copy or not; no array in it
    is of two shapes.

    Args:
        source: an array, a group or records, or where they are stored.
        target: where to store the copy, as for :func:`create`.
        path: where below the location ``source`` it is stored.
        include: of a group, only members whose path matches this pattern, or one of these, as
            for :func:`walk`, and the groups above them.
        exclude: of a group, no members that match, and nothing below them.
        progress: show a bar, which needs tqdm.
        options: keyword arguments of the target's driver.
        overwrite: replace the array, group or records at ``target``.
        chunks, shards, codecs, fill_value, dimension_names, attributes, zarr_format,
            key_encoding, separator, order, filters, in_place, dtype: how the copy of an array is
            stored, as :func:`create` explains. What is left out stays as it is in the source.

    Returns:
        A handle that reads and writes the copy: an array, a group or records.

    Raises:
        NotFound: nothing is stored at ``source``.
        AlreadyExists: something is stored at ``target``, and ``overwrite`` is false.
        Invalid: the target is the source, holds it or lies in it, by whatever name, an option
            does not fit, or tqdm is missing; nothing is changed then.
        Corrupt: a member of the source is damaged, or not whole; ``exclude=`` leaves it out.
        Conflict: something else took the source's place meanwhile.

    >>> a = stash.save("memory://from", np.arange(8.0), chunks=2)
    >>> b = stash.copy(a, "memory://to", chunks=4, dtype="float32")
    >>> b.chunks, b[-2:].tolist()
    ((4,), [6.0, 7.0])
    >>> g = stash.create_group({})
    >>> x = g.create("raw/x", 3, "int8")
    >>> stash.copy(g, {}, include="raw/**")["raw/x"].shape
    (3,)
    """
    if progress:
        need_tqdm()
    how = dict(changes)
    place, origin, limits, budget = _origin(source, path)
    driver = limited(resolve(target, options), limits)
    if origin is not None:
        if include is not None or exclude is not None:
            raise Invalid("include= and exclude= choose members of a group, and this is an array")
        if how.get("shape", origin.shape) != origin.shape:
            raise Invalid("copy keeps the shape; resize the copy, or save() a selection")
        return copy_to(origin, driver, "", how, overwrite=overwrite, progress=progress)
    if how:
        raise Invalid(
            f"{', '.join(sorted(how))}: how a copy is stored can be said of one array, and "
            f"{place} is a group or records, copied as it is; copy its arrays one by one"
        )
    choice = Choice.of(include, exclude)
    made = Place(driver)
    with _bar(place, progress) as bar:
        copy_tree(place, made, budget=budget, choice=choice, overwrite=overwrite, bar=bar)
    return _handle(driver, Settings(mode="r+", limits=limits, memory=budget))


def move(
    source: Any,
    target: Location,
    *,
    path: str = "",
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Any:
    """Move an array, a group or records to another place, with everything that belongs to it.

    Where both places are in one file system or in memory, it is renamed, whatever its size. Else
    it is copied, the copy is read back and compared, and then the source is deleted. At every
    instant one of the two is whole, and no reader takes the other for it; a move that was killed
    ends well when it is repeated, with ``overwrite=True`` where the target is whole by then. Let
    nobody write to the source meanwhile: what is written last may be lost.

    Args:
        source: an array, a group or records, or where they are stored.
        target: where to move it, as for :func:`create`.
        path: where below the location ``source`` it is stored.
        options: keyword arguments of the target's driver.
        overwrite: replace the array, group or records at ``target``, which go first.
        progress: show a bar where it is copied, which needs tqdm.

    Returns:
        A handle that reads and writes it at its new place. Handles on the old one raise
        ``NotFound`` or ``Conflict``.

    Raises:
        NotFound: nothing is stored at ``source``.
        AlreadyExists: something is stored at ``target``, and ``overwrite`` is false; or files of
            other programs are in the source, and it cannot be renamed.
        Invalid: the target is the source, holds it or lies in it, or either is a field of
            records; nothing is changed then.
        ReadOnly: one of the places cannot be written to.
        Conflict: others changed the source meanwhile; it is there still.

    >>> a = stash.save("memory://old", np.arange(3))
    >>> b = stash.move("memory://old", "memory://new")
    >>> b[...].tolist(), stash.exists("memory://old")
    ([0, 1, 2], False)
    """
    if progress:
        need_tqdm()
    place, limits, budget = _place(source, path)
    driver = limited(resolve(target, options), limits)
    with _bar(place, progress) as bar:
        move_tree(place, Place(driver), budget=budget, overwrite=overwrite, bar=bar)
    return _handle(driver, Settings(mode="r+", limits=limits, memory=budget))


def _place(source: Any, path: str) -> tuple[Place, Limits, Budget]:
    """Where a source is, and its handle's limits."""
    whole = getattr(getattr(source, "source", None), "whole_table", None)
    if whole is not None:  # records
        source = whole("copy")
    if hasattr(source, "settings") and isinstance(getattr(source, "driver", None), Driver):
        if path:
            raise Invalid("path= is for a location; a handle is what is copied itself")
        settings: Settings = source.settings
        return Place(source.driver, source.path), settings.limits, settings.memory
    place = Place(resolve(source), place_path(path))
    return place, Settings("r").limits, budget_of(None)


def _origin(source: Any, path: str) -> tuple[Place, Array | None, Limits, Budget]:
    """As :func:`_place`, and the array, where it is one."""
    place, limits, budget = _place(source, path)
    if isinstance(source, Array):
        return place, source.settle(), limits, budget
    if isinstance(source, Group) or not node.load_any(place.driver, place.path):
        if not isinstance(source, Group):
            node.require(place.driver, place.path)  # raises
        return place, None, limits, budget
    try:
        found = node.require(place.driver, place.path)
    except Invalid:
        return place, None, limits, budget
    if isinstance(found.content, GroupDocument):
        return place, None, limits, budget
    array = Array(place.driver, place.path, Settings("r"), found.content, tag=found.tag)
    return place, array.settle(), limits, budget


def _handle(driver: Driver, settings: Settings) -> Any:
    """A handle on what is at the root of ``driver`` now."""
    found = node.require(driver, "", allow_pickle=None)
    if not isinstance(found.content, GroupDocument):
        return Array(driver, "", settings, found.content, tag=found.tag)
    if is_records(found.content.attributes):
        from .records import open_records

        return open_records(driver, "r+")
    return Group(driver, "", settings, found.content)


@contextmanager
def _bar(place: Place, shown: bool) -> Iterator[Bar | None]:
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    driver = place.driver
    known = driver.capabilities.lists and type(driver).sizes is not Driver.sizes
    total = sum(size for _, size in driver.sizes(place.path)) if known else None
    with tqdm(total=total, unit="B", unit_scale=True, desc="copy") as bar:
        done: Callable[[int], object] = bar.update
        yield done
        if total is not None:
            bar.update(max(0, total - bar.n))  # documents
