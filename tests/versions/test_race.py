"""Lost races, lost answers, kills: a commit is there whole or not at all, and once."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Driver, Tag
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Closed, Conflict, NotFound, Unavailable, Unsupported
from tests.support.every_place import stored


class Killed(BaseException):
    """The process is no more."""


class Faulty(MemoryDriver):
    """Counts what changes something, and at call ``at`` does what ``fault`` says: ``"before"`` is
    killed before it, ``"after"`` after it, ``"lost"`` does it and loses the answer."""

    def __init__(self, mapping: dict[str, bytes], at: int, fault: str) -> None:
        super().__init__(mapping)
        self.calls, self.at, self.fault, self.dead = 0, at, fault, False

    def _around(self, do: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        self.calls += 1
        if self.calls != self.at:
            return do()
        if self.fault == "before":
            self.dead = True
            raise Killed
        do()
        if self.fault == "after":
            self.dead = True
            raise Killed
        raise Unavailable("the answer was lost")

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Any:
        above = super().put
        return self._around(lambda: above(key, value, if_absent=if_absent, if_tag=if_tag))

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in items:
            self.put(key, value)

    def delete(self, key: str) -> None:
        above = super().delete
        self._around(lambda: above(key))

    def get_many_tagged(self, requests: Iterable[Any]) -> Iterator[Any]:
        if self.dead:
            raise Killed
        return super().get_many_tagged(requests)


def make() -> dict[str, bytes]:
    place: dict[str, bytes] = {}
    with stash.create_repo(place).change(message="first") as t:
        t.create("u", (8, 8), "int32", chunks=(2, 2))[...] = 1
        t.create("old", 4, "int8")[:] = 1
    return place


def change(repo: Any, value: int) -> None:
    with repo.change(message="second") as t:
        t["u"][...] = value
        t.create("v", 5, "int8")[:] = value
        del t["old"]
        t.attrs["value"] = value


def look(place: dict[str, bytes]) -> int:
    """Which of the two versions is there: 1 or 2; nothing between."""
    repo = stash.open_repo(place)
    version = repo.at()
    assert repo.check() == []
    group = version.open_group()
    values = set(group["u"][...].ravel().tolist())
    if "v" in group:
        assert values == {2}
        assert "old" not in group
        assert group.attrs["value"] == 2
        assert [each.message for each in repo.log()] == ["second", "first", "created"]
        return 2
    assert values == {1}
    assert group["old"][:].tolist() == [1] * 4
    assert [each.message for each in repo.log()] == ["first", "created"]
    return 1


def counted() -> int:
    driver = Faulty(make(), 0, "")
    change(stash.open_repo(driver), 2)
    return driver.calls


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_kill_at_each_call_leaves_the_old_or_the_new_version(fault: str) -> None:
    seen = []
    for at in range(1, counted() + 1):
        place = make()
        driver = Faulty(place, at, fault)
        with pytest.raises(Killed):
            change(stash.open_repo(driver), 2)
        seen.append(look(place))
        # Whoever comes next can go on.
        with stash.open_repo(place).change() as t:
            t["u"][0, 0] = 7
        assert stash.open_repo(place).at().open("u")[0, 0] == 7
    assert seen == sorted(seen), "once the new one is there, it stays"
    assert 2 in seen, "a commit that was published is there"


def test_a_lost_answer_is_never_a_second_commit() -> None:
    for at in range(1, counted() + 1):
        place = make()
        repo = stash.open_repo(Faulty(place, at, "lost"))
        try:
            change(repo, 2)
        except Unavailable:
            assert look(place) == 1
        else:
            assert look(place) == 2


def test_the_answer_to_the_put_of_the_branch_may_be_lost() -> None:
    class Lost(MemoryDriver):
        lost = 0

        def put(
            self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
        ) -> Any:
            tag = super().put(key, value, if_absent=if_absent, if_tag=if_tag)
            if key == "branch/main" and self.lost < 1:
                self.lost += 1
                raise Unavailable("the answer was lost")
            return tag

    place = make()
    driver = Lost(place)
    change(stash.open_repo(driver), 2)
    assert driver.lost == 1
    assert look(place) == 2


def test_another_commit_on_top_of_one_whose_answer_was_lost() -> None:
    class Overtaken(MemoryDriver):
        done = False

        def put(
            self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
        ) -> Any:
            tag = super().put(key, value, if_absent=if_absent, if_tag=if_tag)
            if key == "branch/main" and not self.done:
                self.done = True
                with stash.open_repo(place).change(message="third") as t:
                    t["u"][7, 7] = 3
                raise Unavailable("the answer was lost")
            return tag

    place = make()
    change(stash.open_repo(Overtaken(place)), 2)
    repo = stash.open_repo(place)
    assert [each.message for each in repo.log()] == ["third", "second", "first", "created"]
    u = repo.at().open("u")[...]
    assert u[7, 7] == 3
    assert (u.ravel()[:-1] == 2).all()


def commit_rows(driver: Driver, first: int, count: int) -> None:
    repo = stash.open_repo(driver)
    for k in range(count):
        with repo.change(message=f"{first} {k}") as t:
            t["u"][first, k] = first * 100 + k + 1


def whole(driver: Driver, writers: int, count: int) -> None:
    repo = stash.open_repo(driver)
    u = repo.at().open("u")[...]
    wanted = np.arange(writers)[:, None] * 100 + np.arange(count) + 1
    np.testing.assert_array_equal(u, wanted)
    messages = [each.message for each in repo.log()]
    assert len(messages) == len(set(messages)) == writers * count + 2
    assert repo.check() == []
    assert not [key for key in stored(driver) if key.startswith("session/")]


def prepared(driver: Driver, writers: int, count: int) -> Driver:
    with stash.create_repo(driver).change(message="first") as t:
        t.create("u", (writers, count), "int32", chunks=(1, 1))
    return driver


def test_threads_that_commit_disjoint_chunks_lose_nothing() -> None:
    driver = prepared(MemoryDriver({}), 4, 8)
    failed: list[BaseException] = []

    def work(first: int) -> None:
        try:
            commit_rows(driver, first, 8)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    whole(driver, 4, 8)


def test_processes_that_commit_disjoint_chunks_lose_nothing(tmp_path: Path) -> None:
    driver = prepared(FileDriver(tmp_path / "r"), 3, 6)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=commit_rows, args=(driver, k, 6)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    whole(driver, 3, 6)


def test_a_conflict_names_the_array_the_chunks_and_both_commits() -> None:
    repo = stash.open_repo(make())
    with (
        pytest.raises(Conflict, match=r"chunk \(1, 3\) of 'u'") as raised,
        repo.change(author="Ada") as mine,
    ):
        with repo.change(author="Bob") as other:
            other["u"][3, 7] = 5
        mine["u"][2, 6] = 6
    assert other.commit is not None
    assert other.commit in str(raised.value)
    assert mine.session in str(raised.value)
    assert "by Bob" in str(raised.value)
    assert "by Ada" in str(raised.value)
    assert mine.commit is None
    assert repo.at().commit == other.commit


def cases() -> Iterator[tuple[str, Callable[[Any], None], Callable[[Any], None], bool]]:
    """What each of two does, and whether both can stand."""

    def write(t: Any) -> None:
        t["u"][0, 0] = 5

    def delete(t: Any) -> None:
        del t["u"]

    def replace(t: Any) -> None:
        t.create("u", 3, "int8", overwrite=True)[:] = 1

    def shrink(t: Any) -> None:
        t["u"].resize((4, 8))

    def beyond(t: Any) -> None:
        t["u"][7, 7] = 5

    def grow(t: Any) -> None:
        t["u"].resize((20, 20))

    def unit(t: Any) -> None:
        t["u"].attrs["unit"] = "K"

    def other_unit(t: Any) -> None:
        t["u"].attrs["unit"] = "F"

    def new(t: Any) -> None:
        t.create("new/a", 3, "int8")[:] = 1

    def other(t: Any) -> None:
        t.create("new/b", 3, "int8")[:] = 2

    yield "written and deleted", write, delete, False
    yield "deleted and written", delete, write, False
    yield "written and replaced", beyond, replace, False
    yield "replaced and written", replace, beyond, False
    yield "written and cut short", beyond, shrink, False
    yield "cut short and written", shrink, beyond, False
    yield "written and grown", beyond, grow, True
    yield "grown and written", grow, beyond, True
    yield "written and described", write, unit, True
    yield "described twice in the same words", unit, unit, True
    yield "described in other words", unit, other_unit, False
    yield "described and grown", unit, grow, False
    yield "created in one new group", new, other, True
    yield "created twice", new, new, False
    yield "different chunks", write, beyond, True


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [case[1:] for case in cases()],
    ids=[case[0] for case in cases()],
)
def test_what_can_stand_together(
    first: Callable[[Any], None], second: Callable[[Any], None], both: bool
) -> None:
    repo = stash.open_repo(make())
    with repo.change() as t:
        first(t)
    alone = repo.at().commit
    repo.reset("main", to=repo.at(alone).driver.snapshot.commit.summary.parents[0])

    def run() -> None:
        with repo.change() as late:
            with repo.change() as early:
                first(early)
            second(late)

    if both:
        run()
        # As if one had come after the other.
        got = repo.at().open_group()
        twin = stash.open_repo(make())
        for do in (first, second):
            with twin.change() as t:
                do(t)
        wanted = twin.at().open_group()
        assert [path for path, _ in got.walk()] == [path for path, _ in wanted.walk()]
        for path, member in wanted.walk():
            if isinstance(member, stash.Array):
                np.testing.assert_array_equal(got[path][...], member[...])
            assert dict(got[path].attrs) == dict(member.attrs)
    else:
        with pytest.raises(Conflict, match="nothing was committed"):
            run()
    assert repo.check() == []


def test_a_branch_that_was_reset_or_deleted_takes_no_commit_begun_before() -> None:
    repo = stash.open_repo(make())
    with pytest.raises(Conflict, match="was reset"), repo.change() as t:
        t["u"][0, 0] = 2
        repo.reset("main", to=repo.at().driver.snapshot.commit.summary.parents[0])
    repo.branch("try")
    with pytest.raises(NotFound, match="no branch 'try'"), repo.change("try") as t:
        t.create("a", 1, "int8")
        repo.delete_branch("try")


def test_a_repository_that_was_made_anew_takes_no_commit_of_the_old() -> None:
    place = make()
    repo = stash.open_repo(place)
    with pytest.raises(Conflict, match="made anew"), repo.change() as t:
        t["u"][0, 0] = 2
        place.clear()
        stash.create_repo(place)
    with pytest.raises(Conflict, match="made anew"):
        repo.at()
    assert [each.message for each in stash.open_repo(place).log()] == ["created"]


def test_an_exception_or_abort_commits_nothing() -> None:
    place = make()
    repo = stash.open_repo(place)
    before = repo.at().commit
    with pytest.raises(ZeroDivisionError), repo.change() as t:
        t["u"][0, 0] = 2
        raise ZeroDivisionError
    with repo.change() as t:
        t["u"][0, 0] = 2
        t.abort()
    with repo.change() as t:
        assert t["u"][0, 0] == 1
    assert t.commit is None
    assert repo.at().commit == before
    assert not [key for key in place if key.startswith("session/")]


def test_a_transaction_ends_with_its_block_and_stays_in_its_process() -> None:
    repo = stash.open_repo(make())
    with repo.change() as t:
        u = t["u"]
        with pytest.raises(Unsupported, match="stays in its process"):
            pickle.dumps(t.driver)
    with pytest.raises(Closed, match="begin another"):
        u[0, 0] = 3
    with pytest.raises(Closed, match="begin another"):
        t["u"][0, 0]
    with pytest.raises(Closed, match="begun already"):
        t.__enter__()
