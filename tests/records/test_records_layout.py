"""The layout of records: chunks in steps of rows, codecs by field, and a terabyte of nothing."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid, NotFound, Unsupported
from tensorstash.testing.counting import CountingDriver
from tests.support.remote import remote

# -- layout ------------------------------------------------------------------------------------


def test_chunks_are_steps_of_rows() -> None:
    records = stash.create_records(
        {},
        {"image": ((84, 84, 3), "u1"), "label": "i4", "wide": ((4096, 4096), "f4"), "s": str},
        1000,
        rows_per_chunk=64,
    )
    assert records["image"].chunks == (64, 84, 84, 3)
    assert records["label"].chunks[0] % 64 == 0
    assert 16 << 10 <= records["label"].chunks[0] * 4 <= 32 << 10
    assert records["wide"].chunks[0] == 64  # a wide row is itself cut
    assert records["wide"].chunks[1:] != (4096, 4096)
    chosen = stash.create_records({}, {"image": ((84, 84, 3), "u1")})
    assert 256 << 10 <= np.prod(chosen["image"].chunks) <= 512 << 10
    exact = stash.create_records({}, {"a": "i4", "b": {"c": "i4"}}, rows_per_chunk={"b": 7})
    assert exact["b/c"].chunks == (7,)


def test_shards_codecs_and_fill_by_field(tmp_path: Path) -> None:
    records = stash.create_records(
        tmp_path / "r",
        {"a": ((4,), "i4"), "b": "f4", "in": {"c": "i2"}, "s": str, "t": stash.ragged("i4")},
        10,
        rows_per_chunk={"a": 2, "b": 3, "in/c": 5},
        rows_per_shard=6,
        codecs={"a": "zstd", ("in", "c"): None},
        fill_value={"a": 7, "in/c": -1},
    )
    assert (records["a"].chunks, records["a"].shards) == ((2, 4), (6, 4))
    assert (records["b"].chunks, records["b"].shards) == ((3,), (6,))
    assert (records["in/c"].chunks, records["in/c"].shards) == ((5,), (10,))
    text = stash.create_records({}, {"s": str, "b": bytes}, codecs={"s": "gzip"})
    assert [codec.name for codec in text["s"].codecs] == ["vlen-utf8", "gzip", "crc32c"]
    assert [codec.name for codec in text["b"].codecs] == ["vlen-bytes", "zstd", "crc32c"]
    raw = stash.create_records({}, {"s": str, "a": "i4", "t": stash.ragged("i4")}, codecs=None)
    assert [codec.name for codec in raw["s"].codecs] == ["vlen-utf8"]
    assert [codec.name for codec in raw["a"].codecs] == ["bytes"]
    inner = records["a"].codecs[0].codecs
    assert [codec.name for codec in inner] == ["bytes", "zstd", "crc32c"]
    assert records[9]["a"].tolist() == [7] * 4
    assert records[9]["in"]["c"] == -1
    rows = [{"a": [i] * 4, "b": i, "in": {"c": i}, "s": str(i), "t": [i] * i} for i in range(9)]
    assert records.extend(rows) == 10
    records[3] = rows[5]
    again = stash.open_records(tmp_path / "r")
    assert again["a"][:, 0].tolist() == [7, 7, 7, 5, *[7] * 6, *range(9)]
    assert again[:]["t"][12].tolist() == [2, 2]
    assert again[[18, 3]]["s"].tolist() == ["8", "5"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rows_per_chunk": 0}, "0 is not a number of rows"),
        ({"rows_per_chunk": 1.5}, "1.5 is not a number of rows"),
        ({"rows_per_chunk": {"a": -1}}, "-1 is not a number"),
        ({"rows_per_chunk": {"nope": 1}}, "no field 'nope'"),
        ({"rows_per_shard": True}, "True is not a number"),
        ({"codecs": "nope"}, "field 'a'.*nope"),
        ({"codecs": {"nope": "zstd"}}, "no field 'nope'"),
        ({"fill_value": "x"}, "field 'a'"),
        ({"fill_value": {"nope": 1}}, "no field 'nope'"),
        ({"fill_value": {"s": "x"}}, "field 's' has no fill value"),
        ({"codecs": {"s": "nope"}}, "field 's'.*nope"),
        ({"chunks": 3}, "no option 'chunks'; there are rows_per_chunk"),
        ({"attributes": {"tensorstash": 1}}, "choose another name"),
        ({"attributes": 3}, "attributes are a dict"),
        ({"attributes": {"x": {1}}}, "set"),
        ({"threads": 0}, "threads"),
        ({"cache": "lots"}, "size in bytes"),
    ],
    ids=repr,
)
def test_options_that_are_refused(options: Any, match: str) -> None:
    place: dict[str, bytes] = {}
    with pytest.raises((Invalid, Unsupported), match=match) as caught:
        stash.create_records(place, {"a": "i4", "s": str}, **options)
    assert "\n" not in str(caught.value)
    assert place == {}


def test_attributes(tmp_path: Path) -> None:
    records = stash.create_records(tmp_path / "r", {"a": "i4"}, 2, attributes={"label": "cat"})
    assert dict(records.attrs) == {"label": "cat"}
    records.attrs["n"] = [1, {"x": None}]
    records.append({"a": 1})
    del records.attrs["label"]
    assert dict(stash.open_records(tmp_path / "r").attrs) == {"n": [1, {"x": None}]}
    for change in (
        lambda: records.attrs.__setitem__("tensorstash", {}),
        lambda: records.attrs.update(tensorstash=1),
    ):
        with pytest.raises(Invalid, match="choose another name"):
            change()
    with pytest.raises(NotFound):
        del records.attrs["tensorstash"]
    assert len(stash.open_records(tmp_path / "r")) == 3


# -- a terabyte --------------------------------------------------------------------------------

TERABYTE: dict[str, Any] = {
    "obs": ((84, 84, 3), "uint8"),
    "tok": stash.ragged("int32"),
    "s": str,
    "j": stash.json,
    "in": {"obs": ((84, 84, 3), "uint8"), "x": ((1024,), "bfloat16")},
}
ROWS = 24_000_000


@pytest.mark.parametrize("kind", ["file", "memory", "redis", "s3fs", "obstore"])
def test_a_terabyte_costs_a_few_documents(kind: str, request: Any, tmp_path: Path) -> None:
    place: Any = {"file": str(tmp_path / "r"), "memory": {}}.get(kind)
    options = None
    if place is None:
        found = remote(kind, request.getfixturevalue)
        place, options = found.fresh(), found.options
    driver = CountingDriver(stash.location.resolve(place, options))
    stash.create_records(MemoryDriver(), TERABYTE, 10)  # what is imported on first use
    tracemalloc.start()
    records = stash.create_records(driver, TERABYTE, ROWS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records["obs"].nbytes + records["in/obs"].nbytes + records["in/x"].nbytes > 10**12
    assert driver.writes.nbytes < 100_000
    assert driver.writes.keys <= 10
    assert peak < 50 << 20
    driver.reset()
    again = stash.open_records(driver)
    assert driver.reads.calls == driver.reads.keys == 1
    assert sum(count.calls for count in driver.counts.values()) == 1
    assert len(again) == ROWS
    again = stash.open_records(driver, "r+")
    again[ROWS - 1] = {**again[0], "s": "last", "tok": [1, 2]}
    assert again[-1]["s"] == "last"
    assert again[-1]["tok"].tolist() == [1, 2]
    assert again.append(again[-1]) == ROWS


def test_memory_of_a_terabyte_in_a_process_of_its_own(tmp_path: Path) -> None:
    script = """
import resource, sys, numpy, tensorstash as stash
stash.create_records({}, {"a": "i4", "t": stash.ragged("i4")}, 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
r = stash.create_records(sys.argv[1], {"x": ((84, 84, 3), "uint8"), "y": "i8"}, 50_000_000)
r[49_999_999] = {"x": 1 + numpy.zeros((84, 84, 3), "u1"), "y": 3}
assert stash.open_records(sys.argv[1])[-1]["y"] == 3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    args = [sys.executable, "-c", script, str(tmp_path / "r")]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 50 << 20
