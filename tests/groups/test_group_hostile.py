"""Groups that somebody made to be trouble: names, depth, members that cannot be read."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Driver, Request, Span, Tag
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    Corrupt,
    Denied,
    DriverError,
    Invalid,
    NotFound,
    StashError,
    TimedOut,
    Unavailable,
)
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.document import MAX_DEPTH, check_depth
from tensorstash.testing.counting import CountingDriver
from tests.support.groups import populated
from tests.support.remote import remote

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
ARRAY: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [2], "data_type": "int32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
    "chunk_key_encoding": {"name": "default"}, "codecs": ["bytes"], "attributes": {},
}  # fmt: skip
HOSTILE = [
    "", ".", "..", "...", "../up", "good/..", "good/../../up", "/abs", "good/", "good//x", "//",
    "__x", "good/__x", "zarr.json", "good/zarr.json", "back\\slash", "nul\0", "half\ud800",
    "array/below", "array/below/more", "orphan/child", "orphan/child/more", "good/no/child",
]  # fmt: skip


def holding(members: dict[str, Any], version: Any) -> dict[str, bytes]:
    """A store of nothing but a group whose consolidated metadata says so."""
    if version == 3:
        inline = {"kind": "inline", "must_understand": False, "metadata": members}
        return {"zarr.json": json.dumps({**GROUP, "consolidated_metadata": inline}).encode()}
    found: dict[str, Any] = {".zgroup": {"zarr_format": 2}}
    for path, document in members.items():
        if document is GROUP:
            found[f"{path}/.zgroup"] = {"zarr_format": 2}
        elif document is ARRAY:
            found[f"{path}/.zarray"] = {
                "zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "<i4", "order": "C",
                "fill_value": 0, "filters": None, "compressor": None,
            }  # fmt: skip
        else:
            found[f"{path}/.zarray"] = document
    data = json.dumps({"zarr_consolidated_format": 1, "metadata": found}).encode()
    return {".zgroup": b'{"zarr_format": 2}', ".zmetadata": data}


@pytest.fixture(params=[False, True], ids=["small", "large"])
def large(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents read whole, and member by member as large ones are."""
    if request.param:
        monkeypatch.setattr("tensorstash.metadata.consolidated._LARGE", 0)


@pytest.mark.usefixtures("large")
def test_members_that_there_cannot_be_are_not_there(zarr_format: Any) -> None:
    members = {"good": GROUP, "good/x": ARRAY, "array": ARRAY}
    members |= {name: GROUP if k % 2 else ARRAY for k, name in enumerate(HOSTILE)}
    place = holding(members, zarr_format)
    driver = CountingDriver(MemoryDriver(place))
    group: Any = stash.open_group(driver)
    driver.reset()
    assert group.keys() == ["array", "good"]
    assert [path for path, _ in group.walk()] == ["array", "good", "good/x"]
    assert group["good"].keys() == ["x"]
    assert group.tree().count("\n") == 3
    for name in HOSTILE:
        if name.strip("/") in ("good", "abs"):
            continue  # slashes around a name that a user gives are left out
        assert name not in group
        with pytest.raises((Invalid, NotFound)) as caught:
            group[name]
        assert "\n" not in str(caught.value)
    assert driver.counts == {}


@pytest.mark.usefixtures("large")
def test_what_there_cannot_be_is_kept_in_the_document() -> None:
    members = {"good": GROUP, "orphan/child": ARRAY, "..": GROUP, "text": "x"}
    place = holding(members, 3)
    stash.open_group(place, "r+").attrs["a"] = 1
    document = json.loads(place["zarr.json"])
    assert document["attributes"] == {"a": 1}
    assert document["consolidated_metadata"]["metadata"] == members


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("bad", [None, 5, "x", [1], {}, {"zarr_format": 9}, {"shape": [1]}])
def test_a_member_that_is_no_document_hides_no_other(bad: Any, zarr_format: Any) -> None:
    group: Any = stash.open_group(holding({"a": ARRAY, "b": bad, "c": GROUP}, zarr_format))
    assert group.keys() == ["a", "b", "c"]
    assert "b" in group
    assert group["a"].shape == (2,)
    assert group["c"].keys() == []
    assert "b (" in group.tree() and "cannot be opened" in group.tree()
    items = group.items()
    assert next(items)[0] == "a"
    for call in (lambda: next(items), lambda: group["b"], lambda: list(group.walk())):
        with pytest.raises((Invalid, stash.errors.Unsupported)) as caught:
            call()
        assert "b" in str(caught.value)


