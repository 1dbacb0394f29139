"""A handle stays what it was opened as: metadata that is read again has its settings, and an array
that was put in the place of its own is a conflict; nothing is written then, and nothing run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.array import Array
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt, NotFound, StashError
from tensorstash.location import resolve
from tensorstash.testing.counting import CountingDriver
from tests.support.dtype_cases import NESTED, PLAIN, SMALL
from tests.support.far import FarDriver
from tests.support.remote import remote

RECORD = np.dtype([("x", "f8"), ("y", "i4")])
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
PICKLED: dict[str, Any] = {"dtype": "|O", "filters": [{"id": "pickle"}], "fill_value": None}


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[bytes]:
    """A chunk that runs code where it is unpickled; at the end none was run."""
    path = tmp_path / "ran"
    elements = np.array([Canary(path)] * 4, object)
    yield pickle.dumps(elements)
    assert not path.exists()
    with suppress(Exception):
        pickle.loads(pickle.dumps(Canary(path)))
    assert path.exists()  # it would have been noticed


def place_of(kind: str, request: Any) -> Driver:
    """A driver on an empty place of that kind."""
    if kind == "memory":
        return MemoryDriver({})
    if kind == "far":
        return FarDriver()
    if kind in ("file", "zip"):
        path = request.getfixturevalue("tmp_path") / "store"
        return resolve(str(path) if kind == "file" else f"zip://{path}.zip", None)
    where = remote(kind, request.getfixturevalue)
    return resolve(where.fresh(), where.options)


KINDS = ["memory", "far", "file", "zip", "redis", "s3fs", "obstore"]


@pytest.fixture(params=KINDS)
def driver(request: Any) -> Driver:
    return place_of(request.param, request)


def stored(driver: Driver) -> dict[str, bytes]:
    return {key: bytes(driver.get(key) or b"") for key in driver.list()}


def grid(*edges: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(edges)}}


def encoded(name: str, separator: str) -> dict[str, Any]:
    return {"name": name, "configuration": {"separator": separator}}


V3: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"data_type": "float32"}, "dtype.*float32"),
    "dtype of that size": ({"data_type": "int64", "fill_value": 0}, "dtype.*int64"),
    "byte order": (
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, ZSTD]}, "codecs"
    ),
    "another codec": (
        {"codecs": [LITTLE,
                    {"name": "gzip", "configuration": {"level": 1}}]}, "codecs.*Gzip",
    ),
    "no compressor": (
        {"codecs": [LITTLE]}, "codecs"
    ),
    "shards": (
        {"codecs": [{"name": "sharding_indexed", "configuration": {
            "chunk_shape": [2], "codecs": [LITTLE], "index_codecs": [LITTLE]}}]}, "codecs"
    ),
    "a codec that runs pickles": (
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]}, "numcodecs.pickle"
    ),
    "a codec that nobody has": ({"codecs": ["bytes", "nobody-has-it"]}, "nobody-has-it"),
    "chunks": ({"chunk_grid": grid(2)}, r"chunks.*\(4,\).*\(2,\)"),
    "chunks of differing shapes": (
        {"chunk_grid": {"name": "rectilinear", "configuration": {
            "kind": "inline", "chunk_shapes": [[2, 4]]}}}, "chunks.*differing"
    ),
    "fill": ({"fill_value": 7.5}, r"fill value.*7\.5"),
    "the fill's sign": ({"fill_value": -0.0}, r"fill value.*-0\.0"),
    "keys": ({"chunk_key_encoding": encoded("default", ".")}, "chunk keys"),
    "keys of v2": ({"chunk_key_encoding": encoded("v2", "/")}, "chunk keys"),
    "axes": ({"shape": [6, 1], "chunk_grid": grid(4, 1)}, "1 axis is.*2"),
    "a scalar": ({"shape": [], "chunk_grid": grid()}, "1 axis is.*0"),
    "what must be understood": ({"more": {"name": "odd", "must_understand": True}}, "more"),
}  # fmt: skip

V2: dict[str, tuple[dict[str, Any], str]] = {
    "pickles": (PICKLED, "dtype.*object"),
    "pickles as compressor": (
        {**PICKLED, "filters": None, "compressor": {"id": "pickle"}},
        "dtype",
    ),
    "a filter of pickles": ({"filters": [{"id": "pickle"}]}, "codecs|fit"),
    "dtype": ({"dtype": "<f4"}, "dtype.*float32"),
    "byte order": ({"dtype": ">f8"}, "codecs"),
    "filters": ({"filters": [{"id": "delta", "dtype": "<f8"}]}, "codecs"),
    "compressor": ({"compressor": {"id": "zlib", "level": 1}}, "codecs"),
    "chunks": ({"chunks": [2]}, "chunks"),
    "fill": ({"fill_value": 7.5}, "fill value"),
    "separator": ({"shape": [6], "dimension_separator": "/"}, "chunk keys"),
    "axes": ({"shape": [6, 1], "chunks": [4, 1]}, "1 axis is now 2"),
}

OPERATIONS: dict[str, Callable[[Array], Any]] = {
    "append": lambda a: a.append(np.zeros(2, a.dtype)),
    "append nothing": lambda a: a.append(np.zeros(0, a.dtype)),
    "grow": lambda a: a.resize((9,)),
    "shrink": lambda a: a.resize((3,)),
    "same shape": lambda a: a.resize((6,)),
    "an attribute": lambda a: a.attrs.update(unit="K"),
    "an attribute less": lambda a: a.attrs.__delitem__("title"),
    "refresh": lambda a: a.refresh(),
}


def writing(array: Array, what: str) -> None:
    """A writer that holds elements, or rows, when it is flushed."""
    writer = array.writer()
    if what == "rows":
        writer.append(np.zeros(1, array.dtype))
    else:
        writer[1] = np.zeros((), array.dtype)
    writer.flush()


OPERATIONS |= {
    "flush of rows": lambda a: writing(a, "rows"),
    "flush of elements": lambda a: writing(a, "elements"),
}


def made(driver: Driver, version: Any, dtype: Any = "f8") -> Array:
    chain = {"id": "zstd", "level": 3} if version == 2 else ["bytes", ZSTD]
    how: dict[str, Any] = {"attributes": {"title": "run"}, "zarr_format": version}
    array = stash.create(driver, (6,), dtype, chunks=(4,), codecs=chain, **how)
    array[...] = np.ones((), dtype)
    return array


def refused(driver: Driver, array: Array, match: str, operations: Any = None) -> None:
    """Every operation on the stale handle is a conflict that changes nothing, and again."""
    before = stored(driver)
    for name, operation in (operations or OPERATIONS).items():
        with pytest.raises(Conflict, match=match) as caught:
            operation(array)
        assert "open it again" in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert stored(driver) == before, name


def put(driver: Driver, key: str, change: dict[str, Any]) -> None:
    data = driver.get(key)
    assert data is not None
    driver.put(key, json.dumps({**json.loads(bytes(data)), **change}).encode())


@pytest.mark.parametrize("what", V3)
def test_a_replaced_array_of_v3_is_a_conflict(what: str, canary: bytes) -> None:
    change, match = V3[what]
    for opened in (False, True):
        driver = MemoryDriver({})
        array = made(driver, 3)
        array = stash.open(driver, "r+") if opened else array
        put(driver, "zarr.json", change)
        for chunk in ("c/0", "c/1"):
            driver.put(chunk, canary)
        refused(driver, array, match)


@pytest.mark.parametrize("what", V2)
def test_a_replaced_array_of_v2_is_a_conflict(what: str, canary: bytes) -> None:
    change, match = V2[what]
    for opened in (False, True):
        driver = MemoryDriver({})
        array = made(driver, 2)
        array = stash.open(driver, "r+") if opened else array
        put(driver, ".zarray", change)
        for chunk in ("0", "1"):
            driver.put(chunk, canary)
        refused(driver, array, match)


def group_instead(driver: Driver) -> str:
    driver.put("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    return "array is now a group"


def v3_beside(driver: Driver) -> str:
    document = MemoryDriver({})
    made(document, 3)
    driver.put("zarr.json", bytes(document.get("zarr.json") or b""))
    return "v2 is now v3"


@pytest.mark.parametrize("version", [2, 3])
def test_pickles_put_in_the_place_of_numbers_never_run(
    driver: Driver, version: int, canary: bytes
) -> None:
    """As above, on every driver, with the mutations that could run code or change the kind."""
    made(driver, version)
    array = stash.open(driver, "r+")
    document = ".zarray" if version == 2 else "zarr.json"
    genuine = stored(driver)
    chunk = "0" if version == 2 else "c/0"
    changes = [V2["pickles"], V2["a filter of pickles"]]
    if version == 3:
        changes = [V3["a codec that runs pickles"], V3["dtype"]]
    some = {"append", "grow", "shrink", "an attribute", "flush of elements", "flush of rows"}
    operations = {name: call for name, call in OPERATIONS.items() if name in some}
    for change, match in changes:
        put(driver, document, change)
        driver.put(chunk, canary)
        refused(driver, array, match, operations)
        driver.put(document, genuine[document])
    match = v3_beside(driver) if version == 2 else group_instead(driver)
    refused(driver, array, match, operations)
    driver.delete("zarr.json")
    driver.put(document, genuine[document])
    driver.put(chunk, genuine[chunk])
    assert array.append([1.0]) == 6  # the handle is none the worse
    assert (stash.open(driver)[...] == 1).all()


@pytest.mark.parametrize("version", [2, 3])
def test_a_write_of_some_fields_asks_first(driver: Driver, version: int) -> None:
    made(driver, version, RECORD)
    array = stash.open(driver, "r+")
    array["x"] = 5
    put(driver, "zarr.json" if version == 3 else ".zarray", {"attributes": {"more": 1}})
    array["y", :3] = 6  # other attributes are no other array
    writes = {
        "one": lambda a: a.__setitem__("x", 7),
        "some": lambda a: a.__setitem__((["y", "x"], 0), (1, 2.0)),
        "of a view": lambda a: a.lazy["x"].__setitem__(slice(3), 7),
    }  # fmt: skip
    if version == 3:
        put(driver, "zarr.json", {"codecs": ["bytes"]})
    else:
        put(driver, ".zarray", {"compressor": None})
    refused(driver, array, "codecs", writes)


def test_a_write_of_some_fields_moves_no_document() -> None:
    driver = CountingDriver(MemoryDriver({}))
    array = made(driver, 3, RECORD)
    for handle in (array, stash.open(driver, "r+")):
        driver.reset()
        for _ in range(3):
            handle["x", 0] = 5
        assert driver.counts["tag"].calls == 3
        assert driver.reads.calls == 3  # a chunk each


# -- what is no other array --------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "dtype",
    [*PLAIN, *SMALL, "M8[ns]", "m8[10s]", "M8", "U3", "S5", "V7", ">i4", ">f8", str, bytes, NESTED,
     RECORD, np.dtype([("a", "i1"), ("b", ">f8")], align=True), np.dtype("(2,3)f4")],
    ids=str,
)  # fmt: skip
def test_no_array_is_taken_for_another(dtype: Any, version: Any) -> None:
    for how in ({}, {"shards": (4,), "chunks": (2,)}, {"codecs": "zstd"}, {"codecs": None}):
        if "shards" in how and version == 2:
            continue
        driver = MemoryDriver({})
        try:
            array = stash.create(
                driver, (6,), dtype, zarr_format=version, **{"chunks": (4,), **how}
            )
        except StashError:
            continue  # v2 cannot spell it
        for handle in (array, stash.open(driver, "r+")):
            handle.attrs["n"] = 1
            start = handle.append(np.full(2, handle.fill_value, handle.dtype))
            handle.resize((start,))
            assert handle.refresh().shape == (6,)
            handle.check_stored()


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["f8", "i2", "bool", "U3", "M8[s]"])
def test_others_may_write_the_same_in_their_words(tmp_path: Path, dtype: str, version: Any) -> None:
    for k, codecs in enumerate(["auto", "zstd", "gzip", None]):
        path = tmp_path / str(k)
        array = stash.create(path, (6,), dtype, chunks=(4,), codecs=codecs, zarr_format=version)
        stale = stash.open(path, "r+")
        theirs = zarr.open_array(str(path), mode="r+", zarr_format=version)
        theirs.attrs["by"] = "zarr"  # writes the whole document anew
        theirs.resize((8,))
        for handle in (array, stale):
            handle.refresh().append(np.zeros(1, handle.dtype))
            handle.attrs["n"] = 1
        assert stash.open(path).shape == (10,)
        assert stash.open(path).attrs["by"] == "zarr"


def test_others_may_change_the_shape_and_the_attributes(driver: Driver) -> None:
    array = made(driver, 3)
    other = stash.open(driver, "r+")
    other.append([2.0, 3.0])
    other.attrs["more"] = 1
    assert array.append([4.0]) == 8
    array.attrs["title"] = "again"
    assert dict(stash.open(driver).attrs) == {"title": "again", "more": 1}
    with array.writer() as writer:
        writer[0] = 9
        other.resize((12,))
    assert stash.open(driver)[:9].tolist() == [9, 1, 1, 1, 1, 1, 2, 3, 4]


def test_what_is_damaged_or_gone_is_not_called_replaced() -> None:
    driver = MemoryDriver({})
    array = made(driver, 3)
    good = stored(driver)["zarr.json"]
    for data, error in ((b"{", Corrupt), (None, NotFound)):
        if data is None:
            driver.delete("zarr.json")
        else:
            driver.put("zarr.json", data)
        for name, operation in OPERATIONS.items():
            with pytest.raises(error):
                operation(array)
            assert name
    driver.put("zarr.json", good)
    array.append([1.0])


# -- groups and records ------------------------------------------------------------------------


def test_a_group_that_became_another_kind_is_a_conflict(driver: Driver) -> None:
    stash.create_group(driver, {"a": 1})
    group = stash.open_group(driver, "r+")
    driver.delete("zarr.json")
    made(driver, 3)
    operations: dict[str, Any] = {
        "attrs": lambda g: g.attrs.update(a=2),
        "refresh": lambda g: g.refresh(),
        "consolidate": lambda g: g.consolidate(),
    }
    refused(driver, group, "group is now an array", operations)  # type: ignore[arg-type]
    driver.delete("zarr.json")
    driver.put(".zgroup", b'{"zarr_format": 2}')
    refused(driver, group, "v3 is now v2", operations)  # type: ignore[arg-type]


FIELDS = {"n": "f8", "s": str, "t": stash.ragged("i4")}
ROW = {"n": 1.0, "s": "x", "t": [1, 2]}


def by_another(driver: Driver, path: str, change: dict[str, Any]) -> None:
    """Field ``path`` stored in another way from now on, as the records' document says."""
    document = json.loads(bytes(driver.get("zarr.json") or b""))
    document["consolidated_metadata"]["metadata"][path] |= change
    driver.put("zarr.json", json.dumps(document).encode())


