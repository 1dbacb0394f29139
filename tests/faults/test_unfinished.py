"""Deletes, replacements and copies that are killed or fail: never an array that reads as fill,
never a chunk that nothing explains; and the next one goes through."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Corrupt, DriverError, NotFound, StashError
from tensorstash.metadata import mark, node, unfinished
from tensorstash.metadata.document import GroupDocument
from tensorstash.metadata.spec import KeyEncoding
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.every_place import KINDS, place, stored
from tests.support.races import fork, in_threads

# zarr-python says so where it finds documents of both versions.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

OLD = np.arange(1, 25, dtype="i4").reshape(4, 6)
NEW = OLD[::-1, ::-1] + 100
LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {"chunks": 2},
    "v3 dotted": {"chunks": (2, 3), "separator": "."},
    "v2": {"chunks": 2, "zarr_format": 2, "attributes": {"unit": "K"}},
    "v2 folders": {"chunks": 2, "zarr_format": 2, "separator": "/"},
}


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


def origin(how: dict[str, Any]) -> stash.Array:
    return stash.save({}, NEW, **how)


def made(driver: Driver, how: dict[str, Any]) -> stash.Group:
    """A group of an array ``x`` and a group ``g`` with another."""
    group = stash.create_group(driver, zarr_format=how.get("zarr_format", 3))
    for name in ("x", "g/y"):
        group.create(name, OLD.shape, "i4", **how)[...] = OLD
    return group


CHANGES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "delete": lambda at, how: stash.open_group(at, "r+").__delitem__("x"),
    "delete a group": lambda at, how: stash.open_group(at, "r+").__delitem__("g"),
    "replace": lambda at, how: stash.open_group(at, "r+").create(
        "x", NEW.shape, "i4", overwrite=True, **how
    ),
    "replace a group": lambda at, how: stash.open_group(at, "r+").create_group("g", overwrite=True),
    "replace all": lambda at, how: stash.create_group(
        at, overwrite=True, zarr_format=how.get("zarr_format", 3)
    ),
    "copy over all": lambda at, how: stash.copy(origin(how), at, overwrite=True),
}


def check_between(driver: Driver) -> None:
    """After a change that did not end: each array is as it was, whole, or new, or refused."""
    for path in ("", "x/", "g/", "g/y/"):
        try:
            found = node.load(driver, path)
        except Corrupt as error:
            assert "unfinished" in str(error)
            continue
        if found is not None and not isinstance(found.content, GroupDocument):
            values = stash.Array(driver, path, stash.handle.Settings("r"), found.content)[...]
            whole = np.array_equal(values, OLD) or np.array_equal(values, NEW)
            # A replacement is created empty: so it is when its document is there.
            empty = not values.any() and no_chunks(driver, path, found.content)
            assert whole or empty, path


def no_chunks(driver: Driver, path: str, spec: Any) -> bool:
    return not any(spec.keys.index(key[len(path) :], spec.ndim) for key in driver.list(path))


def finishes(driver: Driver, change: Callable[[Any, dict[str, Any]], Any], how: Any) -> None:
    """The same once more goes through, and leaves nothing of what was there before."""
    with suppress(NotFound, Corrupt):  # it was done, or the group above is not whole either
        change(driver, how)
    stash.copy(origin(how), driver, overwrite=True)
    assert np.array_equal(stash.load(driver), NEW)
    assert set(stored(driver)) == set(stored(stash.save({}, NEW, **how).driver))


def long(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.long)


def near_first(*usual: str) -> list[Any]:
    """The kinds of places: in the usual run these, the others in the long one."""
    return [kind if kind in usual else long(kind) for kind in KINDS]


# -- exceptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("layout", ["v3", "v2"])
@pytest.mark.parametrize("kind", near_first("file", "memory"))
def test_a_failure_of_any_request(
    kind: str, layout: str, verb: str, tmp_path: Path, request: Any
) -> None:
    how, change = LAYOUTS[layout], CHANGES[verb]
    number = 0
    while True:
        with place(kind, tmp_path, request.getfixturevalue) as driver:
            made(driver, how)

            met: list[int] = []

            def when(call: Call, number: int = number, met: list[int] = met) -> Fault | None:
                if call.number == number:
                    met.append(number)
                return "error" if call.number == number else None

            failing = FailingDriver(driver, when)
            # A failure may do no harm: whether a member is there is looked at again.
            with suppress(StashError):
                change(failing, how)
            check_between(driver)
            if not met:
                assert number > 5
                return
            finishes(driver, change, how)
        # Far away, every third: all of them are tried near by.
        number += 1 if driver.capabilities.local else 3


def test_a_copy_says_how_to_go_on(driver: Driver) -> None:
    for layout, how in LAYOUTS.items():

        def when(call: Call) -> Fault | None:
            return (
                "error"
                if call.verb.startswith("put") and call.key.endswith(("1/1", "1.1"))
                else None
            )

        with pytest.raises(DriverError, match="copy again with overwrite=True"):
            stash.copy(origin(how), FailingDriver(driver, when))
        with pytest.raises(Corrupt, match="a copy that is not whole"):
            stash.open(driver)
        with pytest.raises(AlreadyExists):
            stash.copy(origin(how), driver)
        whole = stash.copy(origin(how), driver, overwrite=True)
        assert np.array_equal(whole[...], NEW) and np.array_equal(stash.load(driver), NEW)
        assert dict(stash.open(driver).attrs) == how.get("attributes", {}), layout
        assert not any(b"unfinished" in value for value in stored(driver).values())
        node.delete(driver, "")
        assert stored(driver) == {}


# -- killed ------------------------------------------------------------------------------------


def die_at(path: Path, change: Callable[[Any, Any], Any], how: Any, call: str, number: int) -> None:
    left = [number]
    true = getattr(os, call)

    def counted(*args: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return true(*args, **options)

    setattr(os, call, counted)
    change(FileDriver(path), how)


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", ["unlink", *map(long, ["rename", "write", "rmdir"])])
def test_a_kill_at_any_step(tmp_path: Path, layout: str, verb: str, call: str) -> None:
    how, change = LAYOUTS[layout], CHANGES[verb]
    for number in range(200):
        path = tmp_path / str(number)
        made(FileDriver(path), how)
        child = fork.Process(target=die_at, args=(path, change, how, call, number))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        check_between(FileDriver(path))
        if child.exitcode == 0:
            break
        finishes(FileDriver(path), change, how)
        left = [p for p in path.rglob("*") if p.is_dir() and not any(p.iterdir())]
        assert left == []
    assert number < 199


# -- who refuses, and what it is called --------------------------------------------------------


def half(driver: Driver, how: dict[str, Any]) -> None:
    """An interrupted copy."""

    class Interrupted(FailingDriver):
        def _ask(self, verb: str, key: str) -> Fault | None:
            if verb.startswith("put") and key.endswith(("1/1", "1.1")):
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        stash.copy(origin(how), Interrupted(driver, lambda _: None), overwrite=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_reader_refuses_it(layout: str, tmp_path: Path) -> None:
    import zarr

    how = LAYOUTS[layout]
    half(FileDriver(tmp_path / "x"), how)
    for mode in ("r", "r+", "a"):
        options = {"shape": 3, "dtype": "i4"} if mode == "a" else {}
        with pytest.raises(Corrupt, match="a copy that is not whole"):
            stash.open(tmp_path / "x", mode, **options)  # type: ignore[arg-type]
        with pytest.raises(Corrupt, match="a copy that is not whole"):
            stash.open_group(tmp_path / "x", mode)  # type: ignore[arg-type]
    with pytest.raises(Corrupt, match="a copy that is not whole"):
        stash.open_records(tmp_path / "x")
    for call in (
        lambda: stash.create(tmp_path / "x", 3, "i4"),
        lambda: stash.open(tmp_path / "x", "x", shape=3, dtype="i4"),
        lambda: stash.create_group(tmp_path / "x"),
    ):
        with pytest.raises(AlreadyExists):
            call()
    for store in (tmp_path / "x", stash.zarr_store(tmp_path / "x")):
        for version in (None, 2, 3):
            for opener in (zarr.open, zarr.open_array, zarr.open_group):
                with pytest.raises(
                    Exception, match=r"tensorstash_unfinished|No array|not found|No |exists"
                ):
                    opener(store, mode="r", zarr_format=version)
    for kind in ("zarr", "zarr3"):
        with pytest.raises(ValueError, match=r"tensorstash_unfinished|NOT_FOUND|not found"):
            tensorstore_open(kind, tmp_path / "x")
    assert stash.save(tmp_path / "x", OLD)[...].tolist() == OLD.tolist()
    assert np.array_equal(zarr.open_array(tmp_path / "x", mode="r")[...], OLD)
    assert np.array_equal(tensorstore_open("zarr3", tmp_path / "x").read().result(), OLD)


def tensorstore_open(kind: str, path: Path) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": kind, "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open(spec, read=True).result()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_member_that_is_unfinished(driver: Driver, layout: str) -> None:
    how = LAYOUTS[layout]
    group = made(driver, how)
    with pytest.raises(DriverError):
        CHANGES["delete"](FailingDriver(driver, deleting), how)
    assert "x" in group
    assert list(group) == ["g", "x"]
    assert "cannot be opened" in group.tree()
    with pytest.raises(Corrupt, match="what a delete left; delete it again"):
        group["x"]
    with pytest.raises(Corrupt, match="delete it again"):
        group.create("x/in", 3, "i4")
    assert np.array_equal(group["g/y"][...], OLD)
    del group["x"]
    assert list(group) == ["g"]
    assert not [key for key in stored(driver) if key.startswith("x")]


def deleting(call: Call) -> Fault | None:
    return "error" if call.verb.startswith("delete") else None


def test_handles_from_before(driver: Driver) -> None:
    if not driver.capabilities.locks:
        pytest.skip("appends need a lock")
    old = stash.save(driver, OLD, chunks=2)
    half(driver, LAYOUTS["v3"])
    for call in (old.refresh, lambda: old.append(OLD), lambda: old.resize((2, 6)),
                 lambda: old.attrs.update(a=1)):  # fmt: skip
        with pytest.raises(Conflict, match="copy again"):
            call()


def test_what_someone_has_changed_meanwhile_is_kept() -> None:
    driver = MemoryDriver({})
    with node.making(driver, "", origin({}).spec, "copy"):
        document = json.loads(bytes(driver.get("zarr.json") or b""))
        document["attributes"] = {"seen": True}
        driver.put("zarr.json", json.dumps(document).encode())
    assert dict(stash.open(driver).attrs) == {"seen": True}


@pytest.mark.parametrize("layout", ["v3", "v2"])
def test_a_copy_that_someone_replaced_meanwhile_says_so(layout: str) -> None:
    driver = MemoryDriver({})
    with (
        pytest.raises(Conflict, match="replaced or deleted by someone else"),
        node.making(driver, "", origin(LAYOUTS[layout]).spec, "copy"),
    ):
        driver.delete_prefix("")  # one that takes no lock
        stash.create(driver, OLD.shape, OLD.dtype)[...] = OLD
    assert np.array_equal(stash.load(driver), OLD)


def test_many_replace_at_once(driver: Driver) -> None:
    if not driver.capabilities.conditional_put:
        pytest.skip("one writer at a time")
    stash.save(driver, OLD, chunks=2)
    seen = []

    def replace(number: int) -> None:
        shape = (number + 1,)
        array = stash.create(driver, shape, "i4", chunks=1, overwrite=True, fill_value=number)
        seen.append(array.shape)

    in_threads(4, replace)
    array = stash.open(driver)
    assert sorted(seen) == [(1,), (2,), (3,), (4,)]
    assert array[...].tolist() == [array.shape[0] - 1] * array.shape[0]
    assert set(stored(driver)) == {"zarr.json"}


def test_only_one_makes_it(driver: Driver) -> None:
    if not driver.capabilities.conditional_put:
        pytest.skip("one writer at a time")
    made, refused = [], []

    def copy(_: int) -> None:
        try:
            made.append(stash.copy(origin({"chunks": 2}), driver))
        except AlreadyExists as error:
            refused.append(error)

    in_threads(4, copy)
    assert len(made) == 1 and len(refused) == 3
    assert np.array_equal(stash.load(driver), NEW)


def test_a_copy_under_way_is_not_taken_over(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not driver.capabilities.locks:
        pytest.skip("one writer at a time")
    monkeypatch.setattr(unfinished, "_PATIENCE", 0.1)
    with node.making(driver, "", origin({}).spec, "copy") as check:
        with pytest.raises(StashError, match="lock"):
            stash.save(driver, OLD)
        check()
        with pytest.raises(Corrupt):
            stash.open(driver)
        made = stash.Array(driver, "", stash.handle.Settings("r+"), origin({}).spec)
        made.watch(False)  # as who makes it does
        made[...] = NEW
    assert np.array_equal(stash.load(driver), NEW)


# -- the document ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", [1, "x", [], {}, {"nodes": 1}, {"nodes": {"": 1}}, {"nodes": {"": [1, [1], ["a", 1, 2],
    [-1, "v2", "."], [10**9, "v2", "."], [1, "v3", "."], [1, [], {}]]}}, {"what": []}, None],
)  # fmt: skip
def test_a_damaged_mark_explains_nothing_and_is_refused(field: Any) -> None:
    driver = stash.save({}, OLD, chunks=2).driver
    document = json.loads(bytes(driver.get("zarr.json") or b""))
    document[mark.FIELD] = field
    driver.put("zarr.json", json.dumps(document).encode())
    before = stored(driver)
    with pytest.raises(StashError, match="unfinished"):
        stash.open(driver)
    if field is None:
        return
    with pytest.raises(AlreadyExists, match="c/"):
        stash.save(driver, [1, 2])
    assert stored(driver) == before


def test_the_mark_names_what_it_explains() -> None:
    layouts = {"": (), "a/": (mark.Layout(2, KeyEncoding("v2", "/")),)}
    written = mark.Mark.new("delete", layouts)
    read = mark.mark_in(json.loads(json.dumps(written.on(mark.stub(True)))))
    assert read == written
    assert mark.Mark.new("delete", layouts) != written


def test_fields_of_records_that_are_unfinished() -> None:
    for change in (
        lambda r: r.add_field("new", "i4", [1, 2]),
        lambda r: r.add_field("in/new", stash.ragged("i4"), [[1], [2, 3]]),
        lambda r: r.rename_field("t", "new"),
    ):
        number = 0
        while True:
            records = stash.create_records({}, {"x": "i4", "t": stash.ragged("i4")})
            records.extend({"x": [1, 2], "t": [[1], [2, 3]]})
            inner = records.driver

            def when(call: Call, number: int = number) -> Fault | None:
                return "error" if call.number == number else None

            failing = FailingDriver(inner, lambda _: None)
            changing = stash.open_records(failing, "r+")
            failing.when, failing._seen = when, 0
            try:
                change(changing)
                break
            except StashError:
                number += 1
            # Whatever is left is explained: the records can be replaced.
            assert stash.open_records(inner)["x"][...].tolist() == [1, 2]
            stash.save_records(inner, {"y": np.arange(3)})
            assert {key.partition("/")[0] for key in inner.list()} == {"y", "zarr.json"}
        assert number > 3
