"""Copying arrays between any two places."""

from __future__ import annotations

import importlib
import math
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np

from . import dtype as dtypes
from . import fill as fills
from .array import Array
from .create import create, make_spec, open
from .driver import Buffer, Driver, Request, Span, located, pause
from .engine.chunks import largest
from .engine.in_place.writing import check_in_place
from .engine.stored import count, stored_blocks, whole
from .errors import Conflict, Invalid
from .fill import is_fill
from .handle import Settings
from .indexing.grid import cuts
from .location import Location, resolve
from .memory.steps import COPIES
from .metadata import node, trailer
from .metadata.belongings import PROBE, Belongings
from .metadata.spec import ArraySpec
from .metadata.trailer import new_identity
from .metadata.unfinished import Spare
from .options import CopyOptions, shown
from .sharding import Sharding
from .threads import spread
from .wrapper import limited

_BYTES = 128 << 20  # of target chunks under way at once
_TRIES = 200
_FEW = 1024  # chunks of a source that are asked for rather than listed


@shown(CopyOptions, make_spec, create, left_out="as in the source")
def copy(
    source: Location | Array,
    target: Location,
    *,
    path: str = "",
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **changes: Unpack[CopyOptions],
) -> Array:
    """Copy an array between any two places, changing how it is stored if you like.

    It costs what is stored: chunks that are not stored are not asked for, where the source's driver
    can list and the fill value stays. Between local places one chunk of the target is in memory at
    a time, else as many as fit in 128 MiB, so that their round trips overlap. Until the copy is
    whole, every reader refuses it; after a failure, copy again with ``overwrite=True``.

    Args:
        source: an array, or where one is stored.
        target: where to store the copy, as for :func:`create`.
        path: where below the location ``source`` the array is stored.
        progress: show a bar, which needs tqdm.
        options: keyword arguments of the target's driver.
        overwrite: replace the array or group that is at ``target``.
        chunks, shards, codecs, fill_value, dimension_names, attributes, zarr_format,
            key_encoding, separator, order, filters, in_place, dtype: how the copy is stored, as
            :func:`create` explains. What is left out stays as it is in the source.

    Returns:
        A handle that reads and writes the copy.

    Raises:
        NotFound: nothing is stored at ``source``.
        AlreadyExists: an array or group is stored at ``target``, and ``overwrite`` is false.
        Invalid: the source is a group, the target is the source or holds it, by whatever name,
            an option does not fit, or tqdm is missing; nothing is changed then.
        Conflict: another array took the source's place meanwhile.

    >>> a = stash.save("memory://from", np.arange(8.0), chunks=2)
    >>> b = stash.copy(a, "memory://to", chunks=4, dtype="float32")
    >>> b.chunks, b[-2:].tolist()
    ((4,), [6.0, 7.0])
    """
    if progress:
        _need_tqdm()
    origin = _origin(source, path).settle()
    if changes.get("shape", origin.shape) != origin.shape:
        raise Invalid("copy keeps the shape; resize the copy, or save() a selection")
    driver = limited(resolve(target, options), origin.settings.limits)
    return copy_to(origin, driver, "", changes, overwrite=overwrite, progress=progress)


