"""A handle that was pickled reads and writes the array that it was pickled with, or says that it
cannot: in another process, which opens it when it is first used."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Conflict, NotFound
from tests.support.races import spawn


def _write_buffered(array: Any) -> None:
    with array.writer() as writer:
        writer[0] = 3


def again(handle: Any) -> Any:
    """Pickled, and once more before its first use."""
    return pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(handle))))


@pytest.mark.parametrize("how", [{}, {"zarr_format": 2}, {"immutable": True}])
def test_an_array_that_was_overwritten_on_the_way(tmp_path: Path, how: Any) -> None:
    form = {k: v for k, v in how.items() if k != "immutable"}
    opened = {k: v for k, v in how.items() if k == "immutable"}
    place = tmp_path / "x"
    stash.save(place, np.full(8, 1), **form)
    handle = stash.open(place, "r" if opened else "r+", **opened)
    sent = pickle.dumps(handle), pickle.dumps(stash.open(place, "r+"))
    stash.save(place, np.full(8, 2), overwrite=True, **form)
    uses: list[Callable[[Any], Any]] = [
        lambda a: a[:],
        lambda a: a.shape,
        lambda a: a.refresh(),
        lambda a: a.lazy[1:].read(),
        lambda a: a.info(),
        lambda a: pickle.loads(pickle.dumps(a))[0],
    ]
    for use in uses:
        with pytest.raises(Conflict, match="replaced"):
            use(pickle.loads(sent[0]))
    changes: list[Callable[[Any], Any]] = [
        lambda a: a.__setitem__(0, 3),
        lambda a: a.append([3]),
        lambda a: a.resize((3,)),
        lambda a: a.attrs.update(x=3),
        _write_buffered,
    ]
    for use in changes:
        with pytest.raises(Conflict, match="replaced"):
            use(pickle.loads(sent[1]))
    assert stash.open(place)[:].tolist() == [2] * 8 and not stash.open(place).attrs


def test_an_array_that_changed_on_the_way_is_itself(tmp_path: Path) -> None:
    handle = stash.save(tmp_path / "x", np.arange(8))
    sent = pickle.dumps(handle)
    handle.append([8])
    handle.attrs["unit"] = "m"
    assert pickle.loads(sent)[:].tolist() == [*range(9)]
    assert dict(again(handle).attrs) == {"unit": "m"}


def test_others_documents_are_told_by_nothing_else(tmp_path: Path) -> None:
    handle = stash.save(tmp_path / "x", np.arange(8))
    document = tmp_path / "x" / "zarr.json"
    document.write_text(json.dumps(json.loads(handle.driver.get("zarr.json"))))  # type: ignore[arg-type]
    without = pickle.dumps(stash.open(tmp_path / "x"))
    assert pickle.loads(pickle.dumps(handle))[:].tolist() == [*range(8)]
    assert pickle.loads(without)[:].tolist() == [*range(8)]
    stash.save(tmp_path / "x", np.arange(8), overwrite=True)  # now it has an identity
    with pytest.raises(Conflict):
        pickle.loads(without)[:]


def _read(pipe: Any, *handles: Any) -> None:
    pipe.send("here")
    pipe.recv()
    for handle in handles:
        try:
            found = handle[0]
            pipe.send(found if isinstance(found, dict) else int(found))
        except Exception as error:
            pipe.send(type(error).__name__)


def test_a_spawned_process_that_reads_late(tmp_path: Path) -> None:
    array = stash.save(tmp_path / "x", np.full(8, 1))
    kept = stash.save(tmp_path / "y", np.full(8, 1))
    records = stash.save_records(tmp_path / "r", {"a": np.full(4, 1), "b": np.full(4, 1)})
    here, there = spawn.Pipe()
    handles = array, kept, records, records.select("a"), records.select("b"), records["a"]
    process = spawn.Process(target=_read, args=(there, *handles))
    process.start()
    try:
        assert here.recv() == "here"
        stash.save(tmp_path / "x", np.full(8, 2), overwrite=True)
        changed = stash.open_records(tmp_path / "r", "r+")
        changed.drop_field("b")
        changed.add_field("b", "int64", np.full(4, 2))
        here.send("go on")
        found = [here.recv() for _ in handles]
    finally:
        process.join(60)
    assert found == ["Conflict", 1, "Conflict", {"a": 1}, "Conflict", 1]


@pytest.mark.parametrize("immutable", [False, True])
def test_records_that_were_replaced_on_the_way(tmp_path: Path, immutable: bool) -> None:
    how: dict[str, Any] = {"a": np.full(6, 1), "t": [np.arange(n) for n in range(6)]}
    stash.save_records(tmp_path / "r", how)
    records = stash.open_records(tmp_path / "r", immutable=immutable)
    assert records["a"][0] == 1
    views = records, records.select("t").where(slice(2, None)), records.select("a")
    sent = [pickle.dumps(each) for each in views]
    stash.save_records(tmp_path / "r", {**how, "a": np.full(6, 2)}, overwrite=True)
    for each in sent:
        with pytest.raises(Conflict, match="replaced"):
            again(pickle.loads(each))[0]
    late = pickle.loads(sent[0]).refresh()  # who asks for what is there now has it
    assert late[0]["a"] == 2


def test_a_field_that_was_dropped_on_the_way_stops_those_who_want_it(tmp_path: Path) -> None:
    records = stash.save_records(tmp_path / "r", {"a": np.full(4, 1), "b": np.full(4, 1)})
    a, b, both = (pickle.dumps(each) for each in (records.select("a"), records["b"], records))
    records.drop_field("b")
    records.append({"a": 5})
    assert pickle.loads(a)[4] == {"a": 5}
    with pytest.raises(NotFound):
        pickle.loads(b)[0]
    with pytest.raises(NotFound, match="'b'"):
        pickle.loads(both)[4]
    assert pickle.loads(both).refresh()[4] == {"a": 5}
    assert pickle.loads(both).select("a")[4] == {"a": 5}