@pytest.mark.parametrize(
    ("path", "change", "match"),
    [
        ("n", {"data_type": "float32"}, "changed"),
        ("n", {"codecs": ["bytes"]}, "'n': codecs"),
        ("n", {"fill_value": 3.0}, "'n': fill value"),
        ("s", {"codecs": ["vlen-utf8"]}, "'s': codecs"),
        ("t/values", {"codecs": ["bytes"]}, "'t/values': codecs"),
        ("t/offsets", {"codecs": ["bytes"]}, "'t/offsets': codecs"),
    ],
)
def test_fields_stored_in_another_way_take_no_rows(path: str, change: Any, match: str) -> None:
    driver = MemoryDriver({})
    records = stash.create_records(driver, FIELDS)
    records.extend({"n": [1.0] * 3, "s": ["a"] * 3, "t": [[1], [], [2, 3]]})
    stale = stash.open_records(driver, "r+")
    held, assigned = stale.writer(), stale.writer()
    held.append(ROW)
    assigned[0] = ROW
    by_another(driver, path, change)
    before = {k: v for k, v in stored(driver).items() if not k.startswith("t/values")}
    for call in (lambda: stale.append(ROW), held.flush, assigned.flush):
        with pytest.raises(Conflict, match=match):
            call()
    left = {k: v for k, v in stored(driver).items() if not k.startswith("t/values")}
    assert left == before  # of ragged values, some lie at the end to which no row points
    stale.refresh()


