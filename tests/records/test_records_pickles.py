"""Views of records in other processes: small pickles, no secrets, connection factories."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import DriverError, Invalid, NotFound, Unavailable
from tests.support.oracle import same
from tests.support.races import finish, fork, spawn

ROWS = 97


def made(rows: int = ROWS, place: Any = None) -> stash.Records:
    schema = {"n": "int64", "t": stash.ragged("int32")}
    records = stash.create_records({} if place is None else place, schema, rows_per_chunk=8)
    records.extend({"n": np.arange(rows), "t": [np.arange(i % 4) for i in range(rows)]})
    return records


@pytest.fixture(scope="module")
def there() -> stash.Records:
    return made()


# -- pickles -----------------------------------------------------------------------------------


def upper(batch: Any) -> Any:
    return batch


def test_pickles_are_small_however_many_rows(tmp_path: Path) -> None:
    records = stash.create_records(tmp_path / "r", {"n": "int64", "t": stash.ragged("i4")}, 10**6)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(10**6)
    views = {
        "all": records,
        "fields": records.select("n"),
        "mask": records.where(rng.random(10**6) < 0.5),
        "rows": records.where(shuffled),
        "run": records.where(slice(5, None, 7)),
        "part": records.split({"a": 0.9, "b": 0.1}, seed=5)["a"],
        "part of chosen": records.where(shuffled).split({"a": 0.9})["a"],
        "chosen of part": records.split({"a": 0.9})["a"].where(slice(None, None, -1)),
        "few": records.where([5, 1, 2]),
        "formed": records.where(shuffled).with_format("python").with_transform(upper),
        "made elsewhere": records.where(shuffled).with_connection_factory(upper_place),
    }
    records.source.blocks, views["rows"].source.blocks  # what is worked out does not travel
    for name, view in views.items():
        data = pickle.dumps(view)
        assert len(data) < 2048, (name, len(data))
        if name == "made elsewhere":
            continue
        again = pickle.loads(data)
        assert len(again) == len(view)
        first = slice(0, 50, 1)
        same(again.source.rows.at(first, 10**6), view.source.rows.at(first, 10**6))
        assert (again.names, again.source.format, again.source.transform) == (
            view.names,
            view.source.format,
            view.source.transform,
        )


def rows_of(view: stash.Records, wanted: list[int]) -> None:
    assert view["n"][:].tolist() == wanted


@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_views_travel_to_other_processes(tmp_path: Path, context: Any) -> None:
    records = made(place=tmp_path / "r")
    wanted = [*range(90, 0, -1)] * 3
    view = records.where(wanted)
    part = view.split({"a": 0.5})["a"]
    processes = [
        context.Process(target=rows_of, args=(view, wanted)),
        context.Process(target=rows_of, args=(part.where(slice(None, None, -1)),
                                              part["n"][:].tolist()[::-1])),
        context.Process(target=rows_of, args=(pickle.loads(pickle.dumps(view)), wanted)),
    ]  # fmt: skip
    for process in processes:
        process.start()
    finish(*processes)
    rows_of(view, wanted)


def test_row_numbers_in_a_file_go_with_their_process(tmp_path: Path) -> None:
    script = """
import os, pickle, sys, numpy as np, tensorstash as stash
records = stash.open_records(sys.argv[1])
view = records.where(np.arange(90)[::-1])
data, path = pickle.dumps(view), view.source.rows._file.path
del view
assert pickle.loads(data)["n"][0] == 89
if sys.argv[2] == "later":
    for _ in range(16):
        pickle.dumps(records.where(np.arange(90)))
    assert not os.path.exists(path)
if os.fork() == 0:
    sys.exit()  # a child takes nothing away
