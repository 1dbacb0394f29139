"""The kernel reads the indices of shards, and leaves to Python those that are damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.engine import native
from tests.support.native import needs_kernel, outcome, turned
from tests.support.oracle import same


@needs_kernel
@pytest.mark.parametrize("place", ["files", "shm"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("location", ["start", "end"])
def test_indices_of_shards_are_read_once(
    place: str, checksum: bool, location: str, tmp_path: Path
) -> None:
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    name: Any = {"files": tmp_path / "a", "shm": f"shm://index-{os.getpid()}-{tmp_path.name}"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [8, 8],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}] if checksum else [little],
            "index_location": location,
        },
    }
    writer = stash.create(name[place], (64, 64), "i4", chunks=(16, 16), codecs=[sharding])
    writer[:48] = data[:48]
    writer[3:8, 3:8] = 0
    data[48:] = 0
    data[3:8, 3:8] = 0
    array = stash.open(name[place])
    before = native.counts().get("indices", 0)
    for _ in range(2):
        same(array[...], data)
        assert native.counts().get("indices", 0) - before == 12
    writer[40:, 8:] = 5
    data[40:, 8:] = 5
    same(array[...], data)


@needs_kernel
def test_damaged_indices_of_shards(tmp_path: Path) -> None:
    layout = {"chunks": (4, 4), "shards": (8, 8), "codecs": ["zstd"]}
    stash.save(tmp_path / "a", np.arange(256, dtype="i4").reshape(16, 16), **layout)
    file = tmp_path / "a" / "c" / "1" / "0"
    whole = file.read_bytes()
    index = [whole[:-68], *(whole[at : at + 8] for at in range(len(whole) - 68, len(whole) - 4, 8))]
    assert len(whole) > 68

    def summed(entries: list[bytes]) -> bytes:
        import google_crc32c

        body = b"".join(entries[1:])
        return entries[0] + body + google_crc32c.value(body).to_bytes(4, "little")

    assert summed(index) == whole
    huge, far, most = (n.to_bytes(8, "little") for n in (1 << 40, 1 << 63, (1 << 64) - 1))
    bad = [whole[:40], whole[:-1], whole[:-4] + b"abcd", b"", whole + b"\0"]
    bad += [
        summed([*index[:k], wrong, *index[k + 1 :]])
        for k in range(1, 9)
        for wrong in (huge, far, most)
    ]
    for value in bad:
        file.write_bytes(value)
        told = []
        for on in (True, False):
            with turned(on):
                told.append(outcome(lambda: stash.open(tmp_path / "a")[...]))
        if isinstance(told[1], tuple):
            assert told[0] == told[1]
        else:
            same(told[0], told[1])
