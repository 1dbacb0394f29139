"""Append and resize: one step for every reader, nothing changed by failing, no old data back."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.driver import Capabilities, Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt, DriverError, Invalid, NotFound, Unsupported
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.oracle import same
from tests.support.rectilinear import listed

LAYOUTS: list[dict[str, Any]] = [
    {"chunks": (4, 3)},
    {"chunks": (2, 3), "shards": (4, 6)},
    {"chunks": (4, 3), "zarr_format": 2},
    {"chunks": (100, 100)},
    {"chunks": [[3, 1, 2], [[2, 2]]]},
    {"chunks": [[4, 8], [6, 6]], "shards": (2, 3)},
]


@pytest.fixture(
    params=LAYOUTS, ids=["chunks", "shards", "v2", "one chunk", "lengths", "shards of lengths"]
)
def how(request: Any) -> dict[str, Any]:
    return dict(request.param)


def made(how: dict[str, Any], shape: Any = (5, 4), **more: Any) -> tuple[stash.Array, np.ndarray]:
    model = 1 + np.arange(np.prod(shape), dtype="i4").reshape(shape)
    if isinstance(how["chunks"], list):
        array = listed(shape, how["chunks"], how.get("shards"), fill_value=-1, **more)
    else:
        array = stash.create({}, shape, "i4", fill_value=-1, **how, **more)
    array[...] = model
    return array, model


# -- append ------------------------------------------------------------------------------------


def test_append_answers_where_the_rows_begin(how: dict[str, Any]) -> None:
    array, model = made(how)
    reader = stash.open(array.driver)
    for count in (1, 3, 0, 4, 10):
        rows = np.random.default_rng(count).integers(0, 99, (count, 4)).astype("i4")
        assert array.append(rows) == len(model)
        model = np.concatenate([model, rows])
        same(array[...], model)
        same(stash.load(array.driver), model)
    assert array.append(np.ones((23, 2)), axis=-1) == 4
    model = np.concatenate([model, np.ones((23, 2), "i4")], 1)
    same(array[...], model)
    # A handle keeps the shape it knows until it is told to look again.
    assert reader.shape == (5, 4)
    same(reader[...], model[:5, :4])
    same(reader.refresh()[...], model)


def test_append_to_nothing() -> None:
    array = stash.create({}, (0,), "f4", chunks=(4,))
    assert array.append([1, 2, 3]) == 0
    assert array.append(4 * np.ones(3)) == 3
    assert array[...].tolist() == [1, 2, 3, 4, 4, 4]


def test_an_append_is_one_new_object_a_chunk_and_one_document() -> None:
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, (8, 4), "i4", chunks=(4, 4))
    driver.reset()
    array.append(np.ones((8, 4), "i4"))
    assert driver.counts["put"].calls == 3
    assert driver.reads.calls <= 3  # documents only
    driver.reset()
    array.append(np.ones((2, 4), "i4"))
    assert driver.counts["put"].calls == 2


def test_readers_see_all_rows_or_none() -> None:
    # A reader that looks at every step of an append finds the old array, until the new one.
    inner = MemoryDriver()
    seen = []

    def look(call: Call) -> Fault | None:
        seen.append(stash.load(inner).tolist())
        return None

    stash.create(inner, (6,), "i4", chunks=(4,))[...] = 1
    stash.open(FailingDriver(inner, look), "r+").append([2] * 9)
    assert [k for k, _ in itertools.groupby(seen)] == [[1] * 6]
    assert stash.load(inner).tolist() == [1] * 6 + [2] * 9


def stepwise_failures(build: Any, change: Any) -> int:
    """``change(array)`` with the n-th use of the driver failing, for every n, from the start
    each time; returns how many uses there were. The array must be as it was, or as it was to
    become; then the change is made again without failures."""
    for number in itertools.count():
        inner, before, after = build()

        def when(call: Call) -> Fault | None:
            return "error" if call.number == number else None  # noqa: B023

        array = stash.open(inner, "r+")
        array.driver = FailingDriver(inner, when)
        array._reader = None
        try:
            change(array)
        except DriverError:
            found = stash.load(inner)
            if found.shape != after.shape:
                same(found, before)
                change(stash.open(inner, "r+"))
            same(stash.load(inner), after)
        else:
            same(stash.load(inner), after)
            return number
    raise AssertionError


def test_an_append_that_fails_anywhere_changes_nothing(how: dict[str, Any]) -> None:
    rows = np.full((7, 4), 7, "i4")

    def build() -> Any:
        array, model = made(how)
        return array.driver, model, np.concatenate([model, rows])

    assert stepwise_failures(build, lambda array: array.append(rows)) > 4


def test_what_a_failed_append_left_is_never_shown(how: dict[str, Any]) -> None:
    array, model = made(how)
    inner = array.driver

    def when(call: Call) -> Fault | None:
        document = call.key in ("zarr.json", ".zarray")
        return "error" if call.verb == "put" and document else None

    failing = stash.open(FailingDriver(inner, when), "r+")
    for rows in (np.full((3, 4), 77), np.full((30, 4), 78)):
        with pytest.raises(DriverError):
            failing.append(rows)
        assert failing.shape == (5, 4)
        same(failing[...], model)
    with pytest.raises(DriverError):
        failing.append(np.full((5, 9), 79), axis=1)
    for grow in (
        lambda a: a.resize((40, 14)),
        lambda a: a.append(np.full((1, 4), 5)),
        lambda a: a.append(np.full((5, 1), 5), axis=1),
    ):
        grown = stash.open(MemoryDriver(dict(inner._mapping)), "r+")  # type: ignore[attr-defined]
        grow(grown)
        found = grown[...]
        same(found[:5, :4], model)
        assert not (found > 70).any()
        grown.resize((50, 20))
        assert not (grown[...] > 70).any()


def test_refused(how: dict[str, Any]) -> None:
    array, model = made(how)
    for rows in (np.ones((2, 5)), np.ones(4), np.ones((1, 1, 4)), 1):
        with pytest.raises(Invalid, match="rows of shape"):
            array.append(rows)
    for axis in (2, -3):
        with pytest.raises(Invalid, match="axis"):
            array.append(np.ones((1, 4)), axis=axis)
    with pytest.raises(Invalid):
        stash.create({}, (), "i4").append(1)
    same(array[...], model)


def test_append_where_another_handle_changed_the_other_axes(how: dict[str, Any]) -> None:
    array, _ = made(how)
    stash.open(array.driver, "r+").resize((5, 6))
    with pytest.raises(Invalid, match="rows of shape"):
        array.append(np.ones((1, 4)))
    array.refresh().append(np.ones((1, 6)))
    assert array.shape == (6, 6)


def test_append_where_another_handle_appended(how: dict[str, Any]) -> None:
    array, _ = made(how)
    other = stash.open(array.driver, "r+")
    other.append(np.full((3, 4), 50))
    assert array.append(np.full((2, 4), 60)) == 8
    assert array[5:, 0].tolist() == [50] * 3 + [60] * 2


def test_append_keeps_everything_else_in_the_document() -> None:
    array = stash.create({}, (2,), "i4", chunks=(4,), attributes={"a": 1})
    raw = json.loads(bytes(array.driver.get("zarr.json") or b""))
    raw["later"] = {"must_understand": False, "x": [1]}
    array.driver.put("zarr.json", json.dumps(raw).encode())
    stash.open(array.driver, "r+").attrs["b"] = 2
    array.append([1])  # this handle knows neither
    now = json.loads(bytes(array.driver.get("zarr.json") or b""))
    assert now["attributes"] == {"a": 1, "b": 2}
    assert now["later"] == raw["later"]
    assert now["shape"] == [3]


def test_append_and_resize_need_a_lock_and_say_so() -> None:
    class Lockless(MemoryDriver):
        capabilities = Capabilities(locks=False, local=True)

        def lock(self, key: str, timeout: float | None = None) -> Any:
            return Driver.lock(self, key, timeout)

    array = stash.create(Lockless(), (2,), "i4")
    for call in (lambda: array.append([1]), lambda: array.resize(5)):
        with pytest.raises(Unsupported, match="lock"):
            call()
    assert array.shape == (2,)


def test_a_shape_changed_without_the_lock_is_a_conflict() -> None:
    inner = MemoryDriver()
    stash.create(inner, (4,), "i4", chunks=(4,))[...] = 1

    def when(call: Call) -> Fault | None:
        if call.verb == "put" and call.key.startswith("c/"):
            document = json.loads(bytes(inner.get("zarr.json") or b""))
            inner.put("zarr.json", json.dumps({**document, "shape": [9]}).encode())
        return None

    with pytest.raises(Conflict, match="repeat the call"):
        stash.open(FailingDriver(inner, when), "r+").append([2])
    assert stash.open(inner).shape == (9,)


# -- stale handles -----------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, slice(0, 5), slice(4, 5), ..., (slice(None), 0), [4, 1]])
def test_a_stale_handle_keeps_rows_it_does_not_know(how: dict[str, Any], index: Any) -> None:
    array, model = made(how)
    stale = stash.open(array.driver, "r+")
    array.append(np.full((3, 4), 50))
    array.append(np.full((8, 2), 60), axis=1)
    stale[index] = 9
    model[index] = 9
    found = stash.load(array.driver)
    same(found[:5, :4], model)
    assert (found[5:, :4] == 50).all()
    assert (found[:, 4:] == 60).all()
    with stale.writer() as writer:
        writer[index] = 10
    found = stash.load(array.driver)
    assert (found[5:, :4] == 50).all()
    assert (found[:, 4:] == 60).all()


def test_a_stale_handle_writing_fill_keeps_rows_it_does_not_know(how: dict[str, Any]) -> None:
    array, _ = made(how)
    stale = stash.open(array.driver, "r+")
    array.append(np.full((3, 4), 50))
    stale[...] = -1
    assert stash.load(array.driver)[:, 0].tolist() == [-1] * 5 + [50] * 3


def test_a_stale_handle_writing_beyond_a_shrunk_edge_leaves_nothing(how: dict[str, Any]) -> None:
    array, _ = made(how)
    stale = stash.open(array.driver, "r+")
    array.resize((2, 4))
    stale[...] = 99
    assert stash.load(array.driver).shape == (2, 4)
    array.append(np.full((1, 4), 3))
    assert array[:, 0].tolist() == [99, 99, 3]
    array.resize((12, 12))
    assert (array[3:] == -1).all()
    assert (array[:, 4:] == -1).all()


def test_resize_keeps_what_stays_and_shows_fill(how: dict[str, Any]) -> None:
    array, model = made(how, (9, 7))
    for shape in [(3, 7), (9, 7), (9, 2), (12, 9), (0, 4), (5, 5), (2, 9), (7, 3)]:
        array.resize(shape)
        grown = np.full(shape, -1, "i4")
        kept = tuple(slice(0, min(a, b)) for a, b in zip(shape, model.shape, strict=True))
        grown[kept] = model[kept]
        model = grown
        assert array.shape == shape
        same(array[...], model)
        same(stash.load(array.driver), model)
        array[-1:, -2:] = model[-1:, -2:] = sum(shape)


def test_a_resize_is_one_step_for_every_reader(how: dict[str, Any]) -> None:
    # Also where one axis shrinks and another grows: nobody may see it half done.
    array, _ = made(how, (9, 7))
    inner = array.driver
    for wanted in [(3, 12), (12, 3), (2, 2), (9, 9)]:
        before = stash.load(inner)
        seen = []

        def look(call: Call) -> Fault | None:
            seen.append(stash.load(inner))  # noqa: B023
            return None

        stash.open(FailingDriver(inner, look), "r+").resize(wanted)
        after = stash.load(inner)
        assert after.shape == wanted
        shapes = [k for k, _ in itertools.groupby(found.shape for found in seen)]
        assert shapes in ([before.shape], [before.shape, wanted])
        for found in seen:
            same(found, before if found.shape == before.shape else after)


@pytest.mark.parametrize("shape", [(3, 7), (14, 7), (3, 12), (12, 2)])
def test_a_resize_that_fails_anywhere_is_done_or_not(how: dict[str, Any], shape: Any) -> None:
    def build() -> Any:
        array, model = made(how, (9, 7))
        after = np.full(shape, -1, "i4")
        kept = (slice(0, min(9, shape[0])), slice(0, min(7, shape[1])))
        after[kept] = model[kept]
        return array.driver, model, after

    assert stepwise_failures(build, lambda array: array.resize(shape)) > 3


def test_a_shrink_that_died_half_way_brings_nothing_back(how: dict[str, Any]) -> None:
    array, model = made(how, (9, 7))
    inner = array.driver

    def when(call: Call) -> Fault | None:
        clearing = call.verb in ("list", "delete", "delete_many", "delete_prefix")
        return "error" if clearing else None

    with pytest.raises(DriverError):
        stash.open(FailingDriver(inner, when), "r+").resize((3, 4))
    reader = stash.open(inner, "r+")
    assert reader.shape == (3, 4)
    for grow in (
        lambda a: a.resize((9, 7)),
        lambda a: (a.append(np.full((2, 4), -1)), a.append(np.full((5, 2), -1), axis=1)),
    ):
        grown = stash.open(MemoryDriver(dict(inner._mapping)), "r+")  # type: ignore[attr-defined]
        grow(grown)
        found = grown[...]
        same(found[:3, :4], model[:3, :4])
        assert (found[3:] == -1).all()
        assert (found[:, 4:] == -1).all()


def test_chunks_outside_are_deleted(how: dict[str, Any]) -> None:
    array, _ = made(how, (9, 7))
    array.resize((1, 1))
    assert array.info().stored_chunks == 1
    array.resize((0, 0))
    assert array.info().stored_chunks == 0
    array.resize((9, 7))
    assert (array[...] == -1).all()


def test_resize_takes_what_numpy_calls_a_shape() -> None:
    array = stash.create({}, (3,), "i4")
    for shape in (4, (5,), [6], np.int64(7), np.array([8])):
        array.resize(shape)
        assert array.shape == (int(np.ravel(shape)[0]),)
    for wrong in ((1, 2), (-1,), -5, ()):
        with pytest.raises(Invalid, match="resize"):
            array.resize(wrong)
    array.resize(array.shape)
    assert array.shape == (8,)


def test_a_damaged_edge_chunk_is_named_when_growing() -> None:
    array, _ = made({"chunks": (4, 4), "codecs": "zstd"})
    array.driver.put("c/1/0", b"rubbish")
    with pytest.raises(Corrupt, match="c/1/0") as caught:
        array.resize((9, 4))
    assert (caught.value.key, caught.value.chunk) == ("c/1/0", (1, 0))
    assert array.shape == stash.open(array.driver).shape == (5, 4)


def test_what_we_grow_others_read(tmp_path: Any) -> None:
    for k, how in enumerate(LAYOUTS[:4]):  # which all of them know
        path = str(tmp_path / str(k))
        array = stash.create(path, (5, 4), "i4", fill_value=-1, **how)
        array[...] = 3
        array.append(np.full((6, 4), 4))
        array.resize((13, 5))
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], array[...])


def test_gone_and_replaced() -> None:
    array, _ = made({"chunks": (4, 4)})
    array.driver.delete("zarr.json")
    for call in (lambda: array.append(np.ones((1, 4))), lambda: array.resize((9, 9))):
        with pytest.raises(NotFound):
            call()
    stash.create_group(array.driver)
    for call in (lambda: array.append(np.ones((1, 4))), lambda: array.resize((9, 9))):
        with pytest.raises(Conflict, match="group; open it again"):
            call()


# -- what a handle remembers of its last append ------------------------------------------------


def test_a_handle_goes_by_what_it_stored_only_while_that_is_there(how: dict[str, Any]) -> None:
    mine, model = made(how)
    theirs = stash.open(mine.driver, "r+")

    def append(array: stash.Array, n: int, axis: int = 0) -> None:
        nonlocal model
        shape = tuple(n if k == axis else length for k, length in enumerate(model.shape))
        rows = np.full(shape, 100 + model.shape[axis], "i4")
        assert array.append(rows, axis) == model.shape[axis]
        model = np.concatenate([model, rows], axis)
        same(array[...], model)
        same(stash.load(mine.driver), model)

    for array in (mine, mine, theirs, mine, mine):
        append(array, 1)
    theirs.attrs["note"] = [1, 2]
    append(mine, 2)
    append(mine, 1)
    assert dict(mine.attrs) == dict(stash.open(mine.driver).attrs) == {"note": [1, 2]}
    theirs.resize((3, model.shape[1]))
    model = model[:3]
    append(mine, 1)
    append(mine, 0)
    append(mine, 1)
    if not isinstance(how["chunks"], list):
        append(mine, 1, axis=1)
        append(mine, 1, axis=1)
    append(mine, 1)
    if how.get("zarr_format") != 2:
        text = bytes(mine.driver.get("zarr.json") or b"").rstrip()
        fresh = MemoryDriver(dict(mine.driver._mapping))  # type: ignore[attr-defined]
        stash.open(fresh, "r+").attrs["note"] = [1, 2]
        assert bytes(fresh.get("zarr.json") or b"").rstrip() == text


def test_an_array_in_the_place_of_the_one_that_grew(tmp_path: Any) -> None:
    place = str(tmp_path / "a")
    mine = stash.create(place, (0, 2), "i4", chunks=(4, 2))
    for i in range(3):
        mine.append([[i, i]])
    stash.create(place, (0, 2), "i4", chunks=(4, 2), overwrite=True)
    for _ in range(2):
        with pytest.raises(Conflict):
            mine.append([[3, 3]])
    assert stash.open(place).shape == (0, 2)


def test_of_a_full_set_of_dtypes_rows_come_one_by_one() -> None:
    # Chunks of several arrays are decoded into the same memory in turn.
    dtypes = ["u1", "i8", "f2", ">f4", "M8[s]", "c16", "S3", "V5", bool, str]
    for codecs in (None, "auto"):
        arrays = [
            stash.create({}, (0, 3), d, chunks=(5, 3), **({} if codecs else {"codecs": None}))
            for d in dtypes
        ]
        models = [
            np.arange(33).reshape(11, 3).astype("i8").astype(str if a.dtype.kind == "T" else "i8")
            for a in arrays
        ]
        models = [m.astype(a.dtype) for m, a in zip(models, arrays, strict=True)]
        for i in range(11):
            for array, model in zip(arrays, models, strict=True):
                array.append(model[i : i + 1])
        for array, model in zip(arrays, models, strict=True):
            same(array[...], model)
