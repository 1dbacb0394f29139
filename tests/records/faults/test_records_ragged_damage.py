"""Ragged fields that are damaged, or read and written by several at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.races import in_threads
from tests.support.ragged_rows import holds, made

# -- damage ------------------------------------------------------------------------------------


def damaged(places: Any) -> stash.Records:
    places = np.array(places)
    records = made(places.shape[1] - 2 or 1, 0)
    records.extend({"t": [np.zeros((1,) * records.fields["t"].ndim, "i4")] * 4})
    records.source.table.columns["t"].arrays[1][: len(places)] = places
    return records


@pytest.mark.parametrize(
    "places",
    [
        [[-1, 2]],
        [[3, 2]],
        [[0, 5]],
        [[2**62, 2**62 + 1]],
        [[0, 2**63 - 1]],
        [[0, 2, 3, 1]],
        [[0, 2, -1, -2]],
        [[0, 0, 2**32, 2**32]],
        [[0, 4, 2**61, 8]],
    ],
    ids=repr,
)
def test_offsets_that_make_no_sense(places: Any) -> None:
    records = damaged(places)
    for call in (
        lambda: records[0],
        lambda: records[:],
        lambda: list(records),
        lambda: records["t"][[0, 0]],
    ):
        with pytest.raises(Corrupt, match=r"field 't'.*store the row again") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert records[1]["t"].size == 1
    again = np.full((1,) * records.fields["t"].ndim, 7, "i4")
    records[0] = {"t": again}
    holds(records, [again, *[np.zeros_like(again)] * 3])


@pytest.mark.parametrize("key", ["t/offsets/c/0/0", "t/values/c/0"])
@pytest.mark.parametrize("how", ["truncate", "flip"])
def test_damaged_chunks_are_named(key: str, how: Any) -> None:
    records = made(1, 0)
    records.extend({"t": [[1, 2], [3]] * 30})

    def when(call: Call) -> Fault | None:
        return how if call.key == key else None  # type: ignore[no-any-return]

    with pytest.raises(Corrupt, match=key):
        stash.open_records(FailingDriver(records.driver, when))[0:3]


def test_values_that_vanished() -> None:
    records = made(1, 0)
    records.extend({"t": [[1, 2], [3]]})
    records.driver.delete("t/values/c/0")
    assert records[0]["t"].tolist() == [0, 0]  # absent chunks are fill, as in every array
    with pytest.raises(stash.errors.NotFound, match="t/values/c/0"):
        stash.open_records(records.driver, missing="raise")[0]


# -- several at once ---------------------------------------------------------------------------


def test_threads_read_while_rows_move_and_are_added() -> None:
    records = made(1, 0)
    records.extend({"t": [[i] * (1 + i % 3) for i in range(20)]})

    def sound(rows: Iterator[np.ndarray]) -> None:
        for row in rows:
            assert row.size
            assert (row == row[0]).all()

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        for turn in range(15):
            if k == 0:
                records.append({"t": [turn] * (1 + turn % 5)})
            elif k == 1:
                records.extend({"t": [[turn] * 9] * 3})
            elif k == 2:  # longer than it was: it moves
                records[turn] = {"t": [100 + turn] * (4 + turn)}
            elif k == 3:
                records.refresh()
                sound(records[:]["t"])
            else:
                some = rng.integers(0, 20, 5)
                sound(records["t"][some])

    in_threads(6, work)
    assert len(records) == 20 + 15 + 45
    sound(records["t"])
    assert [len(row) for row in stash.open_records(records.driver)["t"]][:15] == [
        4 + i for i in range(15)
    ]


def test_values_of_a_row_to_come_survive_the_commit_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Slow has stored its values, not its row, after quick stored its own and before that commits:
    # the values' document follows quick's row, and must not become shorter than slow's values.
    records = made(1, 0)
    slow, quick, third = (stash.open_records(records.driver, "r+") for _ in range(3))
    mine, theirs = (handle.source.table.columns["t"] for handle in (slow, quick))
    reserve = theirs.reserve
    early: list[Any] = []

    def reserved(values: Any) -> Any:
        places = reserve(values)
        early.append(mine.reserve(mine.checked([[8] * 4], 1)))
        return places

    monkeypatch.setattr(theirs, "reserve", reserved)
    quick.append({"t": [7, 7]})
    third.append({"t": [9] * 5})
    monkeypatch.setattr(mine, "reserve", lambda values: early[0])
    slow.append({"t": [8] * 4})
    assert [row.tolist() for row in records.refresh()["t"]] == [[7] * 2, [9] * 5, [8] * 4]
