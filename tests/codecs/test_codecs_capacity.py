"""Chunks that a codec cannot hold: refused where an array is made, and read as the fill that
they are where another made it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.codec import ChunkSpec
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.foreign import wrap
from tensorstash.errors import Invalid, NoMemory, StashError

BLOSC, LZ4 = 2**31 - 1 - 16, 0x7E000000


def lz4() -> dict[str, Any]:
    return {"name": "numcodecs.lz4"}


@pytest.mark.parametrize(
    ("most", "options"),
    [
        (BLOSC, {}),
        (BLOSC, {"codecs": "blosc"}),
        (BLOSC, {"codecs": ["numcodecs.blosc"]}),
        (BLOSC, {"zarr_format": 2, "codecs": "blosc"}),
        (LZ4, {"codecs": [lz4(), "crc32c"]}),
        (LZ4 - 4, {"codecs": ["crc32c", lz4()]}),  # a checksum takes four of them
        (LZ4, {"zarr_format": 2, "codecs": {"id": "lz4"}}),
        (LZ4, {"zarr_format": 2, "codecs": None, "filters": [{"id": "lz4"}]}),
        (LZ4 - 4, {"zarr_format": 2, "codecs": None, "filters": [{"id": "crc32"}, {"id": "lz4"}]}),
    ],
    ids=str,
)
def test_what_is_too_large_is_refused_at_creation(most: int, options: dict[str, Any]) -> None:
    place: dict[str, Any] = {}
    with pytest.raises(Invalid, match="smaller chunks"):
        stash.create(place, (2**40,), "uint8", chunks=(most + 1,), **options)
    assert not place
    stash.create(place, (2**40,), "uint8", chunks=(most,), **options)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "V7"])
def test_bytes_count_not_elements(dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    with pytest.raises(Invalid):
        stash.create({}, (2**40,), dtype, chunks=(BLOSC // size + 1,))
    stash.create({}, (2**40,), dtype, chunks=(BLOSC // size,))
    with pytest.raises(Invalid):
        stash.create({}, (3, 2**40), dtype, chunks=(2, BLOSC // size // 2 + 1), order="F")
    # A shard may be larger than its inner chunks may.
    inner = BLOSC // size // 2
    stash.create({}, (2**40,), dtype, chunks=(inner,), shards=(4 * inner,))
    with pytest.raises(Invalid):
        stash.create({}, (2**40,), dtype, chunks=(inner * 3,), shards=(inner * 6,))


@pytest.mark.parametrize("codec", [Blosc(), wrap({"id": "lz4"}), wrap({"id": "blosc"})])
def test_bind_refuses(codec: Any) -> None:
    fill = np.zeros((), "u1")
    with pytest.raises(Invalid, match="at most"):
        codec.bind(ChunkSpec((2**31,), fill.dtype, fill))
    codec.bind(ChunkSpec((2**30,), fill.dtype, fill))


def test_more_text_than_can_be_counted() -> None:
    with pytest.raises(Invalid, match=r"2\*\*32"):
        stash.create({}, (2**40,), str, chunks=(2**32,))


@pytest.mark.parametrize("shards", [None, (2**32,)])
def test_an_array_of_others_reads_as_fill_and_is_not_written(shards: Any) -> None:
    place: dict[str, Any] = {}
    stash.create(place, (2**40,), "uint8", chunks=(2**20,), fill_value=7, shards=shards)
    text = json.dumps(json.loads(bytes(place["zarr.json"])))
    place["zarr.json"] = text.replace(str(2**20), str(2**31)).encode()
    array = stash.open(place, mode="r+")
    assert array[5] == 7 and (array[2**31 - 2 : 2**31 + 2] == 7).all()
    array.attrs["unit"] = "K"
    before = dict(place)
    tracemalloc.start()
    try:
        for write in (
            lambda: array.__setitem__(5, 1),
            lambda: array.__setitem__(slice(2**31 - 1, 2**31 + 1), 1),
            lambda: array.append(np.ones(3, "u1")),
        ):
            with pytest.raises(Invalid, match="at most"):
                write()
        with pytest.raises(Invalid, match="at most"), array.writer() as writer:
            writer[5] = 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # none was allocated
    finally:
        tracemalloc.stop()
    assert place == before
    array.resize((2**20,))
    assert array[5] == 7


@pytest.mark.parametrize("codecs", [None, "auto", "gzip", ["bytes", "crc32c"]], ids=str)
@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_an_absent_chunk_takes_no_memory(codecs: Any, cache: Any, tmp_path: Any) -> None:
    size = 2**44 if codecs != "auto" else BLOSC
    for place in ({}, tmp_path / "a"):
        array = stash.create(
            place, (size,), "uint8", chunks=(size,), codecs=codecs, fill_value=3, cache=cache
        )
        assert array[5] == 3
        assert array[[7, -1]].tolist() == array[size - 1 : size - 3 : -1].tolist() == [3, 3]
        assert array.lazy[10:13].read().tolist() == [3, 3, 3]
        if size == 2**44:
            with pytest.raises(NoMemory):
                array[0] = 1
            with pytest.raises(NoMemory) as caught:
                array[...]
            assert isinstance(caught.value, MemoryError | StashError)
