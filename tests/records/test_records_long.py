"""What rows cost does not grow with how many there are: only with those that are touched."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.torch import Loader

N = 10**12
_ROW = {"t": [3], "s": "a", "j": [1], "b": b"x", "f": 1, "in": {"v": [[1, 2]]}}
_COLUMNS = {
    "t": [[1], [2, 3]],
    "s": ["a", "b"],
    "j": [1, 2],
    "b": [b"", b"a"],
    "f": [1, 2],
    "in": {"v": [np.zeros((1, 2), "i1"), np.zeros((0, 2), "i1")]},
}


@pytest.fixture(scope="module")
def records() -> stash.Records:
    schema = {
        "t": stash.ragged("int32"),
        "f": "float32",
        "s": str,
        "j": stash.json,
        "b": bytes,
        "in": {"v": stash.ragged("int8", ndim=2)},
    }
    made = stash.create_records({}, schema, length=N)
    made[0] = _ROW
    return made


def _field(name: str) -> list[Callable[[Any], Any]]:
    one = _ROW["in"]["v"] if name == "in/v" else _ROW[name]  # type: ignore[index, call-overload]
    keys = [7, N - 1, slice(7, 9), slice(N - 8, None, 4), slice(9, 7, -1), [7, N - 2]]

    def put(key: Any) -> Callable[[Any], Any]:
        value = one if isinstance(key, int) else [one, one]
        return lambda r: r[name].__setitem__(key, value)

    def get(key: Any) -> Callable[[Any], Any]:
        return lambda r: r[name][key]

    return [*map(put, keys), *map(get, keys), lambda r: next(iter(r[name]))]


_CALLS: dict[str, list[Callable[[Any], Any]]] = {
    **{name: _field(name) for name in ("t", "s", "j", "b", "f", "in/v")},
    "rows": [
        lambda r: r.__setitem__(7, _ROW),
        lambda r: r.__setitem__(N - 1, _ROW),
        lambda r: r.__setitem__(slice(-2, None), _COLUMNS),
        lambda r: r.__setitem__(slice(9, 7, -1), _COLUMNS),
        lambda r: r.__setitem__([1, N - 3], _COLUMNS),
        lambda r: (r[5], r[-1], r[5:9], r[9:5:-1], r[[3, N - 1]], next(iter(r))),
        lambda r: (repr(r), r.info(), len(r)),
    ],
    "views": [
        lambda r: r.where(slice(None, None, -1))[3],
        lambda r: r.where(slice(None, None, -1)).where(slice(5, None))[3:5],
        lambda r: r.where(slice(None, None, 2)).where(slice(None, None, -3))[[3, -1]],
        lambda r: r.where(slice(3, 5)).lengths("t"),
        lambda r: r.split({"a": 0.5, "b": 0.5})["a"].where(slice(5, None))[3:5],
        lambda r: r.split({"a": 0.5, "b": 0.5})["a"].where(slice(None, None, -2))[3:5],
        lambda r: r.where(slice(5, None)).split({"a": 0.5})["a"][[3, -1]],
        lambda r: r.split({"a": 0.5})["a"].split({"c": 0.5})["c"].where([3])[0],
        lambda r: pickle.dumps(r.split({"a": 0.5})["a"].split({"c": 0.5})["c"]),
    ],
    "sources": [
        lambda r: r.windows(4, fields="f"),
        lambda r: r.windows(4, boundaries=[50], whole_rows=True).starts([3]),
        lambda r: r.__getitems__([3, N - 1]),
        lambda r: next(iter(Loader(r.select("f").where(slice(0, 100)), batch_size=8))),
        lambda r: stash.save_records({}, r.where(slice(3, 5))),
    ],
}


@pytest.mark.parametrize("what", _CALLS)
def test_a_call_costs_what_it_touches(records: stash.Records, what: str) -> None:
    for k, call in enumerate(_CALLS[what]):
        tracemalloc.start()
        call(records)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 << 20, f"call {k} of {what} took {peak >> 20} MiB"


def test_fields_and_rows_are_added_to_many() -> None:
    records = stash.create_records({}, {"t": stash.ragged("int32")}, length=N)
    records.add_field("new", stash.ragged("int8"))
    records.rename_field("new", "other")
    with records.writer() as writer:
        writer.append({"t": [1], "other": [2]})
        writer[3] = {"t": [1, 2], "other": []}
    assert len(records) == N + 1 and records[-1]["other"].tolist() == [2]
    assert records[3]["t"].tolist() == [1, 2]


@pytest.mark.parametrize("outer", ["all", "run", "back", "split", "chosen", "split back"])
def test_views_of_views_have_the_rows_that_numpy_chooses(outer: str) -> None:
    records = stash.save_records({}, {"x": np.arange(97)})
    views = {
        "all": records,
        "run": records.where(slice(5, 90, 2)),
        "back": records.where(slice(None, None, -3)),
        "split": records.split({"a": 0.7, "b": 0.3}, seed=3)["a"],
        "chosen": records.where([5, 3, 3, 96, 0, 17, 2]),
        "split back": records.split({"a": 0.7}, seed=3)["a"].where(slice(None, None, -2)),
    }
    view = views[outer]
    model = view[:]["x"]
    edges = (None, 0, 1, 3, -2, 200)
    slices = [slice(a, b, c) for a in edges for b in edges for c in (None, 1, 2, -1, -3)]
    for rows in (*slices, [1, 0, 0], np.arange(len(model)) % 3 == 1):
        found = view.where(rows)
        assert np.array_equal(found[:]["x"], model[rows]) and len(found) == len(model[rows])
        again = pickle.loads(pickle.dumps(found)).where(slice(1, None, 2))
        assert np.array_equal(again[:]["x"], model[rows][1::2])
    parts = view.split({"a": 0.6, "b": 0.4}, seed=1)
    every = np.concatenate([part[:]["x"] for part in parts.values()])
    assert np.array_equal(np.sort(every), np.sort(model))
    loaded = np.concatenate([b["x"] for b in parts["a"].iter_batches(7, shuffle=True)])
    assert np.array_equal(np.sort(loaded), np.sort(parts["a"][:]["x"]))
