"""A handle reads and writes the array that it was opened on, or says that it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import tensorstash as stash
from tensorstash.driver import Request
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Invalid, NotFound
from tensorstash.loading.loader import BatchLoader
from tensorstash.metadata import trailer
from tests.support.far import FarDriver
from tests.support.sent import sent

STALE = (Conflict, NotFound)
REFUSED = (*STALE, Invalid)
"""Also of records that were sent: they have the fields of now, and know of no other."""


def places(tmp_path: Path) -> list[Any]:
    return [f"memory://{uuid4()}", str(tmp_path / "x"), FarDriver(MemoryDriver())]


def stored(place: Any) -> dict[str, bytes]:
    driver = stash.open(place).driver
    return {key: bytes(driver.get(key) or b"") for key in driver.list()}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
@pytest.mark.parametrize(
    "how", [{}, {"zarr_format": 2}, {"shards": (8,)}], ids=["3", "2", "shards"]
)
def test_an_array_that_was_overwritten_by_one_alike(tmp_path: Path, which: int, how: Any) -> None:
    place = places(tmp_path)[which]
    made: Any = {"shape": (10,), "dtype": "i4", "chunks": (4,), **how}
    first = stash.create(place, **made)
    first[:] = 1
    old = stash.open(place, "r+")
    cached = stash.open(place, "r+", cache="1MiB")
    assert cached[:].tolist() == [1] * 10
    buffered = old.writer()
    buffered[3] = 9
    stash.create(place, overwrite=True, **made)[:] = 2
    before = stored(place)
    for handle in (first, old, cached):
        uses: list[Callable[[], Any]] = [
            lambda h=handle: h[:],
            lambda h=handle: h[3],
            lambda h=handle: h.lazy[2:5].read(),
            lambda h=handle: list(h.iter_blocks()),
            lambda h=handle: h.__setitem__(3, 7),
            lambda h=handle: h.__setitem__(slice(None), 7),
            lambda h=handle: h.__setitem__(slice(0, 8), 7),
            lambda h=handle: h.append([7]),
            lambda h=handle: h.resize((3,)),
            lambda h=handle: h.attrs.update(a=1),
            lambda h=handle: h.refresh(),
        ]
        for use in uses:
            with pytest.raises(Conflict, match="replaced"):
                use()
    with pytest.raises(Conflict, match="replaced"):
        buffered.close()
    assert stored(place) == before


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
def test_an_array_that_changes_stays_itself(tmp_path: Path, which: int) -> None:
    place = places(tmp_path)[which]
    first = stash.create(place, (10,), "i4", chunks=(4,))
    first[:] = np.arange(10)
    old = stash.open(place, "r+")
    first.append([10, 11])
    first.attrs["unit"] = "m"
    first.resize((11,))
    assert old[:].tolist() == [*range(10)]  # the shape that it knows
    old[3] = 33
    assert first[3] == 33 and old.append([5]) == 11 and old.refresh().shape == (12,)
    assert dict(old.attrs) == {"unit": "m"}


def test_a_copy_is_another_array() -> None:
    there, other = f"memory://{uuid4()}", f"memory://{uuid4()}"
    stash.save(there, np.arange(8))
    stash.save(other, np.arange(8))
    old = stash.open(other, "r+")
    copied = stash.copy(there, other, overwrite=True)
    with pytest.raises(Conflict):
        old[0]
    with pytest.raises(Conflict):
        old[0] = 5
    copied[0] = 7
    assert copied[:].tolist() == [7, *range(1, 8)] == stash.load(other).tolist()
    stash.open_group("memory://" + uuid4().hex, "a")


def test_what_others_do_to_the_document_is_told_by_the_document() -> None:
    driver = MemoryDriver()
    stash.save(driver, np.arange(8))
    old = stash.open(driver, "r+")
    document = json.loads(bytes(driver.get("zarr.json") or b""))
    document["attributes"] = {"by": "another"}  # as zarr-python: no trailer is kept
    driver.put("zarr.json", json.dumps(document).encode())
    assert old[5] == 5
    old[5] = 6
    later = stash.open(driver, "r+")
    later.attrs["x"] = 1
    assert later[5] == old[5] == 6
    stash.save(driver, np.zeros(8, "int64"))
    for handle in (old, later):
        with pytest.raises(Conflict):
            handle[5] = 1
    document["data_type"] = "float64"
    document["fill_value"] = 0.0
    now = stash.open(driver)
    driver.put("zarr.json", json.dumps(document).encode())
    with pytest.raises(Conflict, match="float64"):
        now[5]


def test_an_immutable_array_is_not_looked_at() -> None:
    driver = FarDriver()
    stash.save(driver, np.arange(8))
    array = stash.open(driver, immutable=True)
    driver.reset()
    array[3]
    assert [key for _, key in driver.sent] == ["c/0"]


def windowed() -> Any:
    """A driver that lists the windows in which keys are asked for, and whether on a condition."""

    class Windows(FarDriver):
        windows: ClassVar[list[Any]] = []

        def get_many_tagged(self, requests: Any) -> Any:
            asked = [*requests]
            self.windows.append([(r.key, r.unless is not None) for r in asked])
            return super().get_many_tagged(iter(asked))

        def get_tagged(self, key: str, span: Any = None) -> Any:
            self.windows.append([(key, False)])
            return super().get_tagged(key, span)

    return Windows()


def test_the_look_travels_with_the_chunks() -> None:
    driver = windowed()
    stash.save(driver, np.arange(32, dtype="i4"), chunks=(8,))
    array = stash.open(driver, "r+")
    for use in (lambda: array[...], lambda: array[3], lambda: array.__setitem__(slice(2, 13), 1)):
        driver.windows.clear()
        read = driver.traffic.bytes_read
        use()
        assert len(driver.windows) == 1
        assert driver.windows[0][-1] == ("zarr.json", True)
        assert driver.traffic.bytes_read - read < len(driver.driver.get("zarr.json") or b"")
    assert Request("k").unless is None


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_a_member_of_a_copy_is_looked_at_with_its_chunks() -> None:
    driver = windowed()
    made = stash.create_group(driver)
    made.create("x", (32,), "i4", chunks=(8,))[:] = np.arange(32)
    made.consolidate()
    member: Any = stash.open_group(driver)["x"]
    for known in (False, True):
        driver.windows.clear()
        driver.reset()
        assert member[...].tolist() == [*range(32)]
        assert len(driver.windows) == 1
        assert driver.windows[0][-1] == ("x/zarr.json", known)
        assert len(driver.sent) == 4 + 1
    made.create("x", (32,), "i4", chunks=(8,), overwrite=True)[:] = 7
    with pytest.raises(Conflict, match="replaced"):
        member[3]


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("zarr_format", [3, 2])
def test_a_member_that_has_grown_is_read_as_it_is(far: bool, zarr_format: Any) -> None:
    inner = MemoryDriver()
    driver = FarDriver(inner) if far else inner
    group = stash.create_group(driver, zarr_format=zarr_format)
    group.create("x", (0,), "i4", chunks=(2,))
    group.create("y", (3,), "i4", chunks=(2,))[:] = [0, 1, 2]
    group.consolidate()
    members: Any = [stash.open_group(driver) for _ in range(9)]
    for name, n in (("x", 0), ("y", 3)):  # by who sees no group above
        below = MemoryDriver()
        for key in [*inner.list(f"{name}/")]:
            below.put(key[2:], inner.get(key) or b"")
        stash.open(below, "r+").append(np.arange(n, 5))
        for key in [*below.list()]:
            inner.put(f"{name}/{key}", below.get(key) or b"")
    for name in "xy":
        out = np.zeros(5, "i4")
        uses: list[Callable[[Any], Any]] = [
            lambda a: int(a[-1]) == 4,
            lambda a: int(a[4]) == 4,
            lambda a: a[...].tolist() == [0, 1, 2, 3, 4],
            lambda a, out=out: a.read(out=out) is not None and out.tolist() == [0, 1, 2, 3, 4],
            lambda a: np.asarray(a).tolist() == [0, 1, 2, 3, 4],
            lambda a: a.lazy[2:].read().tolist() == [2, 3, 4],
            lambda a: a.oindex[[4]].tolist() == [4],
            lambda a: stash.copy(a, {})[...].tolist() == [0, 1, 2, 3, 4],
        ]
        for group, use in zip(members, uses, strict=False):
            member = group[name]
            assert member.shape == (0 if name == "x" else 3,)
            assert use(member)
            assert member.shape == (5,)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
def test_what_is_not_stored_is_not_another_arrays(tmp_path: Path, which: int) -> None:
    """Walks go by which chunks are stored, of an array of which none may be."""
    place, made = places(tmp_path)[which], {"shape": (5000,), "dtype": "i4", "chunks": (2,)}
    stash.create(place, **made)[:] = 1
    old, cached = stash.open(place), stash.open(place, cache="1MiB")
    stash.create(place, overwrite=True, **made)
    for handle in (old, cached):
        with pytest.raises(Conflict, match="replaced"):
            list(handle.iter_blocks())
        with pytest.raises(Conflict, match="replaced"):
            stash.copy(handle, {})


def test_trailers_keep_the_identity() -> None:
    for identity in (b"", trailer.new_identity()):
        plain = trailer.Trailer(identity=identity)
        for made in (plain, plain.next(open=True), plain.next(open=False, reach=(5, 1 << 40))):
            assert made.identity == identity
            assert trailer.decode(b"{}" + trailer.encode(made)) == made


# -- records -----------------------------------------------------------------------------------


def rows(n: int, by: int = 0) -> dict[str, Any]:
    return {
        "id": np.arange(n) + by,
        "lab": np.arange(n, dtype="i4") + by,
        "t": [np.arange(i % 4) + by for i in range(n)],
        "s": [f"{i + by}" for i in range(n)],
    }


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
@pytest.mark.parametrize("what", ["drop", "rename", "drop and add", "swap", "save"])
def test_fields_that_were_replaced(tmp_path: Path, which: int, what: str) -> None:
    place = places(tmp_path)[which]
    records = stash.save_records(place, rows(64))
    old = stash.open_records(place, "r+")
    array, view, ids, writer = old["lab"], old.select("lab"), old.select("id"), old.writer()
    held = {"id": 3, "lab": 7, "t": [1], "s": "x"}
    writer[3] = held
    batches = old.iter_batches(1, shuffle=True, prefetch=0, pool_bytes="1KiB")
    assert old[5]["lab"] == 5
    if what == "rename":
        records.rename_field("lab", "other")
    elif what == "save":
        stash.save_records(place, rows(64, by=100))
    else:
        if what == "swap":
            records.add_field("other", "i4", np.full(64, 9, "i4"))
        records.drop_field("lab")
        if what == "swap":
            records.rename_field("other", "lab")
        elif what != "drop":
            records.add_field("lab", "i4", np.full(64, 9, "i4"))
    before = dict(stored_records(place).items())
    uses: list[Callable[[], Any]] = [
        lambda: old[5],
        lambda: old[:],
        lambda: array[5],
        lambda: view[[1, 2]],
        lambda: list(old),
        lambda: list(batches),
        lambda: old.__setitem__(5, held),
        lambda: view.__setitem__(5, {"lab": 7}),
        lambda: array.__setitem__(5, 7),
        lambda: array.__setitem__(slice(None), 7),
        lambda: writer.flush(),
    ]
    for use in uses:
        with pytest.raises(STALE, match=r"replaced|any more|changed"):
            use()
    assert stored_records(place) == before
    with pytest.raises(STALE):
        old.append(held)
    if what == "save":
        for use in (lambda: ids[5], lambda: old["t"].lengths(), lambda: records[5]):
            with pytest.raises(STALE):
                use()
    else:
        assert ids[5]["id"] == 5  # what was not replaced is read on
        ids[5] = {"id": 55}
        assert records[5]["id"] == 55


def stored_records(place: Any) -> dict[str, bytes]:
    driver = stash.open_records(place).driver
    return {key: bytes(driver.get(key) or b"") for key in driver.list()}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("what", ["drop", "rename", "drop and add", "save"])
def test_a_loader_that_runs(own: bool, what: str) -> None:
    place, n = f"memory://{uuid4()}", 20_000
    made = {"id": np.arange(n), "lab": np.ones(n, "i4")}
    records = stash.save_records(place, made, rows_per_chunk=16)
    source = records if own else stash.open_records(place)
    seen = 0
    with pytest.raises(STALE):
        for batch in source.iter_batches(8, shuffle=True, pool_bytes="8KiB", prefetch=2):
            assert (batch["lab"] == 1).all()
            seen += 1
            if seen != 4:
                continue
            if what == "rename":
                records.rename_field("lab", "other")
            elif what == "save":
                stash.save_records(place, {**made, "lab": np.zeros(n, "i4")}, rows_per_chunk=16)
            else:
                records.drop_field("lab")
                if what != "drop":
                    records.add_field("lab", "i4", np.full(n, 9, "i4"))
    if what != "save":
        records.append(dict.fromkeys(records.names, 1))
        assert sum(1 for _ in records.iter_batches(1000)) == n // 1000 + 1


def test_a_resumed_epoch_keeps_to_its_fields() -> None:
    values = {"id": np.arange(20_000), "lab": np.ones(20_000, "i4")}
    records = stash.save_records({}, values, rows_per_chunk=16)
    how: Any = {"shuffle": True, "pool_bytes": "8KiB", "prefetch": 2}
    loader: BatchLoader[Any] = BatchLoader(records, 8, **how)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    records.extend({"id": np.arange(8), "lab": np.ones(8, "i4")})
    resumed: BatchLoader[Any] = BatchLoader(records, 8, **how)
    resumed.load_state_dict(state)
    batches = iter(resumed)
    assert set(next(batches)) == {"id", "lab"}
    records.drop_field("lab")
    with pytest.raises(STALE):
        list(batches)


# -- every order of doing it -------------------------------------------------------------------


class Handles(RuleBasedStateMachine):
    """Three handles, opened at any time, on arrays that are overwritten by others alike."""

    makes: Callable[[], Any]

    @initialize()
    def begin(self) -> None:
        self.place = type(self).makes()
        self.era = 0
        self.now = np.zeros(0, "i8")
        self.held: list[Any] = [None, None, None]
        self.overwrite(0, 8, 3)

    @rule(k=st.integers(0, 2), n=st.integers(1, 12), value=st.integers(1, 99))
    def overwrite(self, k: int, n: int, value: int) -> None:
        array = stash.create(self.place, (n,), "i8", chunks=(4,), overwrite=True)
        self.era += 1
        self.now = np.full(n, value)
        array[:] = value
        self.held[k] = [array, self.era]

    @rule(k=st.integers(0, 2), cache=st.sampled_from([0, "1MiB"]))
    def reopen(self, k: int, cache: Any) -> None:
        self.held[k] = [stash.open(self.place, "r+", cache=cache), self.era]

    @rule(k=st.integers(0, 2))
    def send(self, k: int) -> None:
        if self.held[k] is not None:
            self.held[k][0] = sent(self.held[k][0])

    def known(self, k: int) -> int:
        try:
            return len(self.held[k][0])
        except STALE:
            assert self.held[k][1] != self.era
            return 0

    def use(self, k: int, work: Callable[[Any], Any]) -> Any:
        if self.held[k] is None:
            return None
        array, era = self.held[k]
        if era != self.era:
            with pytest.raises(STALE):
                work(array)
            return None
        return array, work(array)

    @rule(k=st.integers(0, 2), data=st.data())
    def read(self, k: int, data: st.DataObject) -> None:
        found = self.use(k, lambda a: a[:])
        if found is not None:
            known = min(len(found[1]), len(self.now))
            assert found[1][:known].tolist() == self.now[:known].tolist()

    @rule(k=st.integers(0, 2), at=st.integers(0, 11), n=st.integers(1, 9), value=st.integers(1, 99))
    def write(self, k: int, at: int, n: int, value: int) -> None:
        held = self.held[k]
        if held is None or min(self.known(k), len(self.now)) < at + n:
            return
        if self.use(k, lambda a: a.__setitem__(slice(at, at + n), value)) is not None:
            self.now[at : at + n] = value

    @rule(k=st.integers(0, 2), n=st.integers(1, 5), value=st.integers(1, 99))
    def append(self, k: int, n: int, value: int) -> None:
        if self.use(k, lambda a: a.append(np.full(n, value))) is not None:
            self.now = np.concatenate([self.now, np.full(n, value)])

    @rule(k=st.integers(0, 2), n=st.integers(1, 12))
    def resize(self, k: int, n: int) -> None:
        if self.use(k, lambda a: a.resize((n,))) is not None:
            kept = self.now[:n]
            self.now = np.concatenate([kept, np.zeros(n - len(kept), "i8")])

    @rule(k=st.integers(0, 2), value=st.integers())
    def attribute(self, k: int, value: int) -> None:
        self.use(k, lambda a: a.attrs.update(x=value))

    @rule()
    def compare(self) -> None:
        assert stash.load(self.place).tolist() == self.now.tolist()


class Fields(RuleBasedStateMachine):
    """Three handles, opened at any time, on records whose fields come, go and change names."""

    makes: Callable[[], Any]

    @initialize()
    def begin(self) -> None:
        self.place = type(self).makes()
        self.count = 0
        self.save(6)
        self.held: list[Any] = [None, None, None]

    def fresh(self) -> int:
        self.count += 1
        return self.count

    @rule(n=st.integers(2, 9))
    def save(self, n: int) -> None:
        self.now = {name: np.full(n, self.fresh()) for name in "ab"}
        self.eras = {name: self.fresh() for name in "ab"}
        stash.save_records(self.place, self.now, rows_per_chunk=4)

    @rule(k=st.integers(0, 2))
    def reopen(self, k: int) -> None:
        self.held[k] = stash.open_records(self.place, "r+"), dict(self.eras)

    @rule(k=st.integers(0, 2))
    def send(self, k: int) -> None:
        if self.held[k] is not None:
            self.held[k] = sent(self.held[k][0]), self.held[k][1]

    @rule(name=st.sampled_from("abc"))
    def drop(self, name: str) -> None:
        if name in self.now and len(self.now) > 1:
            stash.open_records(self.place, "r+").drop_field(name)
            del self.now[name], self.eras[name]

    @rule(name=st.sampled_from("abc"))
    def add(self, name: str) -> None:
        if name not in self.now:
            values = np.full(len(next(iter(self.now.values()))), self.fresh())
            stash.open_records(self.place, "r+").add_field(name, "int64", values)
            self.now[name], self.eras[name] = values, self.fresh()

    @rule(old=st.sampled_from("abc"), new=st.sampled_from("abc"))
    def rename(self, old: str, new: str) -> None:
        if old in self.now and new not in self.now:
            stash.open_records(self.place, "r+").rename_field(old, new)
            self.now[new], self.eras[new] = self.now.pop(old), self.fresh()
            del self.eras[old]

    @precondition(lambda self: any(self.held))
    @rule(k=st.integers(0, 2), names=st.sets(st.sampled_from("abc"), min_size=1), put=st.booleans())
    def use(self, k: int, names: set[str], put: bool) -> None:
        if self.held[k] is None:
            return
        records, eras = self.held[k]
        names = names & eras.keys()
        if not names:
            return
        value = {name: self.fresh() for name in names}
        stale = any(self.eras.get(name) != eras[name] for name in names)
        if stale:
            with pytest.raises(REFUSED):
                view = records.select(*names)
                view.__setitem__(1, value) if put else view[:]
        elif put:
            records.select(*names)[1] = value
            for name in names:
                self.now[name][1] = value[name]
        else:
            found = records.select(*names)[:]
            for name in names:
                known = len(found[name])
                assert found[name].tolist() == self.now[name][:known].tolist()

    @rule(k=st.integers(0, 2))
    def append(self, k: int) -> None:
        if self.held[k] is None:
            return
        records, eras = self.held[k]
        row = {name: self.fresh() for name in eras}
        if eras != self.eras:
            with pytest.raises(REFUSED):
                records.append(row)
            return
        records.append(row)
        self.now = {name: np.append(v, row[name]) for name, v in self.now.items()}

    @rule(k=st.integers(0, 2))
    def attribute(self, k: int) -> None:
        if self.held[k] is not None and self.held[k][1] == self.eras:
            self.held[k][0].attrs["x"] = self.fresh()

    @rule()
    def compare(self) -> None:
        found = stash.open_records(self.place)[:]
        assert {n: v.tolist() for n, v in found.items()} == {
            n: v.tolist() for n, v in self.now.items()
        }


@pytest.mark.parametrize("machine", [Handles, Fields])
@pytest.mark.parametrize("where", ["memory", "file", "far", "redis"])
def test_never_another_array(
    machine: Any, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "redis":
        url = request.getfixturevalue("redis_url")

    def make() -> Any:
        if where == "far":
            return FarDriver(MemoryDriver())
        if where == "redis":
            return f"{url}/{uuid4().hex}"
        return f"memory://{uuid4()}" if where == "memory" else str(tmp_path / uuid4().hex)

    one = type(machine.__name__, (machine,), {"makes": staticmethod(make)})
    one.TestCase.settings = settings(
        max_examples=15 if where != "redis" else 5,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    one.TestCase("runTest").runTest()