os.wait()
assert os.path.exists(path) == (sys.argv[2] != "later")
open(sys.argv[3], "wb").write(data)
"""
    made(place=tmp_path / "r")
    there = {"TMPDIR": str(tmp_path / "temporary"), "PATH": os.environ["PATH"]}
    (tmp_path / "temporary").mkdir()
    for how in ("later", "at exit"):
        args = [sys.executable, "-c", script, str(tmp_path / "r"), how, str(tmp_path / "pickle")]
        done = subprocess.run(args, capture_output=True, text=True, env=there)
        assert (done.stderr, done.returncode) == ("", 0)
        assert list((tmp_path / "temporary").iterdir()) == []
        with pytest.raises(NotFound, match=r"90 row numbers.*make the view again"):
            pickle.loads((tmp_path / "pickle").read_bytes())


def test_a_folder_that_takes_no_row_numbers(there: stash.Records, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    with pytest.raises(DriverError, match="set TMPDIR"):
        pickle.dumps(there.where(np.arange(90)))


def test_secrets_do_not_travel() -> None:
    secrets = {"key": "very-key", "secret": "very-secret", "password": "very-password"}
    for url, options in [
        ("s3://bucket/x", {"key": secrets["key"], "secret": secrets["secret"]}),
        ("redis://localhost:1/0/x", {"password": secrets["password"], "timeout": 1}),
    ]:
        driver = stash.location.resolve(url, options)
        table = stash.records.table.Table(
            stash.records.table.FixedPlace(driver),
            stash.handle.Settings(),
            made(3).source.table.catalog,
        )
        records = stash.Records(table)
        for view in (records, records.select("n").where([0, 2]), records.split({"a": 1})["a"]):
            data = pickle.dumps(view)
            assert not [s for s in secrets.values() if s.encode() in data]
            assert not [s for s in secrets.values() if s in repr(view)]
            assert len(data) < 2048


# -- connection factories ----------------------------------------------------------------------


def upper_place() -> Any:
    return "memory://elsewhere"


def place_in(path: str) -> Any:
    return json.loads(Path(path).read_text())


def opened_in(path: str) -> Any:
    return stash.open_records(json.loads(Path(path).read_text()))


class Local:
    def __call__(self) -> str:
        return "x"

    def __reduce__(self) -> Any:
        raise TypeError("not this one")


def test_a_factory_is_tried_when_it_is_given(there: stash.Records) -> None:
    def local() -> str:
        return "x"

    lock = threading.Lock()
    for wrong in (lambda: "x", local, Local(), functools.partial(place_in, lock)):
        with pytest.raises(Invalid, match=r"cannot be pickled.*function of a module"):
            there.with_connection_factory(wrong)
    for wrong in ("url", None, 5):
        with pytest.raises(Invalid, match="function without arguments"):
            there.with_connection_factory(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", [place_in, opened_in])
def test_a_factory_is_called_where_the_view_arrives(tmp_path: Path, factory: Any) -> None:
    records = made(place=tmp_path / "here")
    note = tmp_path / "note.json"
    view = records.where([5, 3]).select("n").with_connection_factory(
        functools.partial(factory, str(note))
    )  # fmt: skip
    assert len(view) == 2  # known already: nothing is connected
    data = pickle.dumps(view)
    assert str(tmp_path / "here").encode() not in data
    made(place=tmp_path / "there")["n"][...] = 7
    note.write_text(json.dumps(str(tmp_path / "there")))
    assert pickle.loads(data)["n"][:].tolist() == [7, 7]
    process = spawn.Process(target=rows_of, args=(view, [7, 7]))
    process.start()
    finish(process)
    assert records.where([5, 3])["n"][:].tolist() == [5, 3]


def nothing() -> Any:
    return None


def test_a_factory_that_returns_no_place(there: stash.Records) -> None:
    view = pickle.loads(pickle.dumps(there.with_connection_factory(nothing)))
    with pytest.raises(Invalid, match="factory returned NoneType, which is not a place"):
        view[0]


def test_a_place_that_cannot_be_reached_says_so() -> None:
    with pytest.raises(Unavailable):
        stash.open_records("redis://localhost:1/0/x", options={"timeout": 1})
