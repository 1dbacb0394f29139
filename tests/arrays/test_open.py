"""Opening and creating: every mode on every kind of place, what it costs, what a handle is."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Invalid, NotFound, ReadOnly
from tensorstash.testing.counting import Count, CountingDriver
from tests.support.project import ROOT

DATA = np.arange(35, dtype="float32").reshape(5, 7)
SHAPE: dict[str, Any] = {"shape": (5, 7), "dtype": "float32", "chunks": (2, 3)}
_names = iter(range(10**6))

Place = Callable[[Path], Any]
PLACES: dict[str, Place] = {
    "dict": lambda folder: {},
    "memory URL": lambda folder: f"memory://test-open-{next(_names)}/inner",
    "path": lambda folder: str(folder / "a.zarr"),
    "pathlib": lambda folder: folder / "deep" / "below" / "a.zarr",
    "URL": lambda folder: f"file://{folder}/a.zarr",
    "with spaces": lambda folder: folder / "my data %20 ü" / "a b",
    "driver": lambda folder: FileDriver(folder / "a.zarr"),
    "memory driver": lambda folder: MemoryDriver(),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return PLACES[request.param](tmp_path)


def test_reading_and_writing_modes(place: Any) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(NotFound):
            stash.open(place, mode)
    stash.open(place, "a", **SHAPE)[...] = DATA
    reader, writer = stash.open(place), stash.open(place, "r+")
    assert np.array_equal(reader[...], DATA)
    assert (reader.writable, writer.writable) == (False, True)
    with pytest.raises(ReadOnly):
        reader[0] = 0
    writer[0] = 7
    assert (reader[0] == 7).all()
    again = stash.open(place, "a", **{**SHAPE, "shape": (99, 7), "chunks": 1})  # as it is there
    assert (again.shape, again.chunks) == ((5, 7), (2, 3))
    assert again.writable
    again[0] = DATA[0]
    assert np.array_equal(stash.load(place), DATA)


def test_replacing_and_exclusive_modes(place: Any) -> None:
    stash.open(place, "x", **SHAPE)[...] = DATA
    with pytest.raises(AlreadyExists):
        stash.open(place, "x", **SHAPE)
    with pytest.raises(AlreadyExists):
        stash.create(place, **SHAPE)
    assert np.array_equal(stash.load(place), DATA)
    new = stash.open(place, "w", shape=(2,), dtype="i8", fill_value=4)
    assert new[...].tolist() == [4, 4]
    assert stash.create(place, **SHAPE, overwrite=True)[...].sum() == 0
    assert stash.save(place, DATA[:2]).shape == (2, 7)
    assert np.array_equal(stash.load(place), DATA[:2])


def test_groups_on_every_place(place: Any) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(NotFound):
            stash.open_group(place, mode)  # type: ignore[arg-type]
    stash.open_group(place, "a").create("raw/x", **SHAPE)[...] = DATA
    assert np.array_equal(stash.open_group(place, "a")["raw/x"][...], DATA)
    with pytest.raises(AlreadyExists):
        stash.open_group(place, "x")
    with pytest.raises(ReadOnly):
        stash.open_group(place).create("y", 3, "u1")
    assert list(stash.open_group(place, "w")) == []


def test_an_empty_dict_is_the_store() -> None:
    store: dict[str, Any] = {}
    stash.create(store, **SHAPE)
    assert set(store) == {"zarr.json"}
    assert type(store["zarr.json"]) is bytes


def test_a_relative_path_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    array = stash.save("x.zarr", DATA)
    monkeypatch.chdir("/")
    assert np.array_equal(array[...], DATA)  # a handle stays where it was opened
    assert np.array_equal(stash.load(tmp_path / "x.zarr"), DATA)
    stash.save("~/y.zarr", DATA)
    assert np.array_equal(stash.load(tmp_path / "home" / "y.zarr"), DATA)


# -- what it costs -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"shards": (4, 6)}], ids=["chunks", "shards"])
def test_opening_costs_one_small_read(options: dict[str, Any]) -> None:
    driver = CountingDriver(MemoryDriver())
    stash.create(driver, **SHAPE, **options)[...] = DATA
    for mode in ("r", "r+", "a"):
        driver.reset()
        array = stash.open(driver, mode)  # type: ignore[arg-type]
        assert dict(driver.counts) == {"get_many_tagged": driver.reads}
        assert driver.reads.calls == 1
        driver.reset()
        _ = array.shape, array.dtype, array.chunks, array.shards, array.codecs, array.fill_value
        _ = repr(array), len(array), array.nbytes, array.attrs, array.lazy[::2], array.writable
        array.explain(np.s_[:, 2])
        assert dict(driver.counts) == {}
    driver.reset()
    stash.open_group(CountingDriver(stash.create_group(driver_for_group := MemoryDriver()).driver))
    counted = CountingDriver(driver_for_group)
    stash.open_group(counted)
    assert counted.reads.calls == 1


def test_creating_costs_one_put() -> None:
    driver = CountingDriver(MemoryDriver())
    stash.create(driver, shape=(1 << 30, 1 << 10), dtype="u1")
    assert driver.counts["put"].calls == 1
    assert driver.writes.nbytes < 2000
    assert driver.counts["delete_prefix"] == Count()


@pytest.mark.parametrize("attributes", [{}, {"notes": "x" * 200_000}], ids=["few", "many"])
def test_handles_pickle_small(attributes: dict[str, Any], tmp_path: Path) -> None:
    group = stash.create_group(tmp_path / "run", attributes)
    array = group.create("deep/x", **SHAPE, attributes=attributes)
    array[...] = DATA
    cached = stash.open(tmp_path / "run" / "deep" / "x", cache="1GiB", threads=2)
    cached[...]
    for handle in (array, cached, array.lazy[::2, [0, 1]], group, stash.open_group(group.driver)):
        data = pickle.dumps(handle)
        assert len(data) < 2048
        again = pickle.loads(data)
        assert repr(again)
        if isinstance(handle, stash.Group):
            assert np.array_equal(again["deep/x"][...], DATA)
            assert dict(again.attrs) == attributes
        else:
            assert np.array_equal(np.asarray(again), np.asarray(handle))
    assert pickle.loads(pickle.dumps(cached)).settings == cached.settings
    assert pickle.loads(pickle.dumps(array)).writable


def test_a_closed_handle_stays_closed_elsewhere(tmp_path: Path) -> None:
    with stash.save(tmp_path / "a", DATA) as array:
        assert array.shape == (5, 7)
    with pytest.raises(ValueError, match="open it again"):
        array[0]
    assert np.array_equal(pickle.loads(pickle.dumps(array))[...], DATA)  # a pickle opens afresh


def test_importing_and_opening_start_nothing(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", DATA)
    code = f"""
