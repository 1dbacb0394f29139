"""A few hundred stored bytes cannot take all memory: each reader knows how much may come."""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash import limits
from tensorstash.codec import BytesCodec, ChunkSpec, Pipeline
from tensorstash.codecs.filters import Filters
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import resize
from tensorstash.errors import Corrupt, Invalid, NoMemory, StashError, Unsupported
from tensorstash.metadata import trailer
from tensorstash.registry import make_codec
from tensorstash.testing.counting import CountingDriver
from tensorstash.wrapper import LimitedDriver
from tests.support import hostile
from tests.support.far import FarDriver
from tests.support.hostile import in_little_memory, v2, v3

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on memory")


# -- every place of tests/support/hostile.py, in a process that has little memory --------------

TOO_LARGE = {"a chunk of 2^34", "a chunk of 2^34 in zstd", "a chunk of 2^61"}
READ = {"an axis of runs", "64 axes of fewer", "an absent chunk of 2^40"}


@linux
def test_hostile_places_take_little_memory() -> None:
    code = """
        made = [(name, place()) for name, place in hostile.PLACES.items()]
        small(400)
        for name, store in made:
            print(name, "|", hostile.read(store), flush=True)
    """
    lines = in_little_memory(code, 400).splitlines()
    found = dict(line.split(" | ") for line in lines)
    assert set(found) == set(hostile.PLACES)
    assert {name for name, result in found.items() if result == "read"} == READ
    assert {name for name, result in found.items() if result == "NoMemory"} == TOO_LARGE


@linux
def test_what_is_too_large_for_this_machine_says_so() -> None:
    code = """
        from tensorstash.torch import Loader
        small(500)
        def told(call):
            try:
                call()
            except stash.NoMemory as error:
                assert isinstance(error, MemoryError) and "\\n" not in str(error)
                return
            raise SystemExit("it was not noticed")
        for codecs in (None, "zstd"):
            store = {}
            array = stash.create(store, (2**34,), "u1", chunks=(2**34,), codecs=codecs)
            assert array[5] == 0 and array[5:9].tolist() == [0] * 4  # nothing is stored
            assert array.oindex[[1, 2]].tolist() == [0, 0]
            for call in (
                lambda: array[...],
                lambda: array.__setitem__(5, 1),
                lambda: array.__setitem__(slice(None), 1),
                lambda: array.append(np.ones(3, "u1")),
                lambda: next(iter(array)),
                lambda: np.asarray(array),
                lambda: stash.copy(array, {}),
                lambda: array.writer().__enter__().__setitem__(5, 3),
            ):
                told(call)
            assert array.shape == (2**34,) and sorted(store) == ["zarr.json"]
            assert stash.open(store).shape == (2**34,)
        store["c/0"] = b"x"
        rows = stash.create_records({}, {"x": "int64"}, length=10**18)
        told(lambda: rows[:])
        assert rows[5] == {"x": 0}
        for shuffle in (True, False):
            told(lambda: next(iter(Loader(rows, batch_size=4, shuffle=shuffle))))
        huge = stash.create({}, (10**15,), "f4")
        told(lambda: next(iter(Loader(huge, batch_size=4, shuffle=True))))
        raw = stash.create(store, (2**34,), "u1", chunks=(2**34,), codecs=None, overwrite=True)
        store["c/0"] = b"x"
        told(lambda: raw[5])  # a chunk is there: nothing but reading it tells that it is damaged
        print("done")
    """
    assert in_little_memory(code, 500) == "done\n"


