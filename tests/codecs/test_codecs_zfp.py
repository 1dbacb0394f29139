"""What zfp cannot hold is refused, or takes the room it needs: zfpy checks neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Invalid

pytest.importorskip("zfpy")

LOSSY = (
    {"mode": "fixed_rate", "rate": 16},
    {"mode": "fixed_precision", "precision": 40},
    {"mode": "fixed_accuracy", "tolerance": 0.001},
)


def _zfp(**configuration: Any) -> Any:
    return [{"name": "zfp", "configuration": configuration}]


def _numcodecs(version: int, **options: Any) -> dict[str, Any]:
    """What makes numcodecs' zfpy the codec of an array."""
    if version == 2:
        return {"zarr_format": 2, "codecs": {"id": "zfpy", **options}}
    return {"codecs": [{"name": "numcodecs.zfpy", "configuration": options}]}


@pytest.mark.parametrize(("kind", "rate", "as_of"), [("f4", 2, 2.25), ("f8", 0.01, 3)])
def test_a_low_rate_has_room_for_the_exponent(kind: str, rate: float, as_of: float) -> None:
    """zfpy wrote beyond its memory, and read blocks of another size than it had written."""
    values = np.full(8, 3.0, kind)
    found = []
    for each in (rate, as_of):
        place: dict[str, Any] = {}
        array = stash.create(
            place, (8,), kind, chunks=(8,), codecs=_zfp(mode="fixed_rate", rate=each)
        )
        array[...] = values
        found.append((array[...].tolist(), bytes(place["c/0"])))
    assert found[0] == found[1]


def test_a_rate_without_a_bit_is_refused() -> None:
    with pytest.raises(Invalid, match="rate"):
        stash.create({}, (8,), "i4", chunks=(8,), codecs=_zfp(mode="fixed_rate", rate=0.1))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("kind", "shape", "rate"),
    [("f4", (4,), 2.0), ("f8", (4,), 2.0), ("f8", (4, 4), 0.5), ("f4", (4,), 2.0**30)],
)
def test_a_rate_for_which_numcodecs_has_no_memory(
    version: int, kind: str, shape: tuple[int, ...], rate: float
) -> None:
    options = _numcodecs(version, mode=2, rate=rate)
    with pytest.raises(Invalid, match="rate"):  # of v2 when it is created, of v3 when written
        stash.create({}, shape, kind, chunks=shape, **options)[...] = 1.5


@pytest.mark.parametrize("configuration", LOSSY, ids=str)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_no_lossy_mode_holds_what_is_not_finite(configuration: Any, odd: float, kind: str) -> None:
    """It came back as 2, and what was beside it as anything."""
    array = stash.create({}, (8,), kind, chunks=(8,), codecs=_zfp(**configuration))
    values = np.arange(8).astype(kind)
    values[3] = odd
    with pytest.raises(Invalid, match="NaN"):
        array[...] = values
    exact = stash.create({}, (8,), kind, chunks=(8,), codecs=_zfp(mode="reversible"))
    exact[...] = values
    assert exact[...].tobytes() == values.tobytes()


def test_a_fill_value_that_is_nan_does_not_spoil_what_is_beside_it() -> None:
    codecs = _zfp(mode="fixed_rate", rate=16)
    array = stash.create({}, (9,), "f4", chunks=(4,), codecs=codecs, fill_value=np.nan)
    array[:8] = 1
    assert array[:8].tolist() == [1] * 8
    with pytest.raises(Invalid, match="fill"):
        array[8] = 1


@pytest.mark.parametrize("version", [2, 3])
def test_nor_do_those_of_numcodecs(version: int) -> None:
    options = _numcodecs(version, mode=3, precision=20)
    array = stash.create({}, (8,), "f4", chunks=(8,), **options)
    with pytest.raises(Invalid, match="NaN"):
        array[2] = np.nan
    integers = stash.create({}, (8,), "i4", chunks=(8,), **options)
    with pytest.raises(Invalid, match="wrap"):
        integers[2] = 1 << 30
    exact = _numcodecs(version, mode=4, tolerance=-1)
    array = stash.create({}, (8,), "f4", chunks=(8,), **exact)
    array[2] = np.nan
    assert np.isnan(array[2]) and array[3] == 0


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8", "m8[s]"])
def test_no_lossy_mode_holds_integers_that_would_wrap(kind: str) -> None:
    codecs = _zfp(mode="fixed_precision", precision=64)
    array = stash.create({}, (4, 4), kind, chunks=(4, 4), codecs=codecs)
    end = 1 << 8 * array.dtype.itemsize - 2
    chess = np.indices((4, 4)).sum(0) % 2 * (end - 1)
    if array.dtype.kind != "u":
        chess = np.where(chess, end - 1, 1 - end)
    array[...] = chess.astype(kind)
    assert np.abs(array[...].astype("i8") - chess).max() < 10
    with pytest.raises(Invalid, match="wrap"):
        array[0, 0] = np.array(end).astype(kind)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2"])
def test_all_narrow_integers_fit(kind: str) -> None:
    codecs = _zfp(mode="fixed_precision", precision=32)
    array = stash.create({}, (4, 4), kind, chunks=(4, 4), codecs=codecs)
    ends = np.iinfo(kind)
    values = np.where(np.indices((4, 4)).sum(0) % 2, ends.min, ends.max).astype(kind)
    array[...] = values
    assert np.abs(array[...].astype(int) - values).max() <= 1
