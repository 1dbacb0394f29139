"""Groups: members by name, attributes, consolidated metadata, conflicts."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Closed, Corrupt, Invalid, NotFound, ReadOnly
from tensorstash.testing.counting import CountingDriver
from tests.support.groups import populated
from tests.support.oracle import same

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


# -- members -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["files", "dict"])
def test_members_by_name(tmp_path: Path, where: str, zarr_format: Any) -> None:
    place: Any = tmp_path / "g" if where == "files" else {}
    made = populated(place, zarr_format)
    for group in (made, stash.open_group(place), stash.open_group(place, "r+")):
        assert group.zarr_format == zarr_format
        assert list(group) == group.keys() == ["empty", "raw", "time"]
        assert len(group) == 3
        image = group["raw/image"]
        assert isinstance(image, stash.Array)
        assert (image.shape, image.dtype, dict(image.attrs)) == ((4, 6), "u2", {"unit": "K"})
        assert (image[...] == 7).all()
        raw = group["raw"]
        assert isinstance(raw, stash.Group)
        assert list(raw) == ["image", "mask"]
        assert raw["image"].shape == (4, 6)
        assert {k: v.shape for k, v in group.arrays().items()} == {"time": (4,)}
        assert sorted(group.groups()) == ["empty", "raw"]
        assert [name for name, _ in group.walk()] == [
            "empty",
            "raw",
            "raw/image",
            "raw/mask",
            "time",
        ]
        for name in ("raw", "raw/image", "/raw/image/", "time"):
            assert name in group
        for name in ("nope", "raw/nope", "time/x", "..", "", "raw//image", "zarr.json", 3, None):
            assert name not in group


def test_the_tree_is_drawn(tmp_path: Path, zarr_format: Any) -> None:
    group = populated(tmp_path / "g", zarr_format)
    assert group.tree().splitlines() == [
        f"file://{tmp_path}/g",
        "├── empty",
        "├── raw",
        "│   ├── image (4, 6) uint16",
        "│   └── mask (4, 6) bool",
        "└── time (4,) float64",
    ]
    assert stash.create_group({}).tree() == "memory://"
    assert repr(group) == f"<tensorstash.Group at file://{tmp_path}/g>"


def test_groups_above_are_made_too(tmp_path: Path, zarr_format: Any) -> None:
    group = stash.create_group(tmp_path / "g", zarr_format=zarr_format)
    group.create("a/b/c", (2,), "i4")
    for name in ("a", "a/b"):
        assert isinstance(group[name], stash.Group)
        assert group[name].zarr_format == zarr_format
    assert isinstance(group["a/b/c"], stash.Array)
    assert stash.open(tmp_path / "g/a/b/c").shape == (2,)


def test_delete(zarr_format: Any) -> None:
    group = populated({}, zarr_format)
    del group["raw/mask"]
    assert list(group["raw"]) == ["image"]
    del group["raw"]
    assert list(group) == ["empty", "time"]
    assert not [key for key in group.driver.list() if key.startswith("raw")]
    for name in ("raw", "raw/image", "nope"):
        with pytest.raises(NotFound, match=name):
            del group[name]
    group.create("raw", (3,), "i4")
    assert (group["raw"][...] == 0).all()


def test_deleting_spoils_the_document_first() -> None:
    # A kill half way must not leave an array that reads as fill.
    seen: list[str] = []

    class Watching(CountingDriver):
        def delete_many(self, keys: Any) -> None:
            keys = [*keys]
            seen.extend(keys)
            if seen:
                for name in ("raw/image", "time"):
                    if any(key.startswith(f"{name}/") for key in keys):
                        with pytest.raises(Corrupt, match="unfinished"):
                            stash.open_group(self.driver)[name]
            super().delete_many(keys)

        def delete(self, key: str) -> None:
            seen.append(key)
            super().delete(key)

    driver = Watching(MemoryDriver())
    group = populated(driver)
    del group["raw/image"]
    assert len(seen) > 1 and seen[-1] == "raw/image/zarr.json"
    assert not [*driver.list("raw/image/")]
    seen.clear()
    group.create("time", (2,), "f4", overwrite=True)
    assert seen and "time/zarr.json" not in seen
    assert group["time"][...].tolist() == [0, 0]


def test_not_found_says_what_there_is() -> None:
    group = populated({})
    with pytest.raises(NotFound, match="it holds: empty, raw, time"):
        group["image"]
    with pytest.raises(NotFound, match="it holds: nothing"):
        group["empty"]["x"]
    with pytest.raises(KeyError):
        group["image"]


@pytest.mark.parametrize(
    "name", ["", "/", "..", "a/../b", "a//b", "__x", "zarr.json", "a\\b", "a\0"]
)
def test_names_that_cannot_be(name: str) -> None:
    group = stash.create_group({})
    for call in (
        lambda: group.create(name, (2,), "i4"),
        lambda: group.create_group(name),
        lambda: group[name],
    ):
        with pytest.raises(Invalid, match="cannot name a member"):
            call()
    assert list(group) == []


# -- conflicts ---------------------------------------------------------------------------------


def test_nothing_is_replaced_unasked(zarr_format: Any) -> None:
    group = populated({}, zarr_format)
    for name in ("time", "raw", "raw/image"):
        with pytest.raises(AlreadyExists):
            group.create(name, (2,), "i4")
        with pytest.raises(AlreadyExists):
            group.create_group(name)
    with pytest.raises(AlreadyExists):
        stash.create_group(group.driver)
    with pytest.raises(AlreadyExists):
        stash.open_group(group.driver, "x")
    assert group["time"][...].tolist() == [0, 1, 2, 3]
    assert group.create("time", (2,), "i4", overwrite=True)[...].tolist() == [0, 0]
    assert group.create_group("raw", overwrite=True).keys() == []
    assert stash.open_group(group.driver, "w", zarr_format=zarr_format).keys() == []


def test_nothing_lies_below_an_array(zarr_format: Any) -> None:
    group = populated({}, zarr_format)
    for name in ("time/x", "raw/image/x/y"):
        with pytest.raises(Invalid, match="is an array"):
            group.create(name, (2,), "i4")
        with pytest.raises(Invalid, match="is an array"):
            group.create_group(name)
    assert "time/x" not in group


def test_a_group_holds_one_format() -> None:
    for mine, other in ((3, 2), (2, 3)):
        group = stash.create_group({}, zarr_format=mine)  # type: ignore[arg-type]
        with pytest.raises(Invalid, match=f"v{mine}"):
            group.create("x", (2,), "i4", zarr_format=other)
        assert list(group) == []
        assert len(list(group.driver.list())) == 1
        assert group.create("y", (2,), "i4", zarr_format=mine).spec.zarr_format == mine


def test_modes(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no Zarr"):
        stash.open_group(tmp_path / "g")
    with pytest.raises(NotFound):
        stash.open_group(tmp_path / "g", "r+")
    with pytest.raises(Invalid, match="mode"):
        stash.open_group(tmp_path / "g", "rw")  # type: ignore[arg-type]
    assert not (tmp_path / "g").exists()
    stash.open_group(tmp_path / "g", "a").create("x", (2,), "i4")
    assert list(stash.open_group(tmp_path / "g", "a")) == ["x"]
    reader = stash.open_group(tmp_path / "g")
    for call in (
        lambda: reader.create("y", (2,), "i4"),
        lambda: reader.create_group("y"),
        lambda: reader.consolidate(),
        lambda: reader.attrs.update(a=1),
        lambda: reader.__delitem__("x"),
        lambda: reader["x"].__setitem__(0, 1),
    ):
        with pytest.raises(ReadOnly):
            call()
    with stash.open_group(tmp_path / "g") as group:
        pass
    for call in (lambda: group["x"], lambda: list(group), lambda: group.refresh()):
        with pytest.raises(Closed):
            call()


def test_an_array_is_no_group_and_the_reverse(tmp_path: Path, zarr_format: Any) -> None:
    populated(tmp_path / "g", zarr_format)
    with pytest.raises(Invalid, match="open it with open_group"):
        stash.open(tmp_path / "g")
    with pytest.raises(Invalid, match=r"open it with open\("):
        stash.open_group(tmp_path / "g/time")


def test_require_group() -> None:
    group = populated({})
    assert list(group.require_group("raw")) == ["image", "mask"]
    assert list(group.require_group("new/deep")) == []
    assert list(group["new"]) == ["deep"]
    with pytest.raises(Invalid, match="is an array"):
        group.require_group("time")
    made: list[Any] = []
    threads = [
        threading.Thread(target=lambda: made.append(group.require_group("race/x")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8


# -- attributes --------------------------------------------------------------------------------


def test_attributes(zarr_format: Any) -> None:
    group = stash.create_group({}, {"a": 1}, zarr_format=zarr_format)
    array = group.create("x", (2,), "i4", attributes={"unit": "K"})
    for handle in (group, array):
        attrs = handle.attrs
        attrs["b"] = [1, {"c": None}]
        attrs.update(d=2.5, e="text")
        attrs.setdefault("f", 6)
        assert attrs.pop("e") == "text"
        del attrs["d"]
        with pytest.raises(NotFound, match="no attribute 'd'"):
            attrs["d"]
        with pytest.raises(NotFound):
            del attrs["d"]
        assert attrs["b"] == [1, {"c": None}]
        assert set(attrs) == {"b", "f", "a" if handle is group else "unit"}
        assert len(attrs) == 3
        assert repr(attrs) == repr(dict(attrs))
        with pytest.raises(Invalid):
            attrs["bad"] = object()
        with pytest.raises(Invalid):
            attrs["bad"] = {1, 2}
    again = stash.open_group(group.driver)
    assert dict(again.attrs) == {"a": 1, "b": [1, {"c": None}], "f": 6}
    assert dict(again["x"].attrs) == {"unit": "K", "b": [1, {"c": None}], "f": 6}
    array.attrs.clear()
    assert dict(stash.open_group(group.driver)["x"].attrs) == {}
    array[...] = 5
    assert array.append([6]) == 2


def test_attributes_that_are_changed_are_not_stored_until_assigned() -> None:
    group = stash.create_group({}, {"a": [1]})
    group.attrs["a"].append(2)
    assert group.attrs["a"] == [1]
    assert stash.open_group(group.driver).attrs["a"] == [1]


def test_many_writers_of_attributes(zarr_format: Any) -> None:
    group = stash.create_group({}, zarr_format=zarr_format)

    def work(k: int) -> None:
        for turn in range(5):
            stash.open_group(group.driver, "r+").attrs[f"{k}-{turn}"] = turn

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(group.refresh().attrs) == 30


# -- handles -----------------------------------------------------------------------------------


def test_handles_pickle_small(tmp_path: Path) -> None:
    group = populated(tmp_path / "g")
    group.consolidate()
    data = pickle.dumps(stash.open_group(tmp_path / "g"))
    assert len(data) < 2048
    again = pickle.loads(data)
    assert list(again) == ["empty", "raw", "time"]
    member = pickle.loads(pickle.dumps(again["raw/image"]))
    same(member[0], np.full(6, 7, "u2"))


def test_a_damaged_member_does_not_hide_the_others(tmp_path: Path) -> None:
    group = populated(tmp_path / "g")
    group.driver.put("time/zarr.json", b'{"zarr_format": 3, "node_type"')
    assert list(group) == ["empty", "raw", "time"]
    assert group["raw/image"].shape == (4, 6)
    with pytest.raises((Corrupt, Invalid), match="time"):
        group["time"]
    assert "time" in group
    tree = group.tree()
    assert "image (4, 6) uint16" in tree
    assert "time" in tree
    del group["time"]
    assert list(group) == ["empty", "raw"]


def test_what_is_no_member_is_not_listed(tmp_path: Path) -> None:
    group = populated(tmp_path / "g")
    (tmp_path / "g/notes").mkdir()
    (tmp_path / "g/notes/read.me").write_text("hello")
    (tmp_path / "g/read.me").write_text("hello")
    assert list(group) == ["empty", "raw", "time"]
    assert "notes" not in group


def test_unknown_keys_of_a_group_are_kept(tmp_path: Path) -> None:
    group = stash.create_group(tmp_path / "g")
    path = tmp_path / "g/zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "extra": {"must_understand": False, "x": 1}}))
    again = stash.open_group(tmp_path / "g", "r+")
    again.attrs["a"] = 1
    again.consolidate()
    assert json.loads(path.read_text())["extra"] == {"must_understand": False, "x": 1}
    assert group.refresh().attrs["a"] == 1


def test_names_cost_one_look_at_each_member() -> None:
    driver = CountingDriver(MemoryDriver())
    made = stash.create_group(driver)
    for name in "abc":
        made.create(name, (1,), "u1")
    driver.reset()
    assert made.keys() == ["a", "b", "c"]
    assert driver.reads.keys == 3 and driver.counts["list_dir"].calls == 1
