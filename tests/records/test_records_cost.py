"""What records cost: a row touches one chunk a field, however many rows there are; each chunk of
a batch is read once; far away all fields travel together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.records import commit
from tensorstash.records.layout import narrow
from tests.support.far import FarDriver
from tests.support.noting import Noting
from tests.support.records_model import EVERY, Model

WIDE: dict[str, Any] = {
    "image": ((32, 32), "uint8"),
    "label": "int64",
    "s": str,
    "j": stash.json,
    "in": {"x": ((4,), "float32")},
}


def filled(rows: int, schema: Any = WIDE, **how: Any) -> tuple[stash.Records, Any]:
    driver = Noting(MemoryDriver())
    records = stash.create_records(driver, schema, **{"rows_per_chunk": 8, **how})
    block = Model(schema).block(np.random.default_rng(0), rows)
    records.extend(block)
    reader = stash.open_records(driver, "r+")
    driver.reset()
    return reader, driver


# -- one row -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1_000, 1_000_000])
def test_a_row_touches_one_chunk_a_field(length: int) -> None:
    driver = Noting(MemoryDriver())
    stash.create_records(driver, WIDE, length, rows_per_chunk=8)
    row = Model(WIDE).row(np.random.default_rng(0))
    for at in (length // 2, length - 1, 3):
        records, other = (stash.open_records(driver, "r+") for _ in range(2))
        driver.reset()
        records[at] = row
        assert len(driver.stored) == len(set(driver.stored)) == 5
        assert sorted(driver.read) == sorted(driver.stored)
        assert not [key for key in driver.read if key.endswith("zarr.json")]
        assert driver.counts["tag"].calls == 1  # are these the fields still?
        assert sum(count.calls for count in driver.counts.values()) == 11
        put = sorted(driver.stored)
        driver.reset()
        records[at]
        assert sorted(driver.read) == put
        assert driver.writes.calls == 0
        for handle, reads in ((other, 1), (records, 1), (records, 0)):  # what it changed it has
            driver.reset()
            handle.select("label")[at] = {"label": 5}
            assert (len(driver.read), len(driver.stored)) == (reads, 1)


def test_the_cost_of_a_ragged_row_does_not_depend_on_their_number() -> None:
    costs = []
    for length in (1_000, 1_000_000):
        driver = Noting(MemoryDriver())
        stash.create_records(driver, {"t": stash.ragged("int32"), "n": "i4"}, length)
        records = stash.open_records(driver, "r+")
        for row in ([1, 2, 3], [4, 5, 6], [7, 8, 9, 10]):
            driver.reset()
            records[length // 2] = {"t": row, "n": 1}
            costs.append((len(driver.read), len(driver.stored)))
        records = stash.open_records(driver, "r+")  # which has no chunk that it changed
        driver.reset()
        assert records.append({"t": [1], "n": 2}) == length
        costs.append((len(driver.read), len(driver.stored)))
        driver.reset()
        records[length // 2]
        costs.append((len(driver.read), len(driver.stored)))
    assert costs[:5] == costs[5:]
    # One of the same shape: values, and a look at the places; the other field's chunk is kept.
    assert costs[1] == (2, 2)
    assert costs[4] == (3, 0)
    assert max(max(cost) for cost in costs) <= 12


def test_opening_is_one_request() -> None:
    _, driver = filled(100, EVERY)
    records = stash.open_records(driver)
    assert driver.read == ["zarr.json"]
    assert sum(count.calls for count in driver.counts.values()) == 1
    records.names, records.schema, len(records), repr(records), records["x"].shape
    source = records.source
    source.fixed, source.row_bytes, source.fingerprint, source.blocks, dict(records.attrs)
    assert sum(count.calls for count in driver.counts.values()) == 1
    driver.reset()
    records.refresh()
    assert driver.read == ["zarr.json"]


# -- several rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(3, 90, 7), [5, 99, 5, 0, 42], np.random.default_rng(0).permutation(100)],
    ids=["all", "steps", "few", "shuffled"],
)
def test_a_batch_reads_each_chunk_once(rows: Any) -> None:
    records, driver = filled(100)
    chosen = np.arange(100)[rows]
    wanted = Counter(
        key
        for path in records.names
        for key in {
            f"{path}/c/{i // records.source.table.catalog.chunk_rows(path)}"
            + "/0" * len(records.fields[path].shape)
            for i in chosen
        }
    )
    records[rows]
    assert Counter(driver.read) == wanted
    # Decoded chunks of narrow fields are kept.
    catalog = records.source.table.catalog
    again = Counter(key for key in wanted if not narrow(catalog, key.split("/c/")[0]))
    assert 0 < len(again) < len(wanted)
    driver.reset()
    records.where(rows)[:]
    assert Counter(driver.read) == again
    driver.reset()
    records.where(rows).source.take(np.arange(len(chosen)))
    assert Counter(driver.read) == again
    # What others write is seen all the same.
    other = stash.open_records(driver, "r+")
    other.select("label")[int(chosen[0])] = {"label": 99}
    driver.reset()
    assert records[int(chosen[0])]["label"] == 99
    assert driver.read.count("label/c/0") == 1


def test_blocks_of_wide_rows_decode_narrow_chunks_once() -> None:
    driver = Noting(MemoryDriver())
    schema = {"image": ((64, 64), "uint8"), "label": "int64", "caption": stash.ragged("uint8")}
    records = stash.create_records(driver, schema, rows_per_chunk=8)
    rng = np.random.default_rng(0)
    records.extend(
        {
            "image": rng.integers(0, 9, (512, 64, 64), "uint8"),
            "label": np.arange(512),
            "caption": [np.arange(i % 7, dtype="uint8") for i in range(512)],
        }
    )
    records = stash.open_records(driver)
    assert len(records.source.blocks) == 64
    driver.reset()
    seen = [batch["label"] for batch in records.iter_batches(32, shuffle=True, prefetch=0)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(512))
    assert max(Counter(driver.read).values()) == 1
    for name in ("label", "caption"):
        assert sum(key.startswith(name) for key in driver.read) < 64


def test_iteration_reads_each_chunk_once() -> None:
    records, driver = filled(100)
    assert len({records.source.table.catalog.chunk_rows(path) for path in records.names}) > 2
    for view in (records, records.where(slice(13, 90)), records.select("label")):
        driver.reset()
        assert sum(1 for _ in view) == len(view)
        assert max(Counter(driver.read).values(), default=0) <= 1
    driver.reset()
    for name in ("label", "s", "j"):
        list(records.where(slice(13, 90))[name])
        list(records[name])
    assert max(Counter(driver.read).values(), default=0) <= 2


def test_rows_are_read_into_memory_that_is_given() -> None:
    records, _ = filled(100)
    fixed = records.source.fixed.items()
    out = {name: np.empty((20, *shape), dtype) for name, (shape, dtype) in fixed}
    found = records.source.take(np.arange(10, 30), out)
    assert all(found[name] is out[name] or found[name].base is out[name] for name in out)
    again = records[10:30]
    assert np.array_equal(out["image"], again["image"])
    assert np.array_equal(out["in/x"], again["in"]["x"], equal_nan=True)
    assert found["s"].tolist() == again["s"].tolist()


def test_whole_chunks_are_put_without_a_read() -> None:
    records, driver = filled(0)
    block = Model(WIDE).block(np.random.default_rng(0), 128)
    records.extend(block)
    assert not [key for key in driver.read if "/c/" in key]
    assert max(Counter(driver.stored).values()) == 1
    driver.reset()
    records[:] = block
    # Chunks that reach beyond the last row: another handle may know more rows.
    edges = {f"{path}/c/0" for path in ("label", "in/x")}
    assert {key.removesuffix("/0") if "x" in key else key for key in driver.read} == edges
    assert driver.writes.keys == len(set(driver.stored)) == len(driver.stored)


# -- far away ----------------------------------------------------------------------------------


def far(rows: int, **how: Any) -> tuple[stash.Records, FarDriver]:
    driver = FarDriver(concurrency=16)
    records = stash.create_records(driver, EVERY, rows_per_chunk=4, **how)
    if rows:
        records.extend(Model(EVERY).block(np.random.default_rng(0), rows))
    found = stash.open_records(driver, "r+")
    driver.reset()
    return found, driver


def test_fields_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    records, driver = far(10)
    arrays = len(records.source.table.catalog.specs)
    with rounds(driver, monkeypatch) as count:
        records[3]
        assert count() == 2  # values of a ragged row are known only after its place
        assert len(driver.sent) <= arrays
        records[[7, 1, 9]]
        assert count() == 4
        records.select("n")[3]
        assert count() == 5


def test_rows_travel_together_there(monkeypatch: pytest.MonkeyPatch) -> None:
    records, driver = far(10)
    model = Model(EVERY)
    with rounds(driver, monkeypatch) as count:
        records.extend(model.block(np.random.default_rng(1), 3))
        # Values: lock, document, chunk (read, put), document (read, put). Then all fields: lock,
        # document, chunks (read, put), document. Then the fields' own documents (read, put).
        assert count() <= 13
    with rounds(driver, monkeypatch) as count:
        records.select("x", "n", "cap", "meta", "next")[4] = {
            name: value
            for name, value in model.row(np.random.default_rng(2)).items()
            if name.partition("/")[0] in ("x", "n", "cap", "meta", "next")
        }
        assert count() == 2


@contextmanager
def rounds(driver: FarDriver, patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Counts round trips of requests that wait for each other: those of one window, and of
    threads beside each other, are one. Threads run one after another here, with a clock each."""
    clock = [0]

    def tick() -> None:
        clock[0] += 1

    def spread(blocks: Any, make_work: Any, threads: int, waits: bool = False) -> None:
        begin, end = clock[0], clock[0]
        work = make_work()
        for block in blocks:
            clock[0] = begin if threads > 1 else clock[0]
            work(block)
            end = max(end, clock[0])
        clock[0] = end

    def ticking(plain: Any) -> Any:
        def request(*args: Any, **options: Any) -> Any:
            tick()
            return plain(*args, **options)

        return request

    def window(plain: Any) -> Any:
        def requests(items: Any) -> Any:
            asked = list(items)
            if asked:
                tick()
            now = clock[0]
            yield from plain(iter(asked))
            clock[0] = now

        return requests

    with patch.context() as inside:
        inside.setattr(commit, "spread", spread)
        for verb in ("get_tagged", "put", "tag", "lock", "list", "list_dir", "delete"):
            inside.setattr(driver, verb, ticking(getattr(driver, verb)))
        for verb in ("get_many_tagged", "put_each"):
            inside.setattr(driver, verb, window(getattr(driver, verb)))
        many = driver.put_many
        inside.setattr(driver, "put_many", lambda items: list(window(lambda i: [many(i)])(items)))
        yield lambda: clock[0]


