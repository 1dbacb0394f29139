"""Headers that claim far more than a chunk can hold: refused before anything is allocated."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt, Invalid, Unsupported
from tests.support.damage import noticed
from tests.support.project import ROOT

HUGE = 100 << 30
ZSTD = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", HUGE) + b"\x03\x00\x00\x07"  # one RLE block
BLOSC = struct.pack("<4B3I", 2, 1, 1, 2, 2**31 - 1, 2**31 - 1, 64) + bytes(48)
BOMBS: dict[str, tuple[Any, str, bytes]] = {
    "blosc": (["blosc"], "uint16", BLOSC),
    "zstd": (["zstd"], "uint16", ZSTD),
    "zstd without size": (
        ["zstd"],
        "uint16",
        b"\x28\xb5\x2f\xfd\x00\xff" + b"\xfa\xff\x0f\7" * 900,
    ),
    "gzip": (["gzip"], "uint16", gzip.compress(bytes(300 << 20), 1)),
    "zlib": (["numcodecs.zlib"], "uint16", zlib.compress(bytes(300 << 20), 1)),
    "lz4": (["numcodecs.lz4"], "uint16", struct.pack("<I", 2**31 - 1) + bytes(60)),
    "strings": (None, "string", struct.pack("<I", 2**32 - 1) + bytes(60)),
    "a string": (None, "string", struct.pack("<18I", 16, 2**31 - 1, *[0] * 16)),
    "strings in zstd": (["zstd"], "string", ZSTD),
    "strings in blosc": (["blosc"], "string", BLOSC),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_claims_100_gb(name: str) -> None:
    chain, dtype, bomb = BOMBS[name]
    store: dict[str, Any] = {}
    array = stash.create(store, (4, 8), dtype, chunks=(4, 4), codecs=chain)
    array[...] = 5
    store["c/0/1"] = bomb
    tracemalloc.start()
    try:
        noticed(lambda: array[...], "c/0/1", (0, 1))
        noticed(lambda: array.__setitem__((0, 5), 5), "c/0/1", (0, 1))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert store["c/0/1"] is bomb
    array[:, 4:] = 5
    assert (array[...] == stash.create({}, (), dtype, fill_value=array[0, 0])[...]).all()


def changed(store: dict[str, Any], shape: Any) -> dict[str, Any]:
    """``store`` with other chunks (shards, where there are shards) in its metadata."""
    document = json.loads(store["zarr.json"])
    document["chunk_grid"]["configuration"]["chunk_shape"] = shape
    return {**store, "zarr.json": json.dumps(document).encode()}


@pytest.mark.parametrize("n", [2**24, 2**31, 2**40, 2**62])
def test_metadata_that_claims_a_shard_of_many_chunks(n: int) -> None:
    store: dict[str, Any] = {}
    stash.create(store, (4, 4), "u1", chunks=(2, 2), shards=(4, 4))[...] = 3
    store = changed(store, [n, 4])
    tracemalloc.start()
    try:
        for use in (
            lambda: stash.open(store).chunks,
            lambda: stash.open(store)[0, 0],
            lambda: stash.open(store, "r+").__setitem__((0, 0), 1),
            lambda: stash.create({}, (4, 4), "u1", chunks=(2, 2), shards=(n, 4)),
        ):
            with pytest.raises((Unsupported, Invalid), match=f"{n}"):
                use()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codecs", ["auto", ["zstd"], ["gzip"]])
def test_metadata_that_claims_a_huge_chunk(codecs: Any) -> None:
    store: dict[str, Any] = {}
    stash.create(store, (4,), "u2", chunks=4, codecs=codecs)[...] = 3
    for n in (2**33, 2**44, 2**61):
        claimed = changed(store, [n])
        with pytest.raises((Corrupt, MemoryError)):
            stash.open(claimed)[...]
        with pytest.raises((Corrupt, Invalid, MemoryError)):
            stash.open(claimed, "r+")[0] = 1
    with pytest.raises(Invalid, match="no memory can hold a chunk"):
        stash.open(changed(store, [2**62]))[0]


def test_the_process_stays_small(tmp_path: Path) -> None:
    # tracemalloc does not see what C libraries take; the kernel does.
    code = """
import resource
import tensorstash as stash
from tests.faults.test_bombs import BOMBS, changed
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stores = []
for chain, dtype, bomb in BOMBS.values():
    store = {}
    array = stash.create(store, (4, 8), dtype, chunks=(4, 4), codecs=chain)
    array[...] = 5
    store["c/0/1"] = bomb
    stores.append(store)
for codecs in ("auto", ["zstd"], ["gzip"]):
    store = {}
    stash.create(store, (4,), "u2", chunks=4, codecs=codecs)[...] = 3
    stores.append(changed(store, [2**30]))
before = peak()
for store in stores:
    try:
        stash.open(store)[...]
    except stash.Corrupt:
        continue
    raise SystemExit("not noticed")
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10, f"{done.stdout.strip()} KiB more"
