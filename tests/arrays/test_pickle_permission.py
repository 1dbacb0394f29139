"""Pickles run code: where a handle is allowed to decode them, and where nobody is."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.array import Array
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid, StashError, Unsupported
from tensorstash.handle import Settings
from tensorstash.metadata.node import update_attributes
from tests.arrays.test_handle_settings import LITTLE, PICKLED, canary, driver, made, put, stored
from tests.support.far import FarDriver

__all__ = ["canary", "driver"]  # fixtures, found by name


def pickled(driver: Driver, chunk: bytes) -> None:
    """An array of v2 whose chunk is a pickle."""
    document = {"zarr_format": 2, "shape": [4], "chunks": [4], "order": "C", "compressor": None}
    driver.put(".zarray", json.dumps({**document, **PICKLED}).encode())
    driver.put("0", chunk)


def test_a_handle_that_may_run_pickles_still_may_after_every_change(driver: Driver) -> None:
    pickled(driver, pickle.dumps(np.array([{"a": 1}] * 4, object)))
    array = stash.open(driver, "r+", allow_pickle=True)
    for _ in range(2):
        array.attrs["n"] = 1
        assert array.refresh()[3] == {"a": 1}
        start = array.append(np.array([{"b": 2}] * 3, object))
        assert array[start] == {"b": 2}
        array.resize((start,))
        with array.writer() as writer:
            writer[2] = "two"
        assert array[2] == "two"
    if isinstance(driver, FarDriver) or driver.scheme == "s3":
        return  # the one does not pickle, the other leaves its secrets behind
    again = pickle.loads(pickle.dumps(array))
    assert again[3] == {"a": 1}


def test_attributes_need_no_permission_to_run_pickles(canary: bytes) -> None:
    driver = MemoryDriver({})
    pickled(driver, canary)
    Array(driver, "", Settings("r+")).attrs["a"] = 1
    update_attributes(driver, "", lambda old: {**old, "b": 2})
    assert json.loads(driver.get(".zattrs") or b"") == {"a": 1, "b": 2}
    assert stored(driver)["0"] == canary
    unread = Array(driver, "", Settings("r+"))
    for call in (
        lambda: unread[...],
        lambda: unread.append(np.zeros(1, object)),
        lambda: unread.resize((2,)),
        lambda: unread.attrs["a"],
        lambda: stash.open(driver, "r+"),
    ):
        with pytest.raises(Unsupported, match="allow_pickle=True"):
            call()


def nested(config: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    chain: list[dict[str, Any]] = [config]
    for _ in range(depth):
        inner = {"chunk_shape": [4], "codecs": chain, "index_codecs": [LITTLE]}
        chain = [{"name": "sharding_indexed", "configuration": inner}]
    return chain


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("at", ["serializer", "after", "before", "index_codecs"])
@pytest.mark.parametrize("allowed", [False, True])
def test_v3_has_no_place_for_pickles(canary: bytes, depth: int, at: str, allowed: bool) -> None:
    """Zarr v3 has no object arrays of pickles, so nobody may ask for them either."""
    bad: dict[str, Any] = {"name": "numcodecs.pickle", "configuration": {"protocol": 4}}
    chain = {"serializer": [bad], "after": [LITTLE, bad], "before": [bad, LITTLE]}.get(at, [LITTLE])
    codecs = nested(chain[0], depth) if len(chain) == 1 else chain
    if depth and len(chain) > 1:
        codecs = nested(chain[0], depth)
        codecs[0]["configuration"]["codecs"] = chain
    if at == "index_codecs":
        codecs = nested(LITTLE, depth + 1)
        codecs[0]["configuration"]["index_codecs"] = [LITTLE, bad]
    for dtype in ("float64", "string", "variable_length_bytes"):
        driver = MemoryDriver({})
        made(driver, 3)
        put(driver, "zarr.json", {"data_type": dtype, "codecs": codecs, "fill_value": 0})
        driver.put("c/0", canary)
        with pytest.raises(StashError):
            stash.open(driver, allow_pickle=allowed)[...]


def test_no_codec_of_numcodecs_but_pickle_runs_what_is_stored(canary: bytes) -> None:
    """Every registered codec as filter and as compressor, before and after others, on chunks that
    are pickles: each reads or refuses; none runs."""
    from numcodecs import registry

    names = sorted({*registry.codec_registry, *registry.entries})
    assert {"pickle", "json2", "msgpack2", "vlen-array", "categorize"} <= set(names)
    options = {
        "astype": {"encode_dtype": "|O", "decode_dtype": "|O"},
        "delta": {"dtype": "|O"},
        "fixedscaleoffset": {"offset": 0, "scale": 1, "dtype": "|O", "astype": "|O"},
        "quantize": {"digits": 1, "dtype": "|O", "astype": "|O"},
        "categorize": {"labels": ["a"], "dtype": "|O", "astype": "u1"},
        "vlen-array": {"dtype": "|O"},
    }
    base = {"zarr_format": 2, "shape": [4], "chunks": [4], "order": "C", "fill_value": None}
    for name in names:
        one = {"id": name, **options.get(name, {})}
        for filters, compressor in (
            ([one], None),
            (None, one),
            ([{"id": "vlen-bytes"}, one], None),
            ([one, {"id": "zlib"}], None),
            ([{"id": "json2"}, {"id": "pickle"}], None),
            ([{"id": "zlib"}], one),
        ):
            for dtype in ("|O", "<f8", "|S8"):
                document = {**base, "dtype": dtype, "filters": filters, "compressor": compressor}
                driver = MemoryDriver({".zarray": json.dumps(document).encode(), "0": canary})
                with suppress(StashError):
                    stash.open(driver)[...]


def test_members_of_a_group_have_its_permission_and_no_other(canary: bytes) -> None:
    for consolidated in (False, True):
        driver = MemoryDriver({".zgroup": b'{"zarr_format": 2}'})
        inner = MemoryDriver({})
        pickled(inner, canary)
        for key, value in stored(inner).items():
            driver.put(f"a/{key}", value)
        if consolidated:
            stash.open_group(driver, "r+", allow_pickle=True).consolidate()
        for mode in ("r", "r+"):
            group: Any = stash.open_group(driver, mode)
            for ask in (lambda g: g["a"], lambda g: dict(g.items()), lambda g: g.arrays()):
                with pytest.raises(Unsupported, match="allow_pickle=True"):
                    ask(group)
            assert group.keys() == ["a"]
            assert "a" in group
            assert "Unsupported: cannot be opened" in group.tree()
            allowed: Any = stash.open_group(driver, mode, allow_pickle=True)
            assert allowed["a"].settings.allow_pickle
            assert pickle.loads(pickle.dumps(allowed["a"])).settings.allow_pickle
            assert not pickle.loads(pickle.dumps(group)).settings.allow_pickle


def test_below_an_array_of_pickles_nothing_is_made() -> None:
    driver = MemoryDriver({".zgroup": b'{"zarr_format": 2}'})
    inner = MemoryDriver({})
    pickled(inner, b"")
    for key, value in stored(inner).items():
        driver.put(f"a/{key}", value)
    with pytest.raises(Invalid, match="is an array"):
        stash.open_group(driver, "r+").create("a/b", (3,), "f8")
