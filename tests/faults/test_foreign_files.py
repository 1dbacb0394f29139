"""What is stored beside arrays, groups and records, and is not theirs, is never removed: whatever
is called, on every driver."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.fsspec import FsspecDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.drivers.posix import partial
from tensorstash.drivers.s3.driver import S3Driver
from tensorstash.drivers.shm.driver import ShmDriver, _memory
from tensorstash.errors import AlreadyExists, Invalid, StashError
from tensorstash.metadata import belongings, node
from tensorstash.testing.counting import CountingDriver
from tests.support.every_place import KINDS, place, stored
from tests.support.shm_names import fresh

DATA = np.arange(24, dtype="i4").reshape(4, 6)
V2: dict[str, Any] = {"zarr_format": 2}


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


name = pytest.fixture(fresh)

REPLACING: dict[str, Callable[[Any], Any]] = {
    "save": lambda at: stash.save(at, DATA),
    "save v2": lambda at: stash.save(at, DATA, zarr_format=2),
    "create": lambda at: stash.create(at, 3, "u1", overwrite=True),
    "open w": lambda at: stash.open(at, "w", shape=3, dtype="u1"),
    "copy": lambda at: stash.copy(stash.save({}, DATA), at, overwrite=True),
    "create_group": lambda at: stash.create_group(at, overwrite=True),
    "create_group v2": lambda at: stash.create_group(at, overwrite=True, zarr_format=2),
    "open_group w": lambda at: stash.open_group(at, "w"),
    "create_records": lambda at: stash.create_records(at, {"x": "i4"}, overwrite=True),
    "save_records": lambda at: stash.save_records(at, {"x": np.arange(3)}),
}

ALONE = [
    *("2023/img.jpg", "2023/1/2/3.jpg", "c/main.c", "src/c/main.c", "123", "c.1", "c/0", "0.0"),
    *(
        "c/0/notes.txt",
        "007",
        "c/00",
        "c/1e3",
        "c/\u0661",
        ".zattrs",
        "c",
        "app/session:1",
        "app/zarr",
    ),
    *("c/0/0/0", "0/0", "zarr.json.bak", "c/-1", "c/" + "9" * 30, "x/zarr.json"),
]
"""Keys at a place where there is no node: nothing explains any of them."""


@pytest.mark.parametrize("verb", REPLACING)
def test_where_there_is_no_node_nothing_is_replaced(driver: Driver, verb: str) -> None:
    for key in some(driver, ALONE):
        driver.put(key, b"precious")
        with pytest.raises(AlreadyExists, match="holds"):
            REPLACING[verb](driver)
        assert stored(driver) == {key: b"precious"}
        driver.delete_prefix("")


def some(driver: Driver, keys: list[str]) -> list[str]:
    """``keys``, or where each costs round trips, some of them."""
    return keys if driver.capabilities.local else keys[::5]


def has_folders(driver: Driver) -> bool:
    return isinstance(driver, FileDriver | FsspecDriver)


NODES: dict[str, Callable[[Driver], Any]] = {
    "array": lambda at: stash.create(at, (4, 6), "i4", chunks=2),
    "dotted": lambda at: stash.create(at, (4, 6), "i4", chunks=2, separator="."),
    "v2": lambda at: stash.create(at, (4, 6), "i4", chunks=2, attributes={"a": 1}, **V2),
    "v2 folders": lambda at: stash.create(at, (4, 6), "i4", chunks=2, separator="/", **V2),
}

BESIDE: dict[str, list[str]] = {
    "array": ["c/0", "c/0/0/0", "c/0/notes.txt", "c/00/1", "0.0", "c.0.0", "0/0", "notes", "c/x/y"],
    "dotted": ["c/0/0", "c.0", "c.0.0.0", "c.00.1", "0.0", "c.0.0x", "x/c.0.0", "c.0.0.txt"],
    "v2": ["c/0/0", "0", "0.0.0", "00.1", "0/0", "c.0.0", "0.0.jpg", "x/0.0", "2023/0.0"],
    "v2 folders": ["c/0/0", "2023/img.jpg", "0/0/0", "00/1", "0.0", "0/0x", "x/0/0"],
}


@pytest.mark.parametrize("kind", NODES)
def test_what_an_array_does_not_explain_is_not_replaced(driver: Driver, kind: str) -> None:
    NODES[kind](driver)[...] = DATA
    before = stored(driver)
    for key in some(driver, BESIDE[kind]):
        if has_folders(driver) and key in ("c/0/0/0", "c/0", "0/0/0", "0"):
            continue  # a chunk's file cannot be a folder too, nor the other way round
        if key in before:
            continue
        driver.put(key, b"precious")
        for verb in ("save", "create_group", "copy", "save_records"):
            with pytest.raises(AlreadyExists, match="which no metadata there explains"):
                REPLACING[verb](driver)
            assert stored(driver) == {**before, key: b"precious"}
        driver.delete(key)
        driver.prune("")
    for verb in ("save v2", "create_group", "save"):  # and without them it is
        REPLACING[verb](driver)
    assert set(stored(driver)) <= {"zarr.json", "c/0/0"}
    assert np.array_equal(stash.load(driver), DATA)


@pytest.mark.parametrize("codecs", [None, "auto"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_number_is_no_chunk_of_an_array_that_has_not_so_many(
    driver: Driver, zarr_format: Any, codecs: Any
) -> None:
    how: dict[str, Any] = {"zarr_format": zarr_format, "codecs": codecs}
    array = stash.create(driver, 6, "i4", chunks=2, key_encoding="v2", **how)
    array[...] = 1
    before = stored(driver)
    for key in ("3", "2023"):
        driver.put(key, b"precious!")
        for verb in ("save", "create_group", "copy", "save_records"):
            with pytest.raises(AlreadyExists, match=key):
                REPLACING[verb](driver)
            assert stored(driver) == {**before, key: b"precious!"}
        driver.delete(key)
    if driver.capabilities.locks:
        driver.put("2023", b"precious!")
        for shape in (4, 1, 9, 0, 6):
            array.resize((shape,))
        assert array[...].tolist() == [0] * 6
        assert stored(driver)["2023"] == b"precious!"
        driver.delete("2023")
    driver.put("7", before["0"])  # left by somebody who was killed while the array was longer
    REPLACING["save"](driver)
    assert set(stored(driver)) == {"zarr.json", "c/0/0"}


@pytest.mark.parametrize("kind", [*NODES, "group", "v2 group"])
def test_files_of_others_that_bear_names_of_documents(driver: Driver, kind: str) -> None:
    if "group" in kind:
        stash.create_group(driver, zarr_format=2 if "v2" in kind else 3)
    else:
        NODES[kind](driver)[...] = DATA
    before = stored(driver)
    theirs = ["zarr.json", ".zarray", ".zgroup"]
    theirs += [".zmetadata", ".zattrs"] if "v2" not in kind else []
    for key in theirs:
        if key in before:
            continue
        for value in (b"precious", b'{"precious": 1}', b""):
            driver.put(key, value)
            for verb in ("save", "create_group", "copy", "save_records"):
                with pytest.raises(AlreadyExists, match=re.escape(key)):
                    REPLACING[verb](driver)
                assert stored(driver) == {**before, key: value}
        driver.delete(key)
    REPLACING["save"](driver)
    assert set(stored(driver)) == {"zarr.json", "c/0/0"}


MEMBERS = ["notes.txt", "raw/notes.txt", "photos/2023/1.jpg", "raw/image/c/0/0.txt", "session:1"]
MEMBERS += ["raw/image/c/0", "empty/c/0/0", "other/x/zarr.json", "c/0/0", "0.0", "raw/0"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_a_group_does_not_explain_is_not_deleted(driver: Driver, zarr_format: Any) -> None:
    group = stash.create_group(driver, zarr_format=zarr_format)
    for where in ("g/raw/image", "g/time", "other"):
        group.create(where, (4, 6), "i4", chunks=2, separator="/")[...] = DATA
    group.create_group("g/empty")
    before = stored(driver)
    for key in (f"g/{name}" for name in some(driver, MEMBERS)):
        if key in before or (has_folders(driver) and key == "g/raw/image/c/0"):
            continue
        driver.put(key, b"precious")
        for call in (
            lambda: group.__delitem__("g"),
            lambda: group.create("g", 3, "i4", overwrite=True),
            lambda: group.create_group("g", overwrite=True),
            lambda: REPLACING["save"](driver),
            lambda: REPLACING["open_group w"](driver),
        ):
            with pytest.raises(AlreadyExists, match="which no metadata there explains"):
                call()
            assert stored(driver) == {**before, key: b"precious"}
        driver.delete(key)
        driver.prune("g/")
    del group["g"]
    assert {key for key in stored(driver) if key.startswith("g")} == set()
    assert np.array_equal(group["other"][...], DATA)


def test_fields_of_records(driver: Driver) -> None:
    if not driver.capabilities.locks and driver.scheme == "zarr":
        pytest.skip("records need a lock, which a store of zarr-python has not")
    records = stash.create_records(driver, {"x": "i4", "t": stash.ragged("i4"), "in": {"y": "i4"}})
    records.extend({"x": [1, 2], "t": [[1], [2, 3]], "in": {"y": [3, 4]}})
    before = stored(driver)
    for key in ("x/notes", "t/notes", "t/values/c/0.txt", "in/y/2023/1.jpg"):
        driver.put(key, b"precious")
        field = key.rpartition("/")[0].partition("/")[0].replace("in", "in/y")
        for call in (
            lambda field=field: records.drop_field(field),
            lambda field=field: records.rename_field(field, "new"),
            lambda: REPLACING["save_records"](driver),
        ):
            with pytest.raises(AlreadyExists, match=r"notes|txt|jpg"):
                call()
            assert stored(driver) == {**before, key: b"precious"}
        driver.delete(key)
        driver.prune("")
    driver.put("new/c/0", b"precious")
    with pytest.raises(AlreadyExists, match="c/0"):
        records.add_field("new", "i4", [1, 2])
    with pytest.raises(AlreadyExists, match="c/0"):
        records.rename_field("x", "new")
    assert stored(driver) == {**before, "new/c/0": b"precious"}
    records.rename_field("x", "z")
    records.drop_field("t")
    records.drop_field("in/y")
    assert {key.partition("/")[0] for key in stored(driver)} == {"new", "z", "zarr.json"}
    assert records["z"][...].tolist() == [1, 2]


# -- any mixture of names ----------------------------------------------------------------------

_PART = st.sampled_from(
    ["0", "1", "00", "2023", "c", "a", "zarr.json", ".zarray", "c.0", "0.1", "b.txt", "x"]
)
_KEY = st.lists(_PART, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150)
@given(
    keys=st.lists(_KEY, max_size=4),
    kind=st.sampled_from([None, *NODES, "group", "records"]),
    verb=st.sampled_from([*REPLACING]),
)
def test_any_mixture_of_names(keys: list[str], kind: str | None, verb: str) -> None:
    driver = MemoryDriver({})
    ours: dict[str, bytes] = {}
    if kind == "group":
        stash.create_group(driver).create("a", (4, 6), "i4", chunks=2)[...] = DATA
    elif kind == "records":
        stash.save_records(driver, {"x": np.arange(3)})
    elif kind is not None:
        NODES[kind](driver)[...] = DATA
    ours = stored(driver)
    for key in keys:
        if key not in ours:
            driver.put(key, b"precious")
    before = stored(driver)
    foreign = {key for key in before if key not in ours and not explained(driver, key, kind)}
    try:
        REPLACING[verb](driver)
    except StashError as error:
        assert isinstance(error, AlreadyExists) and foreign
        assert stored(driver) == before
    else:
        assert not foreign


def explained(driver: Driver, key: str, kind: str | None) -> bool:
    """By the letter of the formats: what may go although it was not stored by us. Of the keys that
    the test puts none is a document, whatever its name."""
    *folders, last = key.split("/")
    if kind in ("group", "records"):
        member = "a" if kind == "group" else "x"
        if not folders or folders.pop(0) != member:
            return False
        kind = "array"
    if kind == "array":
        inside = canonical(*folders[1:], last) and (depth(key) == 2 or last == "0")
        return folders[:1] == ["c"] and len(folders) == depth(key) and inside
    if kind == "v2 folders":
        return len(folders) == 1 and canonical(folders[0], last)
    return (kind, key) == ("v2", "0.1")


def depth(key: str) -> int:
    return 1 if key.startswith("x/") else 2


def canonical(*names: str) -> bool:
    return all(name in ("0", "1") for name in names)  # 2023 is beyond the shape


# -- what comes meanwhile, and how much it costs -----------------------------------------------


def test_what_comes_between_the_look_and_the_delete_stays(driver: Driver) -> None:
    group = stash.create_group(driver)
    group.create("x", (4, 6), "i4", chunks=2)[...] = DATA

    class Late(CountingDriver):
        def come(self) -> None:
            if self.driver.get("x/c/notes.txt") is None:
                self.driver.put("x/c/notes.txt", b"precious")
                self.driver.put("x/notes.txt", b"precious")

        def delete_many(self, keys: Any) -> None:
            self.come()
            super().delete_many(keys)

        def delete_each(self, pairs: Any) -> Any:
            self.come()
            return super().delete_each(pairs)

    late = Late(driver)
    del stash.open_group(late, "r+")["x"]
    assert {key for key in stored(driver) if key.startswith("x")} == {
        "x/c/notes.txt",
        "x/notes.txt",
    }
    assert list(group) == []


def test_more_chunks_than_are_remembered(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belongings, "_KEPT", 5)
    monkeypatch.setattr("tensorstash.metadata.unfinished._AT_ONCE", 3)
    group = stash.create_group(driver)
    group.create("g/x", 40, "i4", chunks=1)[...] = np.arange(1, 41)
    group.create("g/y", 40, "i4", chunks=2)[...] = np.arange(1, 41)
    stash.save(driver, DATA)  # replaces all of it
    assert not [key for key in stored(driver) if key.startswith("g")]
    assert np.array_equal(stash.load(driver), DATA)


def test_the_cost_of_a_delete_follows_what_is_stored() -> None:
    counted = CountingDriver(MemoryDriver({}))
    group = stash.create_group(counted)
    for i in range(300):
        group.create(f"g/m{i}", (1 << 40, 1 << 40), "u1", chunks=1)
        group[f"g/m{i}"].driver.put(f"g/m{i}/c/7/{i}", b"1")
    counted.reset()
    del group["g"]
    assert [*counted.driver.list()] == ["zarr.json"]
    assert counted.counts["get_many_tagged"].calls < 12
    assert counted.counts["list"].calls <= 3
    assert counted.counts["delete_many"].calls <= 3
    assert counted.counts["put"].calls == 1


def test_deleting_needs_no_memory_for_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    class Endless(MemoryDriver):
        """An array of very many chunks, of which only the names are told."""

        count = 60_000
        gone = 0

        def list(self, prefix: str = "") -> Iterator[str]:
            yield from (key for key in ("zarr.json", "x/zarr.json") if key.startswith(prefix))
            for i in range(self.gone, self.count):
                yield f"x/c/{i}"

        def delete_many(self, keys: Any) -> None:
            for key in keys:
                if "/c/" in key:
                    self.gone += 1
                else:
                    self.delete(key)

    driver = Endless({})
    group = stash.create_group(driver)
    group.create("x", 1 << 40, "u1", chunks=1)
    tracemalloc.start()
    try:
        del group["x"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert driver.gone == driver.count
    assert peak < 4 << 20
    assert list(group) == []


def test_create_takes_up_chunks_that_have_no_metadata(driver: Driver) -> None:
    array = stash.create(driver, DATA.shape, DATA.dtype, chunks=2)
    array[...] = DATA
    driver.delete("zarr.json")
    with pytest.raises(AlreadyExists, match="is not a Zarr array or group but holds"):
        stash.save(driver, DATA)
    again = stash.create(driver, DATA.shape, DATA.dtype, chunks=2)
    assert np.array_equal(again[...], DATA)


# -- documents that cannot be read -------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no JSON", "codec", "no dtype", "encoding", "list"])
def test_a_document_that_nobody_can_open_explains_what_it_can(driver: Driver, damage: str) -> None:
    stash.save(driver, DATA, chunks=2)
    document = json.loads(bytes(driver.get("zarr.json") or b""))
    document |= {
        "codec": {"codecs": [{"name": "from the future"}]},
        "no dtype": {"data_type": "nothing"},
        "encoding": {"chunk_key_encoding": {"name": "from the future"}},
    }.get(damage, {})
    data = json.dumps([] if damage == "list" else document).encode()
    driver.put("zarr.json", data[:100] if damage == "no JSON" else data)
    before = stored(driver)
    with pytest.raises(StashError):
        stash.open(driver)
    if damage in ("encoding", "list"):
        with pytest.raises(AlreadyExists, match=r"zarr\.json|c/"):
            stash.save(driver, [1, 2])
        assert stored(driver) == before
        return
    driver.put("c/main.c", b"precious")
    with pytest.raises(AlreadyExists, match=r"c/main\.c"):
        stash.save(driver, [1, 2])
    driver.delete("c/main.c")
    assert stored(driver) == before
    assert stash.save(driver, [1, 2])[...].tolist() == [1, 2]
    assert set(stored(driver)) == {"zarr.json", "c/0"}


# -- links -------------------------------------------------------------------------------------


def test_links_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    stash.save(tmp_path / "precious", DATA, chunks=2)
    before = stored(FileDriver(tmp_path / "precious"))
    group = stash.create_group(tmp_path / "g")
    calls: list[Callable[[], Any]] = [
        lambda: group.__delitem__("in/link"),
        lambda: group.create("in/link", 3, "i4", overwrite=True),
        lambda: group.create_group("in/link", overwrite=True),
        lambda: group.__delitem__("in"),
        lambda: group.create("in", 3, "i4", overwrite=True),
    ]
    for call in calls:
        group.create_group("in", overwrite=True)
        os.symlink(tmp_path / "precious", tmp_path / "g/in/link")
        call()
        assert stored(FileDriver(tmp_path / "precious")) == before
        assert not (tmp_path / "g/in/link").is_symlink()


def test_an_array_whose_chunks_are_elsewhere(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", DATA, chunks=2)
    (tmp_path / "a/c").rename(tmp_path / "disk")
    os.symlink(tmp_path / "disk", tmp_path / "a/c")
    before = stored(FileDriver(tmp_path / "disk"))
    assert stash.save(tmp_path / "a", [1, 2])[...].tolist() == [1, 2]
    assert stored(FileDriver(tmp_path / "disk")) == before
    assert not (tmp_path / "a/c").is_symlink()


# -- names that a driver keeps for itself ------------------------------------------------------

KEPT = {
    "file": [".zarr.json.lock", partial.name("a", 1)],
    "shm": [".zarr.json.lock"],
    "s3fs": [".tensorstash"],
    "obstore": [".tensorstash"],
    "redis": [".tag{x}", ".lock{zarr.json}"],
    "fsspec": [".tensorstash-1"],
}
ODD = [
    ".hidden",
    ".x.lock",
    ".tensorstash",
    ".tag{x}",
    ".lock{y}",
    ".a.0badcafe-1-1.partial",
    "a.b",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_is_listed(kind: str, tmp_path: Path, request: Any) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        group, made = stash.create_group(driver), []
        for name in [*ODD, *KEPT.get(kind, [])]:
            calls: list[Callable[[], Any]] = [
                lambda name=name: group.create(name, 3, "i4"),
                lambda name=name: group.create_group(f"{name}/in"),
                lambda name=name: group.create(f"in/{name}/in", 3, "i4"),
            ]
            before = stored(driver)
            try:
                calls[0]()
            except Invalid as error:
                assert "keeps names such as" in str(error)
                for call in calls[1:]:
                    with pytest.raises(Invalid, match="keeps names such as"):
                        call()
                with pytest.raises(Invalid):
                    stash.create_records(driver, {name: "i4"}, overwrite=True)
                assert stored(driver) == before
                assert name in ODD or name in KEPT[kind]
            else:
                assert name not in KEPT.get(kind, [])
                made.append(name)
        assert list(group) == sorted(made)


@pytest.mark.parametrize("kind", ["file", "s3fs", "redis"])
def test_nothing_is_created_below_a_name_that_is_kept(
    kind: str, tmp_path: Path, request: Any
) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        options = {} if kind == "file" else request.getfixturevalue(
            "s3" if kind == "s3fs" else "valkey_server").options  # fmt: skip
        for call in (
            lambda at: stash.save(at, [1], options=options),
            lambda at: stash.create_group(at, options=options),
            lambda at: stash.copy(stash.save({}, [1]), at, options=options),
            lambda at: stash.create_records(at, {"x": "i4"}, options=options),
        ):
            with pytest.raises(Invalid, match=r"keeps names such as|are kept"):
                call(f"{driver.url}/{KEPT[kind][0]}")
        assert stored(driver) == {}
    records = stash.create_records(tmp_path / "r", {"x": "i4"})
    for change in (
        lambda: records.add_field(".zarr.json.lock", "i4"),
        lambda: records.rename_field("x", ".zarr.json.lock"),
    ):
        with pytest.raises(Invalid, match="keeps names such as"):
            change()
    assert records.names == ("x",)


# -- other folders of ours ---------------------------------------------------------------------


def test_a_folder_of_shared_memory_that_is_no_store_stays(name: str) -> None:
    folder = Path(_memory(), f"tensorstash-{os.geteuid()}-{name}-notes")
    (folder / "values").mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    try:
        ShmDriver(f"{name}").close()  # sweeps what dead processes left
        kept = []  # as a notebook keeps what it shows
        for _ in range(2):
            with pytest.raises(AlreadyExists, match="no store's") as caught:
                ShmDriver(f"{name}-notes")
            kept.append(caught.value)
        assert (folder / "thesis.tex").read_text() == "precious"
    finally:
        (folder / "thesis.tex").unlink()
        (folder / "values").rmdir()
        folder.rmdir()


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_nothing_is_left_of_what_is_deleted_but_locks_that_are_held(
    client: str, tmp_path: Path, request: Any
) -> None:
    with place(client, tmp_path, request.getfixturevalue) as driver:
        group = stash.create_group(driver)
        group.create("x", (4, 6), "i4", chunks=2).append(DATA)
        raw = S3Driver._pages
        with driver.lock("y/zarr.json", timeout=5):
            del group["x"]
            driver.prune("")
            left = {key for page in raw(driver, "") for key, _ in page.keys}  # type: ignore[arg-type]
            assert left == {"zarr.json", "y/.tensorstash/lock/zarr.json"}
        driver.prune("")
        left = {key for page in raw(driver, "") for key, _ in page.keys}  # type: ignore[arg-type]
        assert left == {"zarr.json"}


def test_a_failed_look_changes_nothing(driver: Driver) -> None:
    stash.save(driver, DATA)
    before = stored(driver)
    driver.put("notes", b"precious")
    with pytest.raises(AlreadyExists):
        node.delete(driver, "")
    assert stored(driver) == {**before, "notes": b"precious"}