def copy_to(
    origin: Array,
    driver: Driver,
    path: str,
    changes: Mapping[str, Any],
    *,
    overwrite: bool = False,
    progress: bool = False,
    spare: Spare = None,
) -> Array:
    """As :func:`copy`, below a driver's root; ``path`` is empty or ends in ``/``. ``spare``: as of
    ``node.making``."""
    spec = replace(_changed(origin.spec, changes), identity=new_identity(), of_records=False)
    limits, memory = origin.settings.limits, origin.settings.memory
    if "in_place" in changes:
        check_in_place(driver, spec)
    elif spec.in_place and not driver.capabilities.in_place:
        spec = replace(spec, in_place=False)
    if overwrite:
        _refuse_inside(origin, driver, path)
    # Nothing of it is stored yet, its document neither.
    settings = Settings(mode="r+", limits=limits, memory=memory)
    made = Array(driver, path, settings, spec, created=True)
    made.watch(False)
    blocks = _blocks(origin, spec)
    if progress:
        blocks = _with_bar(blocks, spec.size * spec.dtype.itemsize, spec.dtype.itemsize)
    before, least = (largest(each, each.grid) for each in (origin.spec, spec))
    each = least + max(2 * before, COPIES * least)  # of what is read or written, what takes more
    apart = _apart_from(origin.driver, node.lock_key(origin.path, origin.spec))

    def stays(found: Belongings) -> bool:
        return apart(found) or (spare is not None and spare(found))

    with node.making(driver, path, spec, "copy", overwrite=overwrite, spare=stays) as check:

        def move(where: tuple[slice, ...]) -> None:
            with memory.share("in_flight", each, 1, least, partial(located, driver, path)):
                values = origin.read(where)
                check()
                # Nothing is stored there: fill needs no delete.
                if values.dtype != spec.dtype or not is_fill(values, spec.fill):
                    made[where] = values

        at_once = _at_once(origin, made)
        if memory.least is not None:  # threads that would only wait are none
            at_once = max(1, min(at_once, memory.least // max(1, each)))
        spread(blocks, lambda: move, at_once, waits=True)
        origin.check_same()  # what was not listed was none of another's either
    made.watch(True)
    return made


def _origin(source: Any, path: str) -> Array:
    if isinstance(source, Array):
        if path:
            raise Invalid("path= is for a location; a handle is what is copied itself")
        return source
    is_group = hasattr(source, "walk") and hasattr(source, "tree")
    if not is_group:
        try:
            return open(source, path=path)
        except Invalid as error:
            is_group = re.search(r"is a group; open it with open_\w+\(\)$", str(error)) is not None
            if not is_group:
                raise
    raise Invalid(
        "copy takes one array and this is a group; copy its arrays: for path, member in g.walk(): "
        'if isinstance(member, stash.Array): stash.copy(member, f"{target}/{path}")'
    )


def _blocks(origin: Array, spec: ArraySpec) -> Iterator[Any]:
    """The chunks of the target that something is stored of; all, where that is not known."""
    box = whole(spec)
    known = origin.driver.capabilities.lists and origin.settings.missing == "fill"
    if known and count(origin.spec.grid, box) > _FEW and _same_fill(origin.spec, spec):
        return stored_blocks(origin.driver, origin.path, origin.spec, box, spec.grid)
    return cuts(spec.grid.axes, box)


def _same_fill(before: ArraySpec, after: ArraySpec) -> bool:
    """Whether fill that is copied is fill."""
    if before.dtype == after.dtype:
        return is_fill(before.fill.reshape(1), after.fill)
    if before.dtype.kind in "biufc" and after.dtype.kind in "biufc":
        with np.errstate(all="ignore"):
            return is_fill(before.fill.reshape(1).astype(after.dtype), after.fill)
    return False


def _at_once(origin: Array, made: Array) -> int:
    """Target chunks worth having under way together."""
    ends = [array.driver.capabilities for array in (origin, made)]
    if all(end.local for end in ends):
        return 1
    chunk = math.prod(made.spec.grid.chunk_shape((0,) * made.ndim)) * made.dtype.itemsize
    return max(1, min(max(end.concurrency for end in ends), _BYTES // max(1, chunk)))


def _refuse_inside(origin: Array, target: Driver, path: str) -> None:
    """Replacing deletes all there is at ``target``: that must not be, or hold, the source."""
    above = located(target, path).rstrip("/") + "/"
    below = located(origin.driver, origin.path).rstrip("/") + "/"
    if below.startswith(above):
        # Drivers on different dicts have one URL; a stored version is only in one place.
        tag = target.tag(node.lock_key(path + below[len(above) :].lstrip("/"), origin.spec))
        if tag is not None and tag == origin.driver.tag(node.lock_key(origin.path, origin.spec)):
            raise Invalid(f"{below[:-1]} cannot be copied over itself; copy it elsewhere first")


def _apart_from(source: Driver, key: str) -> Callable[[Belongings], bool]:
    """What :func:`~tensorstash.metadata.unfinished.claim` is to ask before it marks anything, for
    who reads the array whose document is at ``key`` of ``source`` meanwhile. It raises
    :class:`~tensorstash.errors.Invalid` where that is among what would be deleted.

    Names do not tell: links, several names of one server, a driver around another's folder. So
    the place is asked. Where a document below it may be the source's own, a key that no cache can
    know is put beside that and beside a chunk, and looked for at the source."""
    path, slash, name = key.rpartition("/")
    here = path + slash

    def spare(found: Belongings) -> bool:
        for document in _alike(source, key, found):
            root = document.removesuffix(name)
            if any(_is_seen(source, here, found.driver, root, at) for at in _at(found, root)):
                raise Invalid(
                    f"{located(source, path)} cannot be copied over itself: what is stored at "
                    f"{located(found.driver, root)} is the same by another name, or by a link; "
                    "copy it elsewhere first"
                )
        return False

    return spare


def _alike(source: Driver, key: str, found: Belongings) -> list[str]:
    """The documents that may be the source's: those that differ from it are another's, unless it
    was changed while they were read."""
    name = key.rpartition("/")[2]
    keys = [each for each in found.documents if each.rpartition("/")[2] == name]
    if not keys:
        return []
    for attempt in range(_TRIES):
        before = _document(source, key)
        most = Span(0, found.driver.metadata_limit)
        pairs = found.driver.get_many_tagged(Request(each, most) for each in keys)
        alike = [keys[i] for i, pair in pairs if pair is not None and _may_be(before, pair[0])]
        if alike or _document(source, key) == before:
            return alike
        pause(attempt)
    raise Conflict(
        f"{located(source, key.rpartition('/')[0])} is changed by others without a break; "
        "repeat the call",
        key=key,
    )


def _at(found: Belongings, root: str) -> list[str]:
    """Folders of the array at ``root``, from there: its own, and one of chunks, which may be
    another array's too, by a link; but none that goes without what it leads to."""
    chunk = next((each for each in found.chunks if each.startswith(root)), root)
    folder = chunk[: chunk.rfind("/") + 1]
    shared = folder != root and found.driver.linked(folder) is None
    return ["", folder[len(root) :]] if shared else [""]


def _is_seen(source: Driver, here: str, target: Driver, root: str, folder: str) -> bool:
    """Whether what is put in a folder of the target is in that folder of the source."""
    token = secrets.token_hex(8)
    probe = f"{folder}{PROBE}{token}"
    try:
        target.put(root + probe, token.encode())
        seen = source.get_tagged(here + probe)
        return seen is not None and bytes(seen[0]) == token.encode()
    finally:
        target.delete(root + probe)


def _document(source: Driver, key: str) -> bytes:
    found = source.get_tagged(key)
    if found is None:
        raise Conflict(
            f"the array at {located(source, key.rpartition('/')[0])} was replaced or deleted "
            "meanwhile; nothing was copied",
            key=key,
        )
    return bytes(found[0])


def _may_be(one: bytes, other: Buffer) -> bool:
    """Whether two documents can be one: of one identity, or where there is none, the same."""
    identity = trailer.decode(one).identity
    return identity == trailer.decode(other).identity if identity else one == bytes(other)


_NOT_IN_PLACE = ("codecs", "shards", "filters", "zarr_format", "order", "dtype")


def _changed(spec: ArraySpec, changes: Mapping[str, Any]) -> ArraySpec:
    """``spec`` with a user's changes; kept chain and grid where they still fit."""
    if not changes and spec.grid.chunks is not None:
        return spec
    sharding = spec.codecs[0] if isinstance(spec.codecs[0], Sharding) else None
    known: dict[str, Any] = {
        "shape": spec.shape,
        "dtype": "bytes" if spec.dtype.kind == "O" else spec.dtype,
        "codecs": list(sharding.codecs if sharding else spec.codecs),
        "fill_value": spec.fill[()],
        "dimension_names": spec.dimension_names,
        "attributes": spec.attributes,
        "zarr_format": spec.zarr_format,
    }
    same_format = changes.get("zarr_format", spec.zarr_format) == spec.zarr_format
    if same_format:
        known |= {"key_encoding": spec.keys.name, "separator": spec.keys.separator}
    if "dtype" in changes or not same_format:
        known["codecs"] = "auto"
    if spec.grid.chunks is not None and "chunks" not in changes and "shards" not in changes:
        known["chunks"] = sharding.chunk_shape if sharding else spec.grid.chunks
        known["shards"] = spec.grid.chunks if sharding and same_format else None
    known["in_place"] = spec.in_place and changes.keys().isdisjoint(_NOT_IN_PLACE)
    if "dtype" in changes:
        try:
            fills.parse(spec.fill[()], dtypes.parse(changes["dtype"]))
        except Invalid:
            known["fill_value"] = None
    return make_spec(**{**known, **changes})


def _need_tqdm() -> None:
    try:
        importlib.import_module("tqdm.auto")
    except ModuleNotFoundError as error:
        raise Invalid("progress=True needs tqdm: pip install tqdm") from error


def _with_bar(blocks: Iterator[Any], nbytes: int, itemsize: int) -> Iterator[Any]:
    from tqdm.auto import tqdm

    with tqdm(total=nbytes, unit="B", unit_scale=True, desc="copy") as bar:
        for where in blocks:
            yield where
            bar.update(math.prod(part.stop - part.start for part in where) * itemsize)
        bar.update(nbytes - bar.n)  # what is not stored