import os, sys, threading
import numpy
def state():
    return sorted(os.readlink(f"/proc/self/fd/{{n}}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{{n}}"))
before = state()
import tensorstash as stash
heavy = {{"torch", "zarr", "ml_dtypes", "tensorstore", "fsspec", "s3fs", "redis", "asyncio",
         "tqdm", "numcodecs", "zstandard", "google_crc32c"}} & set(sys.modules)
assert not heavy, heavy
assert [m for m in sys.modules if m.startswith("tensorstash.drivers.")] == []
array = stash.open({str(tmp_path / "a")!r}, cache="1GiB")
assert threading.active_count() == 1, threading.enumerate()
assert state() == before
array[...]
assert threading.active_count() == 1, "a small read needs no thread"
assert state() == before, "no file stays open"
assert not {{"torch", "zarr", "ml_dtypes"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


# -- races ---------------------------------------------------------------------------------


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Each call's answer or error, all started together."""
    ready, answers = threading.Barrier(count), [None] * count

    def run(k: int) -> None:
        ready.wait()
        try:
            answers[k] = work(k)
        except Exception as error:
            answers[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_of_several_creators_one_wins(tmp_path: Path) -> None:
    for trial in range(10):
        for place in (tmp_path / str(trial), f"memory://test-race-{next(_names)}"):
            answers = at_once(6, lambda k, p=place: stash.create(p, (4,), "u1", fill_value=k))
            won = [k for k, answer in enumerate(answers) if isinstance(answer, stash.Array)]
            assert len(won) == 1, answers
            lost = [a for a in answers if not isinstance(a, stash.Array)]
            assert all(isinstance(answer, AlreadyExists) for answer in lost)
            assert stash.load(place).tolist() == won * 4


def test_all_who_open_or_create_get_the_same_array(tmp_path: Path) -> None:
    for trial in range(10):
        for place in (tmp_path / str(trial), f"memory://test-race-{next(_names)}"):

            def add(k: int, place: Any = place) -> None:
                stash.open(place, "a", shape=(0,), dtype="i4", chunks=4).append([k])

            assert at_once(6, add) == [None] * 6
            assert sorted(stash.load(place).tolist()) == list(range(6))
            made = at_once(4, lambda k, p=place: stash.open_group(f"{p}-group", "a"))
            assert all(isinstance(group, stash.Group) for group in made)


CREATE = """
import sys, time
import tensorstash as stash
while time.time() < float(sys.argv[2]):
    pass
try:
    stash.create(sys.argv[1], (4,), "u1", fill_value=int(sys.argv[3]))[0] = 9
    print("won")
except stash.AlreadyExists:
    print("lost")
"""


def test_of_several_processes_one_creates(tmp_path: Path) -> None:
    import time

    start = str(time.time() + 2)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(tmp_path / "a"), start, str(k)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for k in range(3)
    ]
    said = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert sorted(said) == ["lost", "lost", "won"]
    assert stash.load(tmp_path / "a").tolist() == [9, *[said.index("won")] * 3]


def test_options_reach_the_driver(tmp_path: Path) -> None:
    array = stash.open(tmp_path / "a", "a", options={"fsync": True}, shape=3, dtype="u1")
    assert isinstance(array.driver, FileDriver)
    assert array.driver.fsync
    assert pickle.loads(pickle.dumps(array)).driver.fsync
    with pytest.raises(Invalid, match="belong to the driver"):
        stash.open(array.driver, options={"fsync": False})
    assert isinstance(array.driver, Driver)
    assert os.fspath(tmp_path) in repr(array)