def test_a_large_document_that_is_no_json_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged anywhere: what a whole reader takes, we take, and what it refuses is Corrupt."""
    good = holding({"a": ARRAY, "b": GROUP}, 3)["zarr.json"]
    rng = np.random.default_rng(0)
    for _ in range(1500):
        data = bytearray(good)
        at = int(rng.integers(len(data)))
        how = int(rng.integers(3))
        if how == 0:
            data[at] = int(rng.choice([*b'{}[]",:\\ 0x\xff\xc3']))
        elif how == 1:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            data = data[:at]
        seen = []
        for limit in (1 << 30, 0):
            monkeypatch.setattr("tensorstash.metadata.consolidated._LARGE", limit)
            try:
                group: Any = stash.open_group({"zarr.json": bytes(data)})
                seen.append((group.keys(), group.tree(), dict(group.attrs)))
            except StashError as error:
                seen.append(type(error).__name__)  # type: ignore[arg-type]
        assert seen[0] == seen[1], bytes(data)


# -- depth -------------------------------------------------------------------------------------


def nested(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for k in range(depth):
        value = {"a": value} if k % 2 else [value]
    return value


def with_attributes(version: Any, value: Any) -> dict[str, bytes]:
    place: dict[str, bytes] = {}
    stash.create(place, (3,), "i4", zarr_format=version)
    text = _dumped({"a": value})
    if version == 2:
        place[".zattrs"] = text.encode()
    else:
        document = json.loads(place["zarr.json"])
        document["attributes"] = "HERE"
        place["zarr.json"] = json.dumps(document).replace('"HERE"', text).encode()
    return place


def _dumped(value: Any) -> str:
    """JSON of what ``nested`` makes, without recursion."""
    head, tail = [], []
    while isinstance(value, dict | list):
        if isinstance(value, dict):
            [(key, value)] = value.items()
            head.append(f'{{"{key}": ')
            tail.append("}")
        else:
            [value] = value
            head.append("[")
            tail.append("]")
    return "".join(head) + json.dumps(value) + "".join(reversed(tail))


def test_attributes_as_deep_as_can_be_work(zarr_format: Any) -> None:
    place = with_attributes(zarr_format, nested(MAX_DEPTH - 5))
    array = stash.open(place, "r+")
    inner = array.attrs["a"]
    assert dict(array.attrs) == {"a": inner}
    assert inner == nested(MAX_DEPTH - 5)
    inner[0] if isinstance(inner, list) else inner["a"]
    assert repr(array.attrs).count("[") > MAX_DEPTH // 3
    array.attrs["more"] = inner  # what can be read can be written
    assert stash.open(place).attrs["more"] == inner
    assert copy.copy(dict(array.attrs)) == {"a": inner, "more": inner}
    assert pickle.loads(pickle.dumps(array)).attrs["a"] == inner
    some = stash.create({}, (), "i4", attributes={"a": nested(400)}).attrs["a"]
    assert pickle.loads(pickle.dumps(some)) == some  # deeper, Python's own pickle gives up
    group = stash.create_group({}, zarr_format=zarr_format)
    group.create("x", (3,), "i4", attributes={"a": nested(MAX_DEPTH - 20)})
    group.consolidate()
    assert stash.open_group(group.driver)["x"].attrs["a"] == nested(MAX_DEPTH - 20)


def test_attributes_that_are_copies_may_be_changed() -> None:
    array = stash.create({}, (3,), "i4", attributes={"a": {"b": [1, {"c": (2,)}]}})
    found = array.attrs["a"]
    found["b"][1]["c"].append(3)
    assert array.attrs["a"] == {"b": [1, {"c": [2]}]}


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 990, 1_100, 10_000, 1_000_000])
def test_documents_that_nest_deeper_are_refused_by_name(zarr_format: Any, depth: int) -> None:
    place = with_attributes(zarr_format, nested(depth))
    name = ".zattrs" if zarr_format == 2 else "zarr.json"
    with pytest.raises(Corrupt, match=f"{name}.*deeper than {MAX_DEPTH}") as caught:
        stash.open(place)
    assert name in caught.value.key
    array = stash.create({}, (3,), "i4", zarr_format=zarr_format)
    for call in (
        lambda: array.attrs.update(a=nested(depth)),
        lambda: stash.create({}, (3,), "i4", attributes={"a": nested(depth)}),
        lambda: stash.create_group({}, {"a": nested(depth)}),
    ):
        with pytest.raises(Invalid, match="too deeply"):
            call()
    assert dict(array.attrs) == {}


def test_what_can_be_written_can_be_read(zarr_format: Any) -> None:
    """At the limit, above and below: accepted by both or by neither."""
    for depth in range(MAX_DEPTH - 4, MAX_DEPTH + 3):
        place: dict[str, bytes] = {}
        try:
            stash.create(
                place, (3,), "i4", zarr_format=zarr_format, attributes={"a": nested(depth)}
            )
        except Invalid:
            assert depth > MAX_DEPTH - 3
        else:
            assert stash.open(place).attrs["a"] == nested(depth)


def test_depth_is_that_of_lists_and_objects_and_not_of_text() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice([*'[{"\\]}'], int(rng.integers(1, 60))))
        depth = int(rng.integers(MAX_DEPTH - 3, MAX_DEPTH + 4))
        document = {"text": text * 40, "value": 0, "after": "[" * 9}
        data = json.dumps(document).replace('"value": 0', '"value": ' + _dumped(nested(depth)))
        try:
            check_depth(data.encode(), "x")
        except Corrupt:
            assert depth + 1 > MAX_DEPTH
        else:
            assert depth + 1 <= MAX_DEPTH


@pytest.mark.parametrize("parse", [zarr3.parse, zarr2.parse_array, zarr2.parse_group])
def test_a_million_brackets_cost_nothing(parse: Callable[[bytes], Any]) -> None:
    for data in (
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b'{"a": "' + b"\\" * 10**6,
        b'{"a": "' + b"[" * 10**6,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(Corrupt):
                parse(data)
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()


def test_deep_json_in_a_row_is_corrupt() -> None:
    records = stash.create_records({}, {"j": stash.json})
    records.append({"j": {"a": 1}})
    array: Any = stash.open_group(records.driver, "r+")["j"]
    array[0] = _dumped(nested(100_000))
    with pytest.raises(Corrupt, match="'j'"):
        records.refresh()[0]
    with pytest.raises(Invalid, match="'j'"):
        records.append({"j": nested(100_000)})


# -- members that cannot be read ---------------------------------------------------------------


class Broken(Driver):
    """``driver``, of which every request for a key below ``name`` fails."""

    def __init__(self, driver: Driver, name: str, error: type[DriverError]) -> None:
        self.driver, self.name, self.error = driver, name, error
        self.scheme, self.capabilities = driver.scheme, driver.capabilities

    def _check(self, key: str) -> None:
        if self.name == "" or f"/{key}".startswith(f"/{self.name}/"):
            raise self.error(f"cannot read {key!r}", key=key)

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        self._check(key)
        return self.driver.get_tagged(key, span)

    def get_many_tagged(self, requests: Any) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        asked: list[Request] = list(requests)
        for request in asked:  # as where many are under way: the first failure ends all
            self._check(request.key)
        return self.driver.get_many_tagged(asked)

    def put(self, key: str, value: Buffer, **how: Any) -> Tag:
        return self.driver.put(key, value, **how)

    def delete(self, key: str) -> None:
        self.driver.delete(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        return self.driver.list(prefix)

    def list_dir(self, prefix: str = "") -> Any:
        if prefix:
            self._check(prefix)
        return self.driver.list_dir(prefix)


@pytest.mark.parametrize("error", [Denied, DriverError, TimedOut, Unavailable])
@pytest.mark.parametrize("kind", ["memory", "redis", "s3fs", "obstore"])
def test_a_member_that_fails_hides_no_other(kind: str, error: Any, request: Any) -> None:
    if kind == "memory":
        place: Any = MemoryDriver({})
    else:
        where = remote(kind, request.getfixturevalue)
        place = stash.create_group(where.fresh(), options=where.options).driver
        place.delete("zarr.json")
    populated(place)
    group: Any = stash.open_group(Broken(place, "raw", error))
    assert group.keys() == ["empty", "raw", "time"]
    assert group["time"].shape == (4,)
    drawn = group.tree()
    assert f"raw ({error.__name__}: cannot be opened)" in drawn
    assert "time (4,) float64" in drawn
    for listed in (group.items(), group.walk()):
        assert next(listed)[0] == "empty"
        with pytest.raises(error):
            next(listed)
    with pytest.raises(error):
        group["raw"]
    if error in (Denied, DriverError):
        assert "raw" in group


def test_a_backend_that_is_down_is_no_group_of_broken_members() -> None:
    populated(MemoryDriver({}))
    place = MemoryDriver({})
    group = populated(place)
    broken = Broken(place, "", Unavailable)
    down = stash.Group(broken, "", group.settings, group.document)
    for call in (down.keys, down.tree, lambda: "raw" in down):
        with pytest.raises(Unavailable):
            call()


SCRIPT = """
import os, sys
import tensorstash as stash
from tensorstash.errors import Denied
where = sys.argv[1]
stash.open_group(where)["c"][...], stash.open_group(where).tree()  # imports what it needs
os.setgid(65534); os.setuid(65534)
group = stash.open_group(where)
print(group.keys(), "b" in group, "c" in group, group["c"][...].tolist())
print(group.tree().replace(where, ""))
names = []
try:
    for name, member in group.items():
        names.append(name)
