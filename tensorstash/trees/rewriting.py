"""Copying one array between any two places, and changing how it is stored."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import dtype as dtypes
from .. import fill as fills
from ..array import Array
from ..create import make_spec
from ..driver import Driver, located
from ..engine.chunks import largest
from ..engine.in_place.writing import check_in_place
from ..engine.stored import count, stored_blocks, whole
from ..errors import Invalid
from ..fill import is_fill
from ..handle import Settings
from ..indexing.grid import cuts
from ..memory.steps import COPIES
from ..metadata import node
from ..metadata.belongings import Belongings
from ..metadata.spec import ArraySpec
from ..metadata.trailer import new_identity
from ..metadata.unfinished import Spare
from ..sharding import Sharding
from ..threads import spread
from .apart import apart_from, refuse_inside

_BYTES = 128 << 20  # of target chunks under way at once
_FEW = 1024  # chunks of a source that are asked for rather than listed


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
    """Copy an array to a place below a driver's root; ``path`` is empty or ends in ``/``.
    ``changes``: how it is stored, as for ``create``; what is left out stays. ``spare``: as of
    ``node.making``."""
    spec = replace(_changed(origin.spec, changes), identity=new_identity(), of_records=False)
    limits, memory = origin.settings.limits, origin.settings.memory
    if "in_place" in changes:
        check_in_place(driver, spec)
    elif spec.in_place and not driver.capabilities.in_place:
        spec = replace(spec, in_place=False)
    if overwrite:
        refuse_inside(origin.driver, node.lock_key(origin.path, origin.spec), driver, path)
    # Nothing of it is stored yet, its document neither.
    settings = Settings(mode="r+", limits=limits, memory=memory)
    made = Array(driver, path, settings, spec, created=True)
    made.watch(False)
    blocks = _blocks(origin, spec)
    if progress:
        blocks = _with_bar(blocks, spec.size * spec.dtype.itemsize, spec.dtype.itemsize)
    before, least = (largest(each, each.grid) for each in (origin.spec, spec))
    each = least + max(2 * before, COPIES * least)  # of what is read or written, what takes more
    apart = apart_from(origin.driver, node.lock_key(origin.path, origin.spec))

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


def need_tqdm() -> None:
    """:class:`~tensorstash.errors.Invalid` where there is no bar to show."""
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
