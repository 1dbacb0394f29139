"""cast_value and scale_offset: by exact arithmetic, and as zarr 3.4.2 with cast-value-rs 0.5.1."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash import fill
from tensorstash.codec import Pipeline
from tensorstash.codecs.casting import ROUNDINGS, Cast, is_integer
from tensorstash.codecs.scale_offset import ScaleOffset
from tensorstash.dtype import int_range
from tensorstash.dtype import parse as dtype
from tensorstash.errors import Corrupt, Invalid, StashError
from tensorstash.registry import make_codec
from tensorstash.testing.codec import spec

INTS = [
    "int2",
    "int4",
    "uint2",
    "uint4",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
]
FLOATS = [
    *("float16", "float32", "float64", "bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3fn"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
]
KINDS = st.sampled_from(INTS + FLOATS)


def values_of(kind: str) -> st.SearchStrategy[Any]:
    """Numbers of a dtype, its ends among them."""
    target = dtype(kind)
    if is_integer(target):
        low, high = int_range(target)
        return st.integers(low, high) | st.sampled_from([low, high])
    bits = st.integers(0, (1 << 8 * target.itemsize) - 1)
    return bits.map(lambda b: float(np.array(b, f"u{target.itemsize}").view(target)))


def grid(kind: str) -> tuple[int, int, Fraction, bool]:
    """Binary digits, exponent of the least step, the greatest number, whether it has infinity."""
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype(kind))
    step = math.frexp(float(info.smallest_subnormal))[1] - 1
    with np.errstate(all="ignore"):
        infinite = bool(np.isinf(float(np.array(np.inf).astype(dtype(kind)))))
    return int(info.nmant) + 1, step, Fraction(float(info.max)), infinite


def to_whole(value: Fraction, rounding: str) -> int:
    low, rest = math.floor(value), value - math.floor(value)
    if not rest:
        return low
    if rounding == "towards-negative":
        return low
    if rounding == "towards-positive":
        return low + 1
    if rounding == "towards-zero":
        return low if value > 0 else low + 1
    if rest != Fraction(1, 2):
        return low + (rest > Fraction(1, 2))
    if rounding == "nearest-away":
        return low + (value > 0)
    return low + low % 2


def model(value: Any, target: str, rounding: str, beyond: str | None) -> Any:
    """What the specification says, in exact arithmetic; ``None`` for an error."""
    if is_integer(dtype(target)):
        if not math.isfinite(value):
            return None
        whole = to_whole(Fraction(value), rounding)
        low, high = int_range(dtype(target))
        if low <= whole <= high:
            return whole
        if beyond == "clamp":
            return low if whole < low else high
        return (whole - low) % (high - low + 1) + low if beyond == "wrap" else None
    if isinstance(value, float) and math.isnan(value):
        return value
    digits, least, most, infinite = grid(target)
    if isinstance(value, float) and math.isinf(value):
        return value if infinite else None
    exact = Fraction(value)
    if not exact:
        return value
    exponent = max(
        abs(exact.numerator).bit_length() - exact.denominator.bit_length() - digits - 1, least
    )
    while abs(exact) >= Fraction(2) ** (exponent + digits):
        exponent += 1
    step = Fraction(2) ** exponent
    made = to_whole(exact / step, rounding) * step
    if abs(made) <= most:
        return math.copysign(float(made), value)
    if beyond != "clamp":
        return None
    return math.copysign(math.inf if infinite else float(most), value)


@settings(max_examples=1000)
@given(
    KINDS, KINDS, st.sampled_from(ROUNDINGS), st.sampled_from([None, "clamp", "wrap"]), st.data()
)
def test_casts_are_exact(
    source: str, target: str, rounding: str, beyond: str | None, data: st.DataObject
) -> None:
    value = data.draw(values_of(source))
    if not is_integer(dtype(target)) and beyond == "wrap":
        beyond = "clamp"
    array = np.array([value], np.uint64 if source == "uint64" else None).astype(dtype(source))
    whole = Cast(dtype(source), dtype(target), rounding, beyond, [])
    wanted = model(value, target, rounding, beyond)
    if wanted is None:
        with pytest.raises(ValueError, match="no rule"):
            whole(array)
        return
    made = whole(array)
    assert made.dtype == dtype(target)
    found = int(made[0]) if is_integer(dtype(target)) else float(made[0])
    assert found == wanted or (math.isnan(found) and math.isnan(wanted)), (found, wanted)
    signed = not is_integer(dtype(target)) and "fnuz" not in target and not math.isnan(wanted)
    if signed and isinstance(value, float):
        assert math.copysign(1, found) == math.copysign(1, value)


NAN_IS_0 = {"encode": [["NaN", 0]], "decode": [[0, "NaN"]]}


def scaled(**configuration: Any) -> dict[str, Any]:
    return {"name": "scale_offset", "configuration": configuration}


def cast(
    data_type: str, rounding: str | None = None, beyond: str | None = None, pairs: Any = None
) -> dict[str, Any]:
    told = {"rounding": rounding, "out_of_range": beyond, "scalar_map": pairs}
    told = {key: value for key, value in told.items() if value is not None}
    return {"name": "cast_value", "configuration": {"data_type": data_type, **told}}


# Written and read back by zarr 3.4.2 with cast-value-rs 0.5.1.
GOLDEN: list[Any] = [
    (
        *("uint16", [1000, 1001, 1255, 1100], 1000, [scaled(offset=1000), cast("uint8")]),
        *("0001ff64", [1000, 1001, 1255, 1100]),
    ),
    (
        *("float64", [0.0, 10.0, np.nan, 2540.0], "NaN"),
        [scaled(offset=-10, scale=0.1), cast("uint8", "nearest-even", None, NAN_IS_0)],
        *("010200ff", [0.0, 10.0, np.nan, 2540.0]),
    ),
    (
        *("float32", [5, 6, -0.5, 1e6], 0, [scaled(offset=5, scale=0.1)]),
        *("00000000cdcccc3dcdcc0cbfc04fc347", [5.0, 6.0, -0.5, 1e6]),
    ),
    (
        *("int32", [-7, 3, 100, 0], 0, [scaled(offset=-2, scale=3)]),
        *("f1ffffff0f0000003201000006000000", [-7, 3, 100, 0]),
    ),
    (
        *("float64", [-2.5, 2.5, 3.5, -128.6], 0, [cast("int8", "nearest-away", "clamp")]),
        *("fd030480", [-3.0, 3.0, 4.0, -128.0]),
    ),
    (
        *("float64", [-2.5, 2.5, 300.0, -129.0], 0, [cast("int8", "towards-negative", "wrap")]),
        *("fd022c7f", [-3.0, 2.0, 44.0, 127.0]),
    ),
    (
        *("int64", [2**53 + 1, -(2**53 + 3), 2**62 - 1, 5], 0),
        [cast("float64", "towards-positive")],
        "010000000000404301000000000040c3000000000000d0430000000000001440",
        [2**53 + 2, -(2**53 + 2), 2**62, 5],
    ),
    (
        *("float64", [1e39, -1e39, 0.1, 1e-46], 0, [cast("float32", "towards-zero", "clamp")]),
        *("0000807f000080ffcccccc3d00000000", [np.inf, -np.inf, 0.09999999403953552, 0.0]),
    ),
    (
        *("float64", [0.1, 0.3, -0.7, 65519.0], 0, [cast("float16", None, "clamp")]),
        *("662ecd349ab9ff7b", [0.0999755859375, 0.300048828125, -0.7001953125, 65504.0]),
    ),
]


@pytest.mark.parametrize(("kind", "values", "fill", "codecs", "stored", "read"), GOLDEN)
def test_as_zarr_python(
    kind: str, values: Any, fill: Any, codecs: Any, stored: str, read: Any
) -> None:
    place: dict[str, Any] = {}
    chain = [*codecs, {"name": "bytes", "configuration": {"endian": "little"}}]
    array = stash.create(place, (4,), kind, chunks=(4,), codecs=chain, fill_value=fill)
    array[...] = np.array(values, dtype(kind))
    assert place["c/0"].hex() == stored
    np.testing.assert_array_equal(stash.open(place)[...], np.array(read, dtype(kind)))


def chain(name: str, configuration: Any, kind: str, fill: Any = None, count: int = 4) -> Pipeline:
    steps = [make_codec(name, configuration), make_codec("bytes", {"endian": "little"})]
    return Pipeline(steps, spec((count,), dtype(kind), fill))


@pytest.mark.parametrize(
    ("configuration", "kind", "values", "stored"),
    [
        # The specification's own examples.
        ({"data_type": "int8", "out_of_range": "clamp"}, "float64", [128.0], [127]),
        ({"data_type": "int8", "out_of_range": "wrap"}, "float64", [128.0], [-128]),
        (
            {"data_type": "int16", "out_of_range": "wrap"},
            "int32",
            [32768, 32769, -32769],
            [-32768, -32767, 32767],
        ),
        (
            {
                "data_type": "uint8",
                "rounding": "towards-zero",
                "out_of_range": "wrap",
                "scalar_map": {"encode": [["NaN", 0], ["+Infinity", 0], ["-Infinity", 0]]},
            },
            "float64",
            [np.nan, np.inf, -np.inf, 300.9, -1.5, 255.5],
            [0, 0, 0, 44, 255, 255],
        ),
        ({"data_type": "int4", "out_of_range": "wrap"}, "int16", [8, -9, 7, 100], [-8, 7, 7, 4]),
        ({"data_type": "int4", "out_of_range": "clamp"}, "float32", [8.7, -9, 2.5], [7, -8, 2]),
        # The first of a scalar's entries counts; -0.0 is 0.
        (
            {"data_type": "uint8", "scalar_map": {"encode": [[0, 9], [0, 8]], "decode": [[9, 0]]}},
            "float32",
            [0.0, -0.0, 1.0],
            [9, 9, 1],
        ),
    ],
    ids=str,
)
def test_what_is_stored(configuration: Any, kind: str, values: Any, stored: Any) -> None:
    made = chain("cast_value", configuration, kind, count=len(values))
    data = made.encode(np.array(values).astype(dtype(kind)))
    back = np.frombuffer(data, np.uint8).view(dtype(configuration["data_type"]))
    assert back.tolist() == stored


def test_the_decoding_map() -> None:
    told = {"encode": [["NaN", 0]], "decode": [[0, "NaN"]]}
    made = chain("cast_value", {"data_type": "uint8", "scalar_map": told}, "f4", np.nan, 3)
    data = made.encode(np.array([1, np.nan, 3], "f4"))
    assert bytes(data) == b"\1\0\3"
    np.testing.assert_array_equal(made.decode(data), np.array([1, np.nan, 3], "f4"))
    assert int(made.stored.fill) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8))
def test_maps_are_looked_up_in_order(pairs: list[tuple[int, int]]) -> None:
    made = Cast(
        dtype("int8"),
        dtype("int16"),
        "nearest-even",
        None,
        [(np.array(a, "i1"), np.array(b, "i2")) for a, b in pairs],
    )(np.arange(7, dtype="i1").reshape(7, 1))
    first: dict[int, int] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    assert made.tolist() == [[first.get(n, n)] for n in range(7)]


@pytest.mark.parametrize(
    "configuration",
    [
        *({}, {"data_type": "string"}, {"data_type": "bool"}, {"data_type": "complex64"}),
        *({"data_type": "flaot32"}, {"data_type": 3}, {"data_type": "float8_e8m0fnu"}),
        *({"data_type": "int8", "rounding": "up"}, {"data_type": "int8", "rounding": None}),
        *({"data_type": "int8", "out_of_range": "saturate"}, {"data_type": "int8", "extra": 1}),
        {"data_type": "float32", "out_of_range": "wrap"},
        {"data_type": "int8", "scalar_map": {"both": []}},
        {"data_type": "int8", "scalar_map": [["NaN", 0]]},
        {"data_type": "int8", "scalar_map": {"encode": {"NaN": 0}}},
        {"data_type": "int8", "scalar_map": {"encode": [["NaN"]]}},
        {"data_type": "int8", "scalar_map": {"encode": [["NaN", 300]]}},
        {"data_type": "int8", "scalar_map": {"encode": [["x", 3]]}},
        {"data_type": "int8", "scalar_map": {"decode": [[0.5, 3]]}},
        {"data_type": "int8", "scalar_map": {"encode": [[0, 1]] * 70_000}},
        {"data_type": {"name": "numpy.datetime64", "configuration": {"unit": "s"}}},
    ],
    ids=lambda c: str(c)[:80],
)
def test_casts_that_there_are_not(configuration: Any) -> None:
    place: dict[str, Any] = {}
    codecs: list[Any] = [{"name": "cast_value", "configuration": configuration}, "bytes"]
    with pytest.raises(StashError) as caught:
        stash.create(place, (4,), "f4", chunks=(4,), codecs=codecs)
    assert not place
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("fill", "target"),
    [(0.5, "int8"), (300, "uint8"), ("NaN", "int8"), (-0.0, "int8"), (1e9, "f2")],
)
def test_a_fill_value_that_does_not_come_back_is_refused(fill: Any, target: str) -> None:
    place: dict[str, Any] = {}
    target = dtype(target).name
    codecs: list[Any] = [{"name": "cast_value", "configuration": {"data_type": target}}, "bytes"]
    with pytest.raises(Invalid, match="fill"):
        stash.create(place, (4,), "f8", chunks=(4,), codecs=codecs, fill_value=fill)
    assert not place


def test_values_that_no_rule_covers() -> None:
    place: dict[str, Any] = {}
    codecs: list[Any] = [{"name": "cast_value", "configuration": {"data_type": "uint8"}}, "bytes"]
    array = stash.create(place, (4,), "f4", chunks=(4,), codecs=codecs)
    array[...] = [1, 2.5, 3.5, 255]
    assert array[...].tolist() == [1, 2, 4, 255]
    before = dict(place)
    for wrong in (256, -1, np.nan, np.inf):
        with pytest.raises(Invalid, match="no rule"):
            array[0] = wrong
    assert place == before
    codecs[0]["configuration"]["data_type"] = "float32"
    array = stash.create(place, (4,), "u1", chunks=(4,), codecs=codecs, overwrite=True)
    array[...] = 3
    place["c/0"] = np.array([1, 2, 3, 1000], "<f4").tobytes()
    with pytest.raises(Corrupt, match="1000"):
        stash.open(place)[...]


# --- scale_offset -------------------------------------------------------------------------------


@given(st.sampled_from(INTS), st.data())
def test_integers_are_scaled_exactly(kind: str, data: st.DataObject) -> None:
    low, high = int_range(dtype(kind))
    draw = values_of(kind)
    offset, scale = data.draw(draw), data.draw(draw.filter(bool))
    values = data.draw(st.lists(draw, min_size=1, max_size=5))
    codec = ScaleOffset(offset, scale)
    whole = spec((len(values),), dtype(kind), offset)  # which is 0 when it is stored
    bound = codec.bind(whole)
    wide = np.uint64 if low == 0 else np.int64
    array = np.array(values, wide).astype(dtype(kind))
    steps = [(value - offset, (value - offset) * scale) for value in values]
    if all(low <= number <= high for step in steps for number in step):
        made = bound.encode(array)
        assert [int(n) for n in made] == [step[1] for step in steps]
        assert bound.decode(made, whole).tolist() == array.tolist()
    else:
        with pytest.raises(ValueError, match="beyond"):
            bound.encode(array)
    steps = [(value // scale, value // scale + offset) for value in values]
    if all(v % scale == 0 for v in values) and all(low <= n <= high for s in steps for n in s):
        assert [int(n) for n in bound.decode(array, whole)] == [step[1] for step in steps]
    else:
        with pytest.raises(ValueError, match=r"beyond|multiple"):
            bound.decode(array, whole)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "bfloat16", "float8_e5m2"])
def test_floats_are_scaled_in_their_own_arithmetic(kind: str) -> None:
    target = dtype(kind)
    made = chain("scale_offset", {"offset": 5, "scale": 0.1}, kind, 5)
    chunk = np.array([5, 6, -0.5, np.nan]).astype(target)
    stored = np.frombuffer(made.encode(chunk), np.uint8).view(target)
    five, tenth = np.array(5).astype(target), np.array(0.1).astype(target)
    wanted = ((chunk - five) * tenth).astype(target)
    assert stored.tobytes() == wanted.tobytes()
    back = made.decode(stored.tobytes())
    assert back.tobytes() == (wanted / tenth + five).astype(target).tobytes()


@pytest.mark.parametrize(
    ("kind", "configuration", "fill"),
    [
        *(("i4", {"scale": 0}, 0), ("f4", {"scale": 0.0}, 0), ("f4", {"scale": "NaN"}, 0)),
        *(("f4", {"offset": "Infinity"}, 0), ("i1", {"offset": 300}, 0), ("i4", {"scale": 0.5}, 0)),
        *(("u2", {"offset": 1000}, 0), ("i1", {"scale": 2}, 100), ("f4", {"scale": [1]}, 0)),
        *(("i4", {"offset": None}, 0), ("i4", {"scale": True}, 0), ("c8", {}, 0), ("?", {}, 0)),
        *(("M8[s]", {}, 0), ("f4", {"gain": 1}, 0), ("f4", {"scale": "x"}, 0)),
    ],
    ids=str,
)
def test_scales_that_there_are_not(kind: str, configuration: Any, fill: Any) -> None:
    place: dict[str, Any] = {}
    codecs: list[Any] = [{"name": "scale_offset", "configuration": configuration}, "bytes"]
    with pytest.raises(Invalid):
        stash.create(place, (4,), kind, chunks=(4,), codecs=codecs, fill_value=fill)
    assert not place


def test_what_leaves_the_range_is_refused() -> None:
    with pytest.raises(Invalid, match="range"):
        chain("scale_offset", {"scale": 1000}, "f2", count=1).encode(np.array([1000], "f2"))
    made = chain("scale_offset", {"scale": 3}, "i2", count=1)
    with pytest.raises(Corrupt, match="multiple"):
        made.decode(np.array([4], "<i2").tobytes())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float8_e5m2"])
def test_the_greatest_number_is_clamped_without_a_warning(kind: str) -> None:
    """Rounded up it leaves float64 itself."""
    codecs: list[Any] = [cast(kind, None, "clamp"), "bytes"]
    array = stash.create({}, (2,), "f8", chunks=(2,), codecs=codecs)
    array[...] = [np.finfo("f8").max, -np.finfo("f8").max]
    assert array[...].tolist() == [math.inf, -math.inf]


def test_a_long_scalar_map_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each shape of chunk, of which a document of few bytes names thousands."""
    place: dict[str, Any] = {}
    pairs = [[n, n] for n in range(100)]
    codecs: list[Any] = [cast("int32", None, None, {"encode": pairs}), "bytes"]
    stash.create(place, (55,), "f8", chunks=(10,), codecs=codecs)
    document = json.loads(place["zarr.json"])
    document["chunk_grid"] = {
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": [[*range(1, 11)]]},
    }
    place["zarr.json"] = json.dumps(document).encode()
    seen: list[Any] = []
    parse = fill.from_json

    def counted(value: Any, *rest: Any) -> Any:
        seen.append(value)
        return parse(value, *rest)

    monkeypatch.setattr(fill, "from_json", counted)
    array = stash.open(place, mode="r+")
    array[...] = np.arange(55)
    assert array[...].tolist() == [*range(55)]
    assert len(seen) < 3 * 2 * len(pairs)