def test_values_put_in_the_place_of_others_are_not_appended_to() -> None:
    driver = MemoryDriver({})
    records = stash.create_records(driver, FIELDS)
    records.append(ROW)
    put(driver, "t/values/zarr.json", {"data_type": "int64"})
    before = stored(driver)
    for call in (
        lambda: records.append(ROW),
        lambda: records.__setitem__(0, {**ROW, "t": [1] * 9}),
    ):
        with pytest.raises(Conflict, match="dtype int32 is now int64"):
            call()
    assert stored(driver)["t/values/zarr.json"] == before["t/values/zarr.json"]


BY_ANOTHER: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "a codec that runs pickles": lambda doc, m: m["n"].update(
        codecs=[{"name": "numcodecs.pickle"}]
    ),
    "a codec that nobody has": lambda doc, m: m["n"].update(codecs=["bytes", "nobody-has-it"]),
    "an unknown dtype": lambda doc, m: m["t/values"].update(data_type="zzz"),
    "an array of v2": lambda doc, m: m["n"].update(zarr_format=2, dtype="|O"),
    "an unknown kind": lambda doc, m: doc["attributes"]["tensorstash"]["fields"].update(n="zzz"),
    "another version": lambda doc, m: doc["attributes"]["tensorstash"].update(records=9),
    "a group without records": lambda doc, m: doc.update(attributes={}),
    "an array that nobody can read": lambda doc, m: doc.update(node_type="array", codecs=["odd"]),
}


