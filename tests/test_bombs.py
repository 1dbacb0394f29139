"""Headers that claim far more than a chunk can hold: refused before anything is allocated."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tests.damage import noticed

ROOT = Path(__file__).resolve().parent.parent
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


def test_the_process_stays_small(tmp_path: Path) -> None:
    # tracemalloc does not see what C libraries take; the kernel does.
    code = """
import resource
import tensorstash as stash
from tests.test_bombs import BOMBS
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stores = []
for chain, dtype, bomb in BOMBS.values():
    store = {}
    array = stash.create(store, (4, 8), dtype, chunks=(4, 4), codecs=chain)
    array[...] = 5
    store["c/0/1"] = bomb
    stores.append(store)
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