except Denied:
    names.append("Denied")
print(names)
try:
    walked = [name for name, _ in group.walk()]
except Denied as error:
    walked = "Denied"
print(walked)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root can")
@pytest.mark.parametrize("how", ["folder", "document", "listing", "link"])
def test_a_member_without_the_right_to_read_hides_no_other(tmp_path: Path, how: str) -> None:
    with for_everybody() as folder:
        group = stash.create_group(folder / "g")
        group.create("a", (2,), "i4")[...] = 1
        group.create("b/x", (2,), "i4")
        group.create("c", (2,), "i4")[...] = 3
        target, mode = {
            "folder": ("b", 0o000), "document": ("b/zarr.json", 0o000), "listing": ("b", 0o711),
            "link": ("../far", 0o000),
        }[how]  # fmt: skip
        if how == "link":
            (folder / "far").mkdir()
            os.rename(folder / "g/b", folder / "far/b")
            os.symlink("../far/b", folder / "g/b")
        os.chmod(folder / "g" / target, mode)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder / "g")],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        keys, _, *rest = done.stdout.splitlines()
        assert keys == "['a', 'b', 'c'] True True [3, 3]"
        drawn = "\n".join(rest)
        assert "c (2,) int32" in drawn
        if how == "listing":
            assert "(Denied: cannot be listed)" in drawn
            assert rest[-2] == "['a', 'b', 'c']"
        else:
            assert "b (Denied: cannot be opened)" in drawn
            assert rest[-2] == "['a', 'Denied']"
        assert rest[-1] == "Denied"


@contextlib.contextmanager
def for_everybody() -> Iterator[Path]:
    """A folder that other users may pass through, as pytest's own are not; gone at the end."""
    path = Path(tempfile.mkdtemp(prefix="tensorstash-"))
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def test_a_damaged_member_hides_no_other(tmp_path: Path, zarr_format: Any) -> None:
    group: Any = populated(tmp_path / "g", zarr_format)
    name = "zarr.json" if zarr_format == 3 else ".zgroup"
    (tmp_path / "g" / "empty" / name).write_bytes(b'{"zarr')
    (tmp_path / "g" / "loop").symlink_to("loop")
    (tmp_path / "g" / "around").symlink_to(tmp_path / "g")
    for mode in ("r", "r+"):
        group = stash.open_group(tmp_path / "g", mode)  # type: ignore[arg-type]
        assert group.keys() == ["empty", "raw", "time"]
        assert "empty" in group
        assert group["time"].shape == (4,)
        assert "empty (Corrupt: cannot be opened)" in group.tree()
        for listed in (group.items(), group.walk()):
            with pytest.raises(Corrupt):
                next(listed)
