"""What a column becomes where the other side knows fewer types than NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...columns import Columns
from ...dtype import is_extended, parts, widened
from ...errors import Invalid, Unsupported

_COARSER: Final = {"Y": "D", "M": "D", "W": "D", "h": "s", "m": "s"}
_KNOWN: Final = ("D", "s", "ms", "us", "ns")


def optional_package(name: str) -> Any:
    """The package ``name``, imported now: it comes with none of ours."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise Unsupported(f"this needs the package {missing!r}: pip install {missing}") from error


def time_zone_error(path: str, zone: Any) -> Invalid:
    """The error about times of a zone, which a field of datetime64 would forget."""
    return Invalid(
        f"field {path!r} has times of the zone {str(zone)!r}, which no field keeps: convert them "
        "to UTC and drop the zone, as series.dt.tz_convert('UTC').dt.tz_localize(None) in pandas"
    )


def split_structured(columns: Columns) -> Columns:
    """``columns`` with each structured one taken apart into fields within it, views of it."""
    out: Columns = {}
    for path, column in columns.items():
        out.update(_parts(path, column))
    return out


def _parts(path: str, column: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(column, np.ndarray) or column.dtype.names is None:
        yield path, column
        return
    for name, _ in parts(column.dtype):
        yield from _parts(f"{path}/{name}", column[name])


def common_dtype(path: str, array: NDArray[Any], target: str) -> NDArray[Any]:
    """``array`` itself, or in the nearest type that holds each of its values exactly and that
    data frames know too; :class:`~tensorstash.errors.Unsupported` names the field where there
    is none. bfloat16 and float8 become float32, integers of fewer bits those of
    eight; times, days, seconds or a unit below."""
    if is_extended(array.dtype):
        return array.astype(widened(array.dtype))
    return _times(path, array, target) if array.dtype.kind in "mM" else array


def _times(path: str, array: NDArray[Any], target: str) -> NDArray[Any]:
    kind, (unit, scale) = array.dtype.kind, np.datetime_data(array.dtype)
    wanted = _COARSER.get(unit, unit)
    if kind == "m":
        # A span in days is one in seconds; one in months or years has no fixed length.
        wanted = {"D": "s", "W": "s"}.get(unit, wanted) if unit not in "YM" else unit
    if (wanted, target) == ("s", "polars"):
        wanted = "ms"  # of seconds that these cannot count it makes null
    if wanted not in _KNOWN:
        raise Unsupported(f"field {path!r}: {target} has no type for {array.dtype}; cast it")
    if (unit, scale) == (wanted, 1):
        return array
    cast, exact = cast_times(array, f"{kind}8[{wanted}]")
    if not exact.all():
        raise Unsupported(f"field {path!r}: times in {array.dtype} that {target} cannot hold")
    return cast


def cast_times(times: NDArray[Any], dtype: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """``times`` in another unit, and which of them it tells exactly. What does not fit is any
    time, and not exact."""
    cast = _cast(times, dtype)
    return cast, (_cast(cast, times.dtype) == times) | np.isnat(times)


def _cast(times: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """NumPy from 2.5 refuses what does not fit, where those before it counted past the end."""
    try:
        return times.astype(dtype)
    except OverflowError:
        return np.array([_one(time, dtype) for time in times.flat], dtype).reshape(times.shape)


def _one(time: Any, dtype: Any) -> Any:
    try:
        return time.astype(dtype)
    except OverflowError:
        return np.array("NaT", dtype)[()]
