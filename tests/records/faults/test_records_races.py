"""Many writers and readers of records at once: every row lands, whole, and none is seen before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.errors import AlreadyExists, Conflict
from tests.support.races import TRIALS, finish, fork, in_processes, in_threads, spawn
from tests.support.record_races import (
    TOLD,
    Place,
    append_told,
    appended,
    is_told,
    numbers_of,
    told,
    watch_told,
)
from tests.support.remote import remote

HOW = ("append", "extend", "writer")


@pytest.fixture(params=["file", "redis", "s3fs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(str(tmp_path / "r"))
    found = remote(request.param, request.getfixturevalue)
    return Place(found.fresh(), found.options)


# -- appends -----------------------------------------------------------------------------------


def test_appends_of_processes_all_land(place: Place) -> None:
    place.create()
    in_processes(fork, append_told, *[(place, k, place.turns, HOW[k]) for k in range(3)])
    assert sorted(numbers_of(place.open())) == appended(range(3), place.turns)


def test_appends_of_spawned_processes_all_land(place: Place) -> None:
    place.create()
    in_processes(spawn, append_told, *[(place, k, 1, HOW[k]) for k in range(2)])
    assert sorted(numbers_of(place.open())) == appended(range(2), 1)


def test_appends_of_threads_all_land(place: Place) -> None:
    shared = place.create()

    def work(k: int) -> None:
        records = place.open("r+") if k % 2 else shared
        for turn in range(place.turns):
            first = 1000 * k + 10 * turn
            at = records.extend([told(first + i) for i in range(3)])
            assert int(records[at]["id"]) == first

    in_threads(4, work)
    assert sorted(numbers_of(place.open())) == appended(range(4), place.turns)
    assert sorted(numbers_of(shared.refresh())) == appended(range(4), place.turns)


def test_many_appends_of_processes_on_files(tmp_path: Path) -> None:
    for trial in range(TRIALS - 1):
        place = Place(str(tmp_path / str(trial)))
        place.create()
        in_processes(fork, append_told, *[(place, k, 6, HOW[k % 3]) for k in range(4)])
        assert sorted(numbers_of(place.open())) == appended(range(4), 6)


# -- readers -----------------------------------------------------------------------------------


def test_readers_never_see_a_row_of_which_a_field_is_missing(place: Place) -> None:
    place.create()
    barrier, rows = fork.Barrier(4), 6 * place.turns
    processes = [
        begin(watch_told, (barrier, place, rows, 0)),
        begin(watch_told, (barrier, place, rows, "1MiB")),
        begin(append_told, (barrier, place, 0, place.turns, "append")),
        begin(append_told, (barrier, place, 1, place.turns, "extend")),
    ]
    finish(*processes)
    assert sorted(numbers_of(place.open())) == appended(range(2), place.turns)


def watch_with_zarr(barrier: Any, url: str, rows: int, field: str, consolidated: bool) -> None:
    barrier.wait()
    count = 0
    while count < rows:
        if consolidated:
            found = zarr.open_group(url, mode="r", use_consolidated=True)[field]
        else:
            found = zarr.open_array(f"{url}/{field}", mode="r")
        assert count <= found.shape[0]
        count = found.shape[0]
        # Never more than are whole: that many rows have all of their fields.
        assert len(stash.open_records(url)) >= count
        values = np.asarray(found[...])
        assert (values[:, 0] >= 0).all() if field == "x" else len(values) == count


@pytest.mark.parametrize("consolidated", [False, True])
def test_zarr_never_sees_more_rows_than_are_whole(tmp_path: Path, consolidated: bool) -> None:
    place = Place(str(tmp_path / "r"))
    place.create()
    barrier = fork.Barrier(3)
    processes = [
        begin(watch_with_zarr, (barrier, place.url, 30, "x", consolidated)),
        begin(append_told, (barrier, place, 0, 5, "extend")),
        begin(append_told, (barrier, place, 1, 5, "append")),
    ]
    finish(*processes)
    assert zarr.open_array(f"{place.url}/x", mode="r").shape == (30, 3)


def begin(target: Any, args: tuple[Any, ...]) -> Any:
    process = fork.Process(target=target, args=args)
    process.start()
    return process


# -- rows that are rewritten -------------------------------------------------------------------


def rewrite(barrier: Any, place: Place, k: int) -> None:
    records = place.open("r+")
    barrier.wait()
    for turn in range(1, place.turns + 1):
        for row in range(k, 4, 2):
            records[row] = told(100 * turn + row)


def test_rows_are_rewritten_while_others_are_added(place: Place) -> None:
    records = place.create()
    records.extend([told(900 + i) for i in range(4)])
    barrier = fork.Barrier(3)
    processes = [
        begin(rewrite, (barrier, place, 0)),
        begin(rewrite, (barrier, place, 1)),
        begin(append_told, (barrier, place, 5, place.turns, "append")),
    ]
    finish(*processes)
    found = numbers_of(place.open())
    assert found[:4] == [100 * place.turns + i for i in range(4)]
    assert sorted(found[4:]) == appended(range(5, 6), place.turns)


def test_one_handle_in_many_threads(tmp_path: Path) -> None:
    # A handle never knows fewer rows than it did, whoever refreshes it.
    place = Place(str(tmp_path / "r"))
    place.create()
    records = place.open("r+", cache="1MiB")
    stop = threading.Event()

    def work(k: int) -> None:
        if k < 2:
            for turn in range(12):
                at = records.append(told(1000 * k + turn))
                assert is_told(records[at])
                assert int(records[at]["id"]) == 1000 * k + turn
            if k == 0:
                stop.set()
        known = 0
        while not stop.is_set():
            records.refresh()
            assert len(records) >= known
            known = len(records)
            assert all(map(is_told, records))

    in_threads(4, work)
    assert sorted(numbers_of(place.open())) == [*range(12), *range(1000, 1012)]


# -- fields ------------------------------------------------------------------------------------


def append_or_refresh(barrier: Any, place: Place, rows: int) -> None:
    records = place.open("r+")
    barrier.wait()
    while rows:
        extra = {name: 7 for name in records.names if name.startswith("f")}
        try:
            records.append({**told(rows), **extra})
        except Conflict:
            records.refresh()
            continue
        rows -= 1


def test_fields_are_added_while_rows_are(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "r"))
    place.create().extend([told(50), told(51)])
    barrier = fork.Barrier(3)
    processes = [
        begin(append_or_refresh, (barrier, place, 8)),
        begin(change_one_by_one, (barrier, place, 1)),
        begin(change_one_by_one, (barrier, place, 2)),
    ]
    finish(*processes)
    records = place.open()
    assert sorted(numbers_of(records)) == [*range(1, 9), 50, 51]
    assert len(records.names) == len(place.open().select(*TOLD).names) + 6
    assert len(records.attrs) == 6
    for name in records.names:
        if name.startswith("f"):
            column = records[name][...].tolist()
            assert set(column) <= {int(name[1]), 7}
            assert column[:2] == [int(name[1])] * 2


def change_one_by_one(barrier: Any, place: Place, k: int) -> None:
    records = place.open("r+")
    barrier.wait()
    turn = 0
    while turn < 3:
        values = np.full(len(records.refresh()), k)
        try:
            records.add_field(f"f{k}-{turn}", "int32", values)
        except stash.errors.Invalid:  # rows were added meanwhile: too few values
            continue
        records.attrs[f"a{k}-{turn}"] = turn
        turn += 1


# -- creating ----------------------------------------------------------------------------------


def create_them(barrier: Any, place: Place, winners: Any) -> None:
    barrier.wait()
    try:
        records = place.create()
    except AlreadyExists:
        records = place.open("r+")
    else:
        with winners.get_lock():
            winners.value += 1
    records.append(told(1))


def test_one_of_several_creators_wins(place: Place) -> None:
    winners = fork.Value("i", 0)
    in_processes(fork, create_them, *[(place, winners)] * 3)
    assert winners.value == 1
    assert numbers_of(place.open()) == [1] * 3
