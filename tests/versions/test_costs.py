"""What a commit, an opening and a read ask of the driver: by what changes, not by what there is."""

from __future__ import annotations

import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Span, Tag
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.versions.access import objects
from tests.support.every_place import stored

CHUNKS = 40_000
"""Ten pages of references, below a root."""


class Noted(MemoryDriver):
    """Notes what it is asked for, and how many bytes are put."""

    def __init__(self, mapping: dict[str, bytes]) -> None:
        super().__init__(mapping)
        self.asked: list[str] = []
        self.nbytes = 0

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        self.asked.append(key)
        return super().get_tagged(key, span)

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        self.asked.append(key)
        return super().get(key, span)

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        self.asked.append(key)
        self.nbytes += 0 if key.startswith(("chunk/", "session/")) else len(value)
        return super().put(key, value, if_absent=if_absent, if_tag=if_tag)

    def beyond(self) -> list[str]:
        """What was asked for since the last look, beyond chunks and the session's document."""
        found = [key for key in self.asked if not key.startswith(("chunk/", "session/"))]
        self.asked, self.nbytes = [], 0
        return found


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    place: dict[str, bytes] = {}
    with stash.create_repo(place).change() as t:
        t.create("u", CHUNKS, "int8", chunks=1, codecs=None)[...] = 1
    return place


def test_a_commit_of_one_chunk_among_many(many: dict[str, bytes]) -> None:
    driver = Noted(dict(many))
    repo = stash.open_repo(driver)
    driver.beyond()
    for most in (10, 6, 6):
        if most == 10:
            objects._kept.forget()
        with repo.change() as t:
            t["u"][CHUNKS // 2] = most
        nbytes = driver.nbytes
        assert len(driver.beyond()) <= most
        assert nbytes <= 32 << 10


def test_opening_and_the_first_chunk(many: dict[str, bytes]) -> None:
    driver = Noted(dict(many))
    objects._kept.forget()
    u = stash.open(driver, path="u", version="branch:main")
    assert len(driver.beyond()) == 2
    assert u[7] == 1
    assert len(driver.beyond()) <= 2
    driver.asked.clear()
    assert u[8] == 1
    assert len(driver.asked) == 1, "the chunk alone: its page is known"


def test_references_take_few_bytes(many: dict[str, bytes]) -> None:
    found = stored(MemoryDriver(many))
    pages = sum(len(data) for key, data in found.items() if key.startswith(("page/", "commit/")))
    assert pages <= 4 * CHUNKS


def test_a_rebase_keeps_the_pages_that_nobody_else_changed(many: dict[str, bytes]) -> None:
    driver = Noted(dict(many))
    repo = stash.open_repo(driver)
    with repo.change() as mine:
        mine["u"][0] = 2
        mine["u"][CHUNKS - 1] = 2
        with repo.change() as other:
            other["u"][CHUNKS // 2] = 3
        driver.beyond()
    # Of the first try: two pages and their root, the tree; of the second, roots alone.
    assert sum(key.startswith(f"page/{mine.session}/") for key in driver.asked) <= 5
    u = repo.at().open("u")
    assert (u[0], u[CHUNKS // 2], u[CHUNKS - 1], u[5]) == (2, 3, 2, 1)
    assert repo.check() == []


def test_nothing_is_asked_of_chunks_that_are_listed(many: dict[str, bytes]) -> None:
    driver = Noted(dict(many))
    version = stash.open_repo(driver).at()
    driver.beyond()
    assert sum(1 for _ in version.driver.sizes("u/")) == CHUNKS + 1
    assert not [key for key in driver.asked if key.startswith("chunk/")]