@pytest.mark.parametrize("what", BY_ANOTHER)
def test_records_that_can_be_read_no_longer_are_a_conflict(what: str, canary: bytes) -> None:
    driver = MemoryDriver({})
    stash.create_records(driver, FIELDS).extend([ROW] * 3)
    records = stash.open_records(driver, "r+")
    writer = records.writer()
    writer.append(ROW)
    document = json.loads(bytes(driver.get("zarr.json") or b""))
    BY_ANOTHER[what](document, document["consolidated_metadata"]["metadata"])
    driver.put("zarr.json", json.dumps(document).encode())
    driver.put("n/c/0", canary)
    operations: dict[str, Any] = {
        "append": lambda r: r.append(ROW),
        "extend": lambda r: r.extend([ROW]),
        "flush": lambda r: writer.flush(),
        "add": lambda r: r.add_field("m", "i4"),
        "drop": lambda r: r.drop_field("n"),
        "rename": lambda r: r.rename_field("n", "m"),
        "attrs": lambda r: r.attrs.update(a=1),
        "refresh": lambda r: r.refresh(),
    }
    for name, operation in operations.items():
        with pytest.raises(Conflict, match="open it again") as caught:
            operation(records)
        assert "can be read no longer" in str(caught.value), name
    assert json.loads(bytes(driver.get("zarr.json") or b"")) == document