def test_blocks_of_large_ragged_rows_are_small_beside_whatever_fields() -> None:
    schema = {"jpeg": stash.ragged("uint8"), "caption": str, "label": "int64"}
    driver = Noting(MemoryDriver())
    records = stash.create_records(driver, schema)
    size, count = 60_000, 256
    with records.writer() as writer:
        for i in range(count):
            writer.append({"jpeg": np.full(size, i, "uint8"), "caption": f"the {i}", "label": i})
    records = stash.open_records(driver)
    # Half a megabyte or so each, not chunks of captions.
    assert 16 <= len(records.source.blocks) <= 64
    driver.reset()
    seen = []
    for batch in records.iter_batches(16, shuffle=True, prefetch=0):
        for jpeg, caption, label in zip(*batch.values(), strict=True):
            assert jpeg.shape == (size,)
            assert set(jpeg[:3].tolist()) == {label}
            assert caption == f"the {label}"
            seen.append(label)
    assert sorted(seen) == list(range(count))
    read = Counter(driver.read)
    assert max(n for key, n in read.items() if not key.startswith("jpeg/values")) == 1


def test_blocks_of_ragged_rows_go_by_what_rows_have() -> None:
    for size, rows, blocks in ((100_000, 64, 8), (1_000, 2_000, 4), (10, 20_000, 2)):
        records = stash.create_records(MemoryDriver(), {"t": stash.ragged("uint8"), "n": "int64"})
        values = np.zeros(size * rows, np.uint8)
        places = np.arange(rows + 1, dtype=np.int64) * size
        records.extend({"t": stash.Ragged(values, places), "n": np.arange(rows)})
        assert abs(records.source.row_bytes - size) <= 24
        assert blocks <= len(records.source.blocks) <= 3 * blocks
        seen = np.concatenate([b["n"] for b in records.iter_batches(64, shuffle=True)])
        assert sorted(seen.tolist()) == list(range(rows))
