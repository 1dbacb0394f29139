"""Arrays to damage, and what their errors must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt

DATA = np.random.default_rng(0).integers(1, 60000, (12, 8)).astype("uint16")
KEY = "c/1/0"  # rows 4 to 8, columns 0 to 4: chunk or shard (1, 0)
HERE = np.s_[4:8, 0:4]
ELSEWHERE = (np.s_[:4], np.s_[8:], np.s_[:, 4:])

CHECKED: dict[str, Any] = {
    "auto": "auto",
    "zstd": "zstd",
    "gzip": "gzip",
    "crc32c": "crc32c",
    "transposed": [{"name": "transpose", "configuration": {"order": [1, 0]}}, "crc32c"],
    "big endian": [{"name": "bytes", "configuration": {"endian": "big"}}, "crc32c"],
}
UNCHECKED: dict[str, Any] = {
    "raw": None,
    "blosc": ["blosc"],
    "zstd alone": ["zstd"],
    "gzip alone": ["gzip"],
    "lz4": ["numcodecs.lz4"],
    "zlib": ["numcodecs.zlib"],
    "bz2": ["numcodecs.bz2"],
    "lzma": ["numcodecs.lzma"],
    "base64": ["numcodecs.base64"],
    "delta": [{"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}, "numcodecs.zlib"],
}
CHAINS = {**CHECKED, **UNCHECKED}


def stored(chain: Any, sharded: bool = False) -> tuple[dict[str, Any], stash.Array]:
    store: dict[str, Any] = {}
    layout = {"chunks": (2, 2), "shards": (4, 4)} if sharded else {"chunks": (4, 4)}
    array = stash.create(store, DATA.shape, DATA.dtype, codecs=chain, **layout)
    array[...] = DATA
    return store, stash.open(store, "r+")


def noticed(call: Callable[[], Any], key: str, chunk: tuple[int, ...]) -> Corrupt:
    """The error of ``call``, which must say where the damage is and what to do, in one line."""
    with pytest.raises(Corrupt) as caught:
        call()
    error, text = caught.value, str(caught.value)
    assert (error.key, error.chunk) == (key, chunk), text
    assert error.codec, text
    assert repr(key) in text, text
    assert str(chunk) in text, text
    assert "restore it" in text, text
    assert "\n" not in text, text
    return error