def test_a_group_that_can_be_read_no_longer_is_a_conflict() -> None:
    driver = MemoryDriver({})
    group = stash.create_group(driver)
    made(driver := MemoryDriver({}), 3)
    group.driver.put("zarr.json", bytes(driver.get("zarr.json") or b""))
    put(group.driver, "zarr.json", {"codecs": ["bytes", "nobody-has-it"]})
    for call in (lambda: group.refresh(), lambda: group.attrs.update(a=1), group.consolidate):
        with pytest.raises(Conflict, match="can be read no longer"):
            call()


def test_records_that_became_an_array_are_a_conflict(driver: Driver) -> None:
    records = stash.create_records(driver, {"n": "f8"})
    records.append({"n": 1.0})
    writer = records.writer()
    writer[0] = {"n": 2.0}
    driver.put("zarr.json", bytes(driver.get("n/zarr.json") or b""))
    operations: dict[str, Any] = {
        "append": lambda r: r.append({"n": 1.0}),
        "flush": lambda r: writer.flush(),
        "field": lambda r: r.add_field("m", "i4"),
        "attrs": lambda r: r.attrs.update(a=1),
        "refresh": lambda r: r.refresh(),
    }
    refused(driver, records, "group is now an array", operations)  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", [float("nan"), [float("nan"), 1], {"a": 1}, "x", 0])
def test_a_fill_value_that_is_an_object_stays_the_same(fill: Any) -> None:
    zarray = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "|O", "fill_value": fill}
    zarray |= {"order": "C", "filters": [{"id": "json2"}], "compressor": None}
    array = stash.open({".zarray": json.dumps(zarray).encode()}, "r+")
    array[...] = [1, 2, 3]
    assert array.append([4]) == 3 and array.refresh()[3] == 4
    put(array.driver, ".zarray", {"fill_value": [fill]})
    with pytest.raises(Conflict, match="fill value"):
        array.append([5])