@linux
def test_chunks_of_any_number_are_gone_through_one_by_one() -> None:
    code = """
        from itertools import islice
        def empty(*shape, chunk=1):
            grid = {"name": "regular", "configuration": {"chunk_shape": [chunk] * len(shape)}}
            return v3(shape=[*shape], chunk_grid=grid)
        small(200)
        for shape in ((2**62,), (2**63 - 1,) * 64, (2, 2**62), (2**62, 2), (2,) * 64):
            array = stash.open(empty(*shape))
            blocks = islice(array.iter_blocks(absent=True), 3)
            places = [tuple(s.start for s in where) for where, _ in blocks]
            assert len({*places}) == 3 and places == sorted(places), places
            assert [*array.iter_blocks()] == []
        for shape in ((2**62, 0), (0, 2**62)):
            assert [*stash.open(empty(*shape)).iter_blocks()] == []
            stash.copy(empty(*shape), {})
        for shape, key in (((2**62,), "c/3"), ((2**62, 2), "c/1/1"), ((2**63 - 1, 2**62), "c/0/3")):
            for progress in (False, True):
                try:
                    stash.copy({**empty(*shape), key: b"damaged"}, {}, progress=progress)
                except stash.Corrupt as error:
                    assert error.key == key
                else:
                    raise SystemExit("it was not come by")
        print("done")
    """
    assert in_little_memory(code, 200) == "done\n"


@linux
def test_what_no_memory_can_hold_is_said_by_every_use() -> None:
    code = """
        from tensorstash.torch import Loader
        def empty(*shape, chunks=None, **more):
            chunks = chunks or [1] * len(shape)
            grid = {"name": "regular", "configuration": {"chunk_shape": [*chunks]}}
            return stash.open(v3(shape=[*shape], chunk_grid=grid, **more), "r+")
        small(300)
        most = 2**63 - 1
        assert "TiB" in str(empty(*[most] * 64).explain()) + str(empty(*[most] * 64).info())
        text = {"data_type": "string", "fill_value": "", "codecs": [{"name": "vlen-utf8"}]}
        wide = [2**20, 2**34]
        for array in (
            empty(most, most), empty(most, 3), empty(most), empty(2**62), empty(*wide),
            empty(*wide, chunks=[1, 2**34]), empty(2**62, chunks=[2**40]),
            empty(2**62, chunks=[2**62], **text), empty(2, 2**40, chunks=[2, 2**40]),
        ):
            for shuffle in (True, False):
                for pool in ({}, {"pool_bytes": "1MiB"}, {"prefetch": 0}):
                    try:
                        next(iter(Loader(array, batch_size=64, shuffle=shuffle, **pool)))
                    except stash.StashError as error:
                        assert "\\n" not in str(error) and len(str(error)) < 900
                    else:
                        raise SystemExit(f"{array} was loaded")
            try:
                with array.writer() as writer:
                    writer[(0,) * array.ndim] = 1
            except stash.StashError:
                pass
        try:
            next(iter(Loader(empty(*[2] * 64), batch_size=2)))
        except stash.StashError:
            print("done")
    """
    assert in_little_memory(code, 300) == "done\n"


def test_blanks_behind_a_document_are_not_gone_through() -> None:
    for blanks in (b" \t\r\n" * (4 << 20), b" " * (16 << 20), b"\n"):
        data = b"{}" + blanks
        tracemalloc.start()
        try:
            assert trailer.decode(data) == trailer.NONE
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_an_append_that_did_not_end_names_no_more_chunks_than_can_be() -> None:
    grown = stash.create({}, (2**40,), "u1", chunks=(1,)).spec
    before = stash.create({}, (5,), "u1", chunks=(1,)).spec
    assert [*resize._Within((9,), before, grown)] == [(5,), (6,), (7,), (8,)]
    with pytest.raises(Corrupt, match="an append that did not end"):
        resize._check_few(resize._Within((2**40,), before, grown))


# -- what a chain may take ----------------------------------------------------------------------


def spec(dtype: Any, *shape: int, most: int | None = None) -> ChunkSpec:
    kind = np.dtype(dtype)
    return ChunkSpec(shape, kind, np.zeros((), kind), most)


