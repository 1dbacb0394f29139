"""Windows as a loader's source, and as a dataset for torch's own: blocks, threads, processes."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.columns import Columns, Ragged
from tensorstash.errors import Corrupt, Invalid, InvalidSelection
from tensorstash.loading.source import Blocks, Source
from tensorstash.sources.arrays import as_source
from tensorstash.torch import Windows, mix
from tests.support.far import FarDriver

ROWS = 1000
VALUES = np.arange(ROWS * 4, dtype="f4").reshape(ROWS, 4)


def stored(location: Any = None, chunk: int = 50, **how: Any) -> stash.Array:
    array = stash.create(
        {} if location is None else location, VALUES.shape, "f4", chunks=(chunk, 4)
    )
    array[...] = VALUES
    return stash.open(array.driver, **how)


def model(starts: Any, length: int) -> np.ndarray:
    return np.stack([VALUES[s : s + length] for s in starts])


class Ticks:
    """A source that is no array: rows of numbers, texts, lists and ragged values, its asked rows
    noted."""

    def __init__(self, order: bool = False) -> None:
        self.asked: list[np.ndarray] = []
        self.shuffled = np.random.default_rng(0).permutation(200) if order else None
        self.fixed = {"x": ((2,), np.dtype("i8"))}
        self.row_bytes = 32
        self.fingerprint = "ticks"

    def __len__(self) -> int:
        return 200

    @property
    def blocks(self) -> Blocks:
        return Blocks(Blocks.regular(200, 16).bounds, self.shuffled)

    def take(self, rows: np.ndarray, out: Any = None) -> Columns:
        self.asked.append(rows)
        x = np.stack([rows, -rows], axis=1)
        if out and "x" in out:
            out["x"][...] = x
            x = out["x"]
        text = np.array([f"row {i}" for i in rows], dtype=np.dtypes.StringDType())
        ragged = Ragged.of([np.arange(i % 3) for i in rows], np.dtype("i4"))
        return {"x": x, "text": text, "json": [{"i": int(i)} for i in rows], "tokens": ragged}

    def present(self, columns: Columns) -> Any:
        return dict(columns)

    def select(self, *names: str) -> Ticks:
        self.fixed = {name: self.fixed[name] for name in names if name in self.fixed}
        return self


def check(found: Columns, starts: Any, length: int) -> None:
    rows = np.array([np.arange(s, s + length) for s in starts]).reshape(-1, length)
    assert np.array_equal(found["x"], np.stack([rows, -rows], axis=2))
    assert found["text"].tolist() == [[f"row {i}" for i in row] for row in rows]
    assert found["json"] == [[{"i": i} for i in row] for row in rows.tolist()]
    for window, row in zip(found["tokens"], rows, strict=True):
        assert [len(value) for value in window] == [i % 3 for i in row]


@pytest.mark.parametrize("order", [False, True], ids=["runs", "shuffled"])
def test_any_source_whose_rows_are_time(order: bool) -> None:
    ticks = Ticks(order)
    assert isinstance(as_source(ticks), Source)
    windows = Windows(ticks, 7, 3)
    assert isinstance(windows, Source)
    chosen = np.array([9, 2, 3, 40, 2])  # 2 and 3 overlap
    check(windows.take(chosen), chosen * 3, 7)
    assert len(ticks.asked[-1]) == len({row for i in chosen for row in range(i * 3, i * 3 + 7)})
    apart = np.array([20, 1, 10])
    check(windows.take(apart), apart * 3, 7)
    check(windows.take(np.arange(0)), [], 7)
    check(windows.take(np.arange(30, 36)), np.arange(30, 36) * 3, 7)
    item = windows[5]
    assert item["text"] == [f"row {i}" for i in range(15, 22)]
    assert len(windows.blocks) > 1
    assert sorted(np.concatenate([windows.blocks.rows(k) for k in range(len(windows.blocks))])) == (
        list(range(len(windows)))
    )


@pytest.mark.parametrize("stride", [3, 7, 11])
def test_out_is_filled_whichever_way_windows_are_read(stride: int) -> None:
    array = stored()
    for source, name, dtype in ((as_source(array), "array", "f4"), (Ticks(), "x", "i8")):
        windows = Windows(source, 7, stride)
        for chosen in (np.arange(5), np.arange(5, 9), np.array([3, 1, 8]), np.array([6, 6, 7])):
            shape = (len(chosen), 7, *(4,) * (name == "array") + (2,) * (name == "x"))
            plain = np.empty(shape, dtype)
            gaps = np.empty((len(chosen), 7, shape[2] * 2), dtype)[:, :, ::2]
            for out in (plain, gaps):
                found = windows.take(chosen, {name: out})
                assert found[name] is out
                assert np.array_equal(
                    out, windows[chosen][name] if name == "x" else windows[chosen]
                )


def test_blocks_are_the_chunks_in_which_windows_begin() -> None:
    windows = Windows(stored(), 10, 10)  # none reaches into the next chunk
    assert windows.blocks.bounds.tolist() == list(range(0, 101, 5))
    # Of those that do, a block has the windows of four chunks: a quarter more is decoded.
    across = Windows(stored(), 20, 7)
    starts = across.starts(across.blocks.bounds[:-1])
    assert (starts // 200).tolist() == [0, 1, 2, 3, 4]
    # Windows longer than chunks would have every chunk decoded for many blocks.
    long = Windows(stored(chunk=10), 95)
    assert np.diff(long.blocks.bounds).tolist()[:-1] == [400, 400]
    episodes = Windows(stored(), 30, boundaries=[100, 120, 500])
    bounds = episodes.blocks.bounds
    assert (bounds[0], bounds[-1]) == (0, len(episodes))
    assert (np.diff(bounds) > 0).all()
    assert len(Windows(stored(), 2000).blocks) == 0


@pytest.mark.parametrize("ends", [None, [130, 135, 700]])
@pytest.mark.parametrize(("length", "stride"), [(30, 1), (30, 7), (10, 10), (64, 5)])
def test_every_block_reads_its_chunks_once(length: int, stride: int, ends: Any) -> None:
    array = stored()
    windows = Windows(array, length, stride, boundaries=ends)
    blocks = windows.blocks
    for k in np.random.default_rng(0).permutation(np.arange(1, len(blocks))).tolist():
        rows = blocks.rows(k)
        starts = windows.starts(rows)
        before = array.stats.chunks
        found = windows.take(rows)["array"]
        assert np.array_equal(found, model(starts, length))
        chunks = {row // 50 for s in starts for row in (s, s + length - 1)}
        assert array.stats.chunks - before <= max(chunks) - min(chunks) + 1


def test_overlapping_windows_of_a_block_share_the_memory_of_their_rows() -> None:
    windows = Windows(stored(), 30)
    assert not windows.fixed  # a loader keeps what take() answers for a block
    rows = windows.blocks.rows(1)
    found = windows.take(rows)["array"]
    assert np.array_equal(found, model(windows.starts(rows), 30))
    assert not found.flags.writeable
    low, high = np.lib.array_utils.byte_bounds(found)
    assert high - low == (len(rows) + 29) * 16
    assert windows.row_bytes * len(rows) < (len(rows) + 31) * 16 + len(rows)
    mine = windows[rows[0] : rows[-1] + 1]  # a user's own memory is nobody else's
    assert mine.flags.writeable
    assert mine.nbytes == len(rows) * 30 * 16
    assert Windows(stored(), 30, 30).fixed == {"array": ((30, 4), np.dtype("f4"))}


def test_threads_that_read_in_order_share_what_they_have_read() -> None:
    array = stored(threads=1)
    windows = Windows(array, 40, 4)
    batches = [np.arange(a, min(a + 6, len(windows))) for a in range(0, len(windows), 6)]
    found: dict[int, np.ndarray] = {}

    def read(first: int) -> None:
        for k in range(first, len(batches), 3):
            together.wait()  # a loader's threads, too, are at most a few batches apart
            found[k] = windows.take(batches[k])["array"]

    together = threading.Barrier(3)
    batches = batches[: len(batches) // 3 * 3]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))
    for k, rows in enumerate(batches):
        assert np.array_equal(found[k], model(windows.starts(rows), 40))
    assert array.stats.chunks == len(
        {row // 50 for row in range(windows.starts()[batches[-1][-1]] + 40)}
    )


def test_fields_in_chunks_of_other_lengths_are_each_decoded_once() -> None:
    wide, narrow = stored(chunk=20), stored(chunk=300)
    windows = Windows({"wide": wide, "narrow": narrow, "again": wide}, 30, 4)
    found = [windows.take(np.arange(a, min(a + 16, 243))) for a in range(0, 243, 16)]
    assert [list(columns) for columns in found] == [["wide", "narrow", "again"]] * 16
    whole = np.concatenate([columns["narrow"] for columns in found])
    assert np.array_equal(whole, model(windows.starts(), 30))
    assert np.array_equal(np.concatenate([columns["again"] for columns in found]), whole)
    assert (wide.stats.chunks, narrow.stats.chunks) == (2 * 50, 4)


def test_records_have_windows_of_every_kind_of_field(tmp_path: Path) -> None:
    texts = [f"step {i}" for i in range(ROWS)]
    records = stash.save_records(
        tmp_path / "steps",
        {"next": {"obs": VALUES}, "text": texts, "done": np.arange(ROWS) % 90 == 89},
        rows_per_chunk=64,
    )
    windows = Windows(records, 20, 5, boundaries=records["done"])
    starts = windows.starts()
    assert (starts // 90 == (starts + 19) // 90).all()
    for rows in (np.arange(50), np.array([7, 90, 8, 8]), np.arange(50, 60)):
        found = windows[rows]
        assert np.array_equal(found["next"]["obs"], model(starts[rows], 20))
        assert found["text"].tolist() == [texts[s : s + 20] for s in starts[rows]]
    chosen = Windows(records, 20, 5, fields="next")
    before = records["text"].stats.chunks
    for first in range(0, len(chosen), 16):
        chosen.take(np.arange(first, min(first + 16, len(chosen))))
    assert records["text"].stats.chunks == before
    assert len(pickle.dumps(windows)) < 2048
    items = chosen.__getitems__([3, 4])
    assert torch.equal(items[0]["next"]["obs"], torch.from_numpy(VALUES[15:35]))


def test_windows_of_ragged_rows_are_refused_unless_whole_rows_are_meant(tmp_path: Path) -> None:
    schema = {"id": "int64", "note": str, "in": {"t": stash.ragged("int64"), "x": "int8"}}
    records = stash.create_records(tmp_path / "r", schema)
    rows = [np.arange(i % 5) + i for i in range(60)]
    records.extend({"id": np.arange(60), "note": ["n"] * 60, "in": {"t": rows, "x": [1] * 60}})
    refused: list[Callable[..., Windows]] = [
        records.windows,
        records.select("in").windows,
        records.split({"a": 0.5})["a"].with_format("torch").windows,
        lambda n, **how: records.windows(n, fields=["id", "in/t"], **how),
        lambda n, **how: Windows(records, n, **how),
        lambda n, **how: Windows(mix([records, records.where(slice(0, 30))]), n, **how),
    ]
    for make in refused:
        with pytest.raises(Invalid, match=r"'in/t' is ragged: .* not 6 of its values.*whole_rows"):
            make(6)
        assert len(make(6, whole_rows=True)) == len(make(6, whole_rows=True)[:]["in"]["t"])
    found = records.windows(6, 3, whole_rows=True)[[4]]["in"]["t"][0]
    assert [row.tolist() for row in found] == [row.tolist() for row in rows[12:18]]
    assert len(records.windows(6, fields=["id", "note", "in/x"])) == 55


def test_of_an_uncompressed_series_no_more_is_held_than_a_batch(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (200_000, 4), "f4", chunks=(200_000, 4), codecs=[])
    array[...] = np.arange(800_000).reshape(200_000, 4)
    windows = Windows(array, 16, 4)
    for first in range(0, 640, 64):
        found = windows[first : first + 64]
        assert found[:, 0, 0].tolist() == [16 * k for k in range(first, first + 64)]
    assert array.stats.encoded_bytes < 10 * (64 * 4 + 16) * 16
    assert len(windows.blocks) == 4  # to shuffle by, though it is one chunk


def test_far_away_a_batch_is_asked_for_at_once() -> None:
    driver = FarDriver()
    array = stored(driver, 20)
    windows = Windows({"a": array, "b": array}, 30)
    assert windows.remote
    chosen = np.random.default_rng(1).integers(0, len(windows), 16)
    driver.reset()
    found = windows[chosen]
    assert np.array_equal(found["a"], model(chosen, 30))
    assert np.array_equal(found["b"], found["a"])
    needed = {row // 20 for s in chosen for row in range(s, s + 30)}
    asked = [key for verb, key in driver.sent if verb == "get" and key.startswith("c/")]
    assert len(asked) == 2 * len(needed)  # each of the two arrays
    assert driver.most == driver.capabilities.concurrency


# -- torch's own loader ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_with_workers(tmp_path: Path, method: str) -> None:
    array = stored(tmp_path / "a")
    np.asarray(array)  # the parent has read before
    windows = Windows({"x": array}, 16, 8, boundaries=[403, 404])
    loader = DataLoader(
        windows,
        batch_size=10,
        shuffle=True,
        num_workers=2,
        multiprocessing_context=method,
        timeout=60,
    )
    starts = []
    for batch in loader:
        assert isinstance(batch["x"], torch.Tensor)
        for window in batch["x"].numpy():
            start = int(window[0, 0]) // 4
            assert np.array_equal(window, VALUES[start : start + 16])
            starts.append(start)
    assert sorted(starts) == windows.starts().tolist()


def test_items_for_torch_are_tensors_of_their_own_dtype() -> None:
    small = stash.create({}, (20, 2), "bfloat16", chunks=(4, 2))
    small[...] = np.arange(40).reshape(20, 2).astype(ml_dtypes.bfloat16)
    windows = Windows(small, 5)
    items = windows.__getitems__([3, -1, 3])
    assert [item.dtype for item in items] == [torch.bfloat16] * 3
    assert items[1].shape == (5, 2)
    assert items[0].float().tolist() == np.arange(6, 16).reshape(5, 2).tolist()
    (batch,) = DataLoader(windows, batch_size=16)
    assert batch.shape == (16, 5, 2)
    with pytest.raises(InvalidSelection, match="row 16 is out of bounds for 16 rows"):
        windows.__getitems__([0, 16])
    with pytest.raises(InvalidSelection):
        windows[16]
    with pytest.raises(InvalidSelection):
        windows[[1.5]]


def test_damage_in_a_worker_arrives_with_its_place(tmp_path: Path) -> None:
    array = stored(tmp_path / "a")
    (tmp_path / "a" / "c" / "3" / "0").write_bytes(b"no chunk")
    loader = DataLoader(Windows(array, 16), batch_size=200, num_workers=1, timeout=60)
    with pytest.raises(Corrupt) as error:
        list(loader)
    assert error.value.chunk == (3, 0)


def test_pickles_are_small_and_start_afresh(tmp_path: Path) -> None:
    array = stored(tmp_path / "a", cache="1MiB")
    ends = stash.create(tmp_path / "ends", (40,), "i8")
    ends[...] = np.sort(np.random.default_rng(0).integers(0, ROWS, 40))
    windows = Windows({"x": array}, 9, boundaries=stash.open(tmp_path / "ends"))
    list(windows[:50]["x"])
    assert len(windows.blocks) > 0
    data = pickle.dumps(windows)
    assert len(data) < 2048
    again = pickle.loads(data)
    assert len(again) == len(windows)
    assert np.array_equal(again[5:9]["x"], windows[5:9]["x"])
    assert again.fingerprint == windows.fingerprint != Windows({"x": array}, 9).fingerprint
    assert Windows(array, 9).fingerprint != Windows(array, 9, 2).fingerprint
    mask = np.random.default_rng(0).random(ROWS) < 0.3  # 300 episodes
    carried = Windows({"x": array}, 3, boundaries=mask)
    data = pickle.dumps(carried)
    assert len(data) - len(str(tmp_path)) < 1200  # not a number for each
    assert pickle.loads(data).starts().tolist() == carried.starts().tolist()
    assert len(pickle.loads(pickle.dumps(Windows(array, 3, boundaries=[])))) == ROWS - 2