@pytest.mark.parametrize(
    ("filters", "dtype", "most"),
    [
        ([{"id": "packbits"}], "?", 1 + 13),
        ([{"id": "packbits"}] * 2, "?", 1 + 2),
        ([{"id": "packbits"}] * 9, "?", 2),
        ([{"id": "delta", "dtype": "<i4", "astype": "<i2"}], "i4", 200),
        ([{"id": "delta", "dtype": "<i4", "astype": "<i8"}], "i4", 800),
        ([{"id": "astype", "encode_dtype": "<f4", "decode_dtype": "<f8"}], "f8", 400),
        ([{"id": "quantize", "digits": 2, "dtype": "<f8", "astype": "<f4"}], "f8", 400),
        ([{"id": "fixedscaleoffset", "offset": 0, "scale": 1, "dtype": "<f8", "astype": "u1"}],
         "f8", 100),
        ([{"id": "crc32"}], "u1", 104),
        ([], "u1", 100),
    ],
)  # fmt: skip
def test_filters_know_what_they_can_make(filters: Any, dtype: str, most: int) -> None:
    bound = Filters(filters).bind(spec(dtype, 100))
    assert bound.encoded_limit(spec(dtype, 100)) == most
    data = bound.encode(np.zeros(100, dtype))
    assert len(data) <= most
    with pytest.raises(ValueError, match=r"filter|bytes"):
        bound.decode(bytes(most + 1), spec(dtype, 100))


@pytest.mark.parametrize("name", ["zstd", "gzip", "numcodecs.zlib", "numcodecs.bz2"])
@pytest.mark.parametrize("dtype", ["string", "bytes"])
def test_text_that_compresses_well_is_written_and_read(name: str, dtype: str) -> None:
    value = "category" * 4 if dtype == "string" else b"category" * 4
    store: dict[str, Any] = {}
    serializer = "vlen-utf8" if dtype == "string" else "vlen-bytes"
    array = stash.create(store, (200_000,), dtype, chunks=(200_000,), codecs=[serializer, name])
    array[...] = value  # 7 MB, a few KB stored
    assert array[-1] == value
    assert (stash.open(store)[::50_000] == value).all()


@pytest.mark.parametrize("serializer", ["vlen-utf8", "filters"])
def test_a_limit_on_text_holds_for_writers_and_readers(serializer: str) -> None:
    store: dict[str, Any] = {}
    if serializer == "filters":
        how: dict[str, Any] = {
            "zarr_format": 2,
            "filters": [{"id": "vlen-utf8"}, {"id": "zlib", "level": 1}],
            "codecs": None,
        }
    else:
        how = {"codecs": ["vlen-utf8", "zstd"]}
    array = stash.create(store, (4,), str, chunks=(4,), **how)
    text = "x" * 3_000_000
    array[1] = text
    allowed = {"limits": {"chunk": "4MB"}}
    small = {"limits": {"chunk": 2_000_000}}
    assert stash.open(store, **allowed)[1] == text
    with pytest.raises(Corrupt, match="2000000"):
        stash.open(store, **small)[1]
    empty: dict[str, Any] = {}
    tight = stash.create(empty, (4,), str, chunks=(4,), **how, **small)
    with pytest.raises(Invalid, match=r"limits=\{\"chunk\": 30000\d\d\}"):
        tight[1] = text
    assert not [key for key in empty if not key.startswith((".z", "zarr"))]
    assert pickle.loads(pickle.dumps(stash.open(store, **allowed)))[1] == text
    with pytest.raises(Corrupt):
        pickle.loads(pickle.dumps(stash.open(store, **small)))[1]
    assert stash.copy(stash.open(store, **allowed), {})[1] == text


def test_how_much_text_may_come_of_how_much_stored() -> None:
    free, most, ratio = limits.CHUNK_FREE, limits.CHUNK, limits.CHUNK_RATIO
    assert limits.room(None, 65536, 4) == free
    assert limits.room(None, 2 << 20, 4) == ratio * ((2 << 20) + 4)
    assert limits.room(None, 100, 5_000_000) == ratio * 5_000_100  # 5 million equal words
    assert limits.room(None, 700 << 20, 64) == most
    assert limits.room(5, 700 << 20, 64) == 5
    assert limits.room(8 << 30, 100, 4) == 8 << 30


class Doubling(BytesCodec):
    """Makes more than it says that it can."""

    name = "doubling"

    def encode(self, data: Any) -> bytes:
        return bytes(data) * 2

    def decode(self, data: Any, limit: int, out: Any = None) -> Any:
        raise AssertionError("never asked")

    def encoded_limit(self, nbytes: int) -> int:
        return nbytes


def test_nothing_is_written_that_no_reader_would_take() -> None:
    chain = Pipeline([make_codec("bytes"), Doubling()], spec("u1", 8))
    with pytest.raises(Invalid, match=r"'doubling' makes 16 bytes .* the most that is read is 8"):
        chain.encode(np.ones(8, "u1"))


# -- stored chunks of the wrong size --------------------------------------------------------------


def far(driver: Driver) -> Driver:
    return FarDriver(driver)


def near(driver: Driver) -> Driver:
    return driver


class Asking(CountingDriver):
    """Remembers the most that each value was said to have."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.asked: dict[str, list[int | None]] = {}

    def _noted(self, requests: Any) -> Any:
        for request in requests:
            if request.span is None:
                self.asked.setdefault(request.key, []).append(request.most)
            yield request

    def get_many(self, requests: Any) -> Any:
        return super().get_many(self._noted(requests))

    def get_many_tagged(self, requests: Any) -> Any:
        return super().get_many_tagged(self._noted(requests))

    def get_tagged(self, key: str, span: Any = None) -> Any:
        if span is None:
            self.asked.setdefault(key, []).append(None)
        return super().get_tagged(key, span)

    def get(self, key: str, span: Any = None) -> Any:
        if span is None:
            self.asked.setdefault(key, []).append(None)
        return super().get(key, span)


LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (4, 4)},
    "raw": {"chunks": (4, 4), "codecs": None},
    "shards": {"chunks": (2, 2), "shards": (4, 4)},
    "v2": {"chunks": (4, 4), "zarr_format": 2},
    "text": {"chunks": (4, 4), "dtype": "string"},
}


@pytest.mark.parametrize("where", [near, far], ids=["near", "far"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_every_whole_value_is_asked_for_with_its_most(where: Any, layout: str, cache: Any) -> None:
    inner = MemoryDriver()
    how = {"shape": (6, 8), "dtype": "u2", **LAYOUTS[layout]}
    stash.create(inner, **how)[...] = 5
    asking = Asking(inner)
    array = stash.open(where(asking), "r+", cache=cache)
    array[...], array[0, 0], array[1:3], array[:, ::3]
    array[0, 0] = 7
    array[1:5, 2:7] = 7
    array[...] = 3
    array.resize((5, 8))
    array.append(np.full((3, 8), 4).astype(array.dtype))
    array.attrs["a"] = 1
    assert "zarr.json" in asking.asked or ".zarray" in asking.asked
    unbounded = {key for key, mosts in asking.asked.items() if None in mosts}
    assert not unbounded


@pytest.mark.parametrize("where", [near, far], ids=["near", "far"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chunk_of_too_many_bytes_is_refused_and_repaired(where: Any, layout: str) -> None:
    inner = MemoryDriver()
    how = {"shape": (6, 8), "dtype": "u2", **LAYOUTS[layout]}
    array = stash.create(inner, **how)
    array[...] = 5
    key = "1.1" if layout == "v2" else "c/1/1"
    limit = {"limits": {"chunk": 1000}} if layout == "text" else {}
    inner.put(key, bytes(1 << 20))
    hurt = stash.open(where(inner), "r+", **limit)
    for call in (
        lambda: hurt[...],
        lambda: hurt[5, 7],
        lambda: hurt.__setitem__((5, 7), 1),
        lambda: hurt.__setitem__((slice(3, 6), slice(2, 7)), 1),
    ):
        with pytest.raises(Corrupt, match="restore it, or overwrite it whole") as caught:
            call()
        assert caught.value.key == key
        assert str(caught.value).count("restore it") == 1
        assert caught.value.codec
    assert (hurt[:3] == hurt[0, 0]).all()
    hurt[4:, 4:] = 9  # all of it that lies in the array
    assert (hurt[4:, 4:] == hurt[4, 4]).all()


# -- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_limit_on_metadata(zarr_format: Any, tmp_path: Path) -> None:
    group = stash.create_group(tmp_path / "g", zarr_format=zarr_format)
    group.create("a", (3,), "u1")[...] = 7
    group.create("b", (3,), "u1", attributes={"note": "x" * 2000})[...] = 8
    key = "zarr.json" if zarr_format == 3 else ".zattrs"
    for use in (
        lambda: stash.open(tmp_path / "g/b", limits={"metadata": 1000}),
        lambda: stash.open(tmp_path / "g/b", "r+", limits={"metadata": "1000B"}),
        lambda: stash.open_group(tmp_path / "g", limits={"metadata": 1000})["b"],
    ):
        with pytest.raises(Corrupt, match="limits=") as caught:
            use()
        assert caught.value.key.endswith(key)
    some = stash.open_group(tmp_path / "g", limits={"metadata": 1000})
    assert list(some) == ["a", "b"]  # one that is too large hides no other
    assert "cannot be opened" in some.tree()
    assert some["a"][0] == 7
    more = stash.open_group(tmp_path / "g", "r+", limits={"metadata": "1MB"})
    assert pickle.loads(pickle.dumps(more))["b"][0] == 8
    more["b"].append(np.ones(2, "u1"))
    more["b"].attrs["other"] = 1
    assert more["b"].shape == (5,)


def test_a_raised_limit_reaches_every_reader_of_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "metadata_limit", 1500)
    inner = MemoryDriver()
    large = {"limits": {"metadata": "1MB"}}
    array = stash.create(inner, (3,), "u1", attributes={"n": "x" * 2000}, **large)
    with pytest.raises(Corrupt):
        stash.open(inner)
    for handle in (array, stash.open(inner, "r+", **large)):
        handle = pickle.loads(pickle.dumps(handle)) if handle is not array else handle
        if handle is array:
            handle.append(np.ones(2, "u1"))
            handle.resize((4,))
            handle.attrs["a"] = 1
            handle.refresh()
    assert stash.open(inner, **large).shape == (4,)
    copied = stash.copy(array, {})
    copied.append(np.ones(2, "u1"))
    assert copied.refresh().shape == (6,)
    store: dict[str, Any] = {}
    schema = {f"field{k}": "float32" for k in range(9)}
    rows = stash.create_records(store, schema, **large)
    rows.extend({name: np.ones(3, "f4") for name in schema})
    with pytest.raises(Corrupt):
        stash.open_records(store)
    again = stash.open_records(store, "r+", **large)
    again.append(dict.fromkeys(schema, 1.0))
    again.refresh()
    assert len(again) == 4
    group = stash.create_group({}, {"n": "x" * 2000}, **large)
    group.create("a", (2,), "u1")
    group.consolidate()
    assert list(group) == ["a"]


def test_a_driver_with_a_limit_is_the_driver_otherwise() -> None:
    counting = CountingDriver(MemoryDriver())
    limited = LimitedDriver(counting, 5)
    for name, member in vars(Driver).items():
        if callable(member) and not name.startswith("_"):
            assert getattr(LimitedDriver, name) is not member, f"{name} is not passed on"
    limited.put("a/b", b"12345")
    assert bytes(limited.get("a/b") or b"") == b"12345"
    assert limited.tag("a/b") == counting.tag("a/b")
    assert limited.capabilities is counting.capabilities
    assert (limited.url, limited.identity, limited.scheme) == (
        counting.url,
        counting.identity,
        counting.scheme,
    )
    assert [*limited.list()] == ["a/b"]
    assert [*limited.sizes()] == [("a/b", 5)]
    limited.delete("a/b")
    assert limited.get("a/b") is None
    assert set(counting.counts) >= {"get", "put", "delete"}


@pytest.mark.parametrize(
    "wrong",
    [{"meta": 1}, {"metadata": 0}, {"chunk": "x"}, {"chunk": -1}, 5, "1GiB", [1], {"chunk": None}],
)
def test_limits_that_cannot_be(wrong: Any) -> None:
    store: dict[str, Any] = {}
    stash.create(store, (2,), "u1")
    for use in (
        lambda: stash.open(store, limits=wrong),
        lambda: stash.create({}, (2,), "u1", limits=wrong),
        lambda: stash.open_group({}, "a", limits=wrong),
        lambda: stash.create_group({}, limits=wrong),
        lambda: stash.create_records({}, {"x": "u1"}, limits=wrong),
    ):
        with pytest.raises(Invalid):
            use()


# -- documents that ask for much ------------------------------------------------------------------


def test_an_index_that_is_not_of_a_fixed_size_is_refused_at_open() -> None:
    for name, place in hostile.PLACES.items():
        if name.startswith("index in"):
            with pytest.raises(Invalid, match="index_codecs must encode to a fixed size"):
                stash.open(place())
    for codec in ("crc32c", "numcodecs.crc32", "numcodecs.adler32", "numcodecs.fletcher32"):
        chain = hostile.sharded([hostile.BYTES, {"name": codec}])
        store = v3(codecs=chain)
        array = stash.open(store, "r+")
        array[1:3] = 7
        assert stash.open(store)[...].tolist() == [0, 7, 7, 0]


def test_runs_of_chunks_stay_runs() -> None:
    axis = stash.open(hostile.PLACES["64 axes of fewer"]()).spec.grid.axes[0]
    assert axis.runs == ((1, 60000),)  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="4194304 chunks"):
        stash.open(hostile.PLACES["64 axes of runs"]())


@pytest.mark.parametrize(
    "filters",
    [
        [{"id": "packbits"}],
        [{"id": "packbits"}, {"id": "zlib"}, {"id": "crc32"}],
        [{"id": "delta", "dtype": "<u2"}],
        [{"id": "delta", "dtype": "<u2", "astype": "<i4"}, {"id": "shuffle"}, {"id": "bz2"}],
    ],
)
def test_filters_still_read_what_they_wrote(filters: Any) -> None:
    dtype = "|b1" if filters[0]["id"] == "packbits" else "<u2"
    store = v2(dtype=dtype, shape=[1000], chunks=[1000], filters=filters, fill_value=0)
    value = (np.arange(1000) % 3 == 0).astype(dtype)
    stash.open(store, "r+")[...] = value
    assert np.array_equal(stash.open(store)[...], value)


def test_a_message_does_not_list_what_has_no_end() -> None:
    array = stash.create({}, (4,), "u1", attributes={f"name {i}": i for i in range(10_000)})
    names = [{"name": f"{i}" * 5000, "data_type": "int32"} for i in range(3)]
    struct = {"name": "struct", "configuration": {"fields": names}}
    for use in (
        lambda: array.attrs["x"],
        lambda: array.attrs.__delitem__("x"),
        lambda: stash.open(v3(data_type=struct, fill_value={"a": 0})),
        lambda: stash.create({}, 3, [(name["name"], "i4") for name in names], fill_value={"a": 0}),
    ):
        with pytest.raises(StashError) as raised:
            use()
        assert len(str(raised.value)) < 1000


def test_codecs_that_nest_too_deeply_are_refused() -> None:
    for depth in (200, 300, 2000):
        chain = hostile.nested(depth)
        with pytest.raises(Unsupported, match="nests too deeply"):
            stash.create({}, (4,), "u1", chunks=(4,), codecs=chain)
    for depth in (200, 300):  # by then it is the document itself that nests too deeply
        store = v3(codecs=hostile.nested(depth))
        with pytest.raises((Unsupported, Corrupt), match="nests"):
            stash.open(store)[0]


def test_a_message_shows_little_of_a_large_value() -> None:
    from tensorstash.errors import short

    assert short("x" * 10**6) == "'" + "x" * 56 + "..."
    assert len(short([1] * 10**6)) == 60
    assert short(10**5000) == "<int>"
    assert short([1, 2]) == "[1, 2]"
    assert NoMemory is stash.NoMemory


def test_a_document_of_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NODES", 1000)
    store = v3(attributes={"a": [[]] * 2000})
    with pytest.raises(Corrupt, match="values, the most is 1000"):
        stash.open(store)
    document = json.loads(store["zarr.json"])
    document["attributes"] = {"a": "," * 900}
    stash.open({"zarr.json": json.dumps(document).encode()})
