"""The files of a disk cache: whose they are, how many, and what happens to bad ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorstash.driver import Span, Tag
from tensorstash.drivers.diskcache import entry as diskcache_entry
from tensorstash.drivers.diskcache.driver import DiskCache
from tensorstash.drivers.file import FileDriver
from tensorstash.testing.counting import CountingDriver

LIMIT = 64 << 20


@pytest.fixture
def remote(tmp_path: Path) -> CountingDriver:
    return CountingDriver(FileDriver(tmp_path / "remote"))


MakeCache = Callable[..., DiskCache]


@pytest.fixture
def cache(remote: CountingDriver, tmp_path: Path) -> MakeCache:
    def make(limit: int = LIMIT, immutable: bool = False) -> DiskCache:
        return DiskCache(remote, tmp_path / "cache", limit, immutable)

    return make


# -- versions and names ---------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ['"ab\'c"', b"\x00\xff", 7, -1, ("W/", (1, "ü"), b""), True, 1.5, "\ud800x"],
    ids=repr,
)
def test_tags_come_back_equal(tag: Tag) -> None:
    text = diskcache_entry.tag_text(tag)
    assert text is not None and diskcache_entry._literal(text) == tag


@pytest.mark.parametrize("tag", [None, object(), float("nan"), frozenset(), Span, len])
def test_a_tag_that_does_not_is_not_kept(tag: Tag) -> None:
    assert diskcache_entry.tag_text(tag) is None


class Renamed(FileDriver):
    """Another place by its URL, with the same tags."""

    name = "file://elsewhere"

    @property
    def url(self) -> str:
        return self.name


def test_places_do_not_mix(tmp_path: Path) -> None:
    one, other = FileDriver(tmp_path / "remote"), Renamed(tmp_path / "remote")
    one.put("k", b"0123456789")
    count = CountingDriver(other)
    for driver in (one, count):
        DiskCache(driver, tmp_path / "cache", LIMIT, immutable=True).get("k")
    assert count.reads.nbytes == 10
    assert len([*(tmp_path / "cache").glob("??/*")]) == 2


# -- the folder -------------------------------------------------------------------------


def on_disk(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4096 for size in sizes)


def test_only_its_owner_may_look(cache: MakeCache, remote: CountingDriver, tmp_path: Path) -> None:
    remote.put("k", b"1")
    assert not (tmp_path / "cache").exists()
    cache().get("k")
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_stays_below_its_limit(cache: MakeCache, remote: CountingDriver, tmp_path: Path) -> None:
    limit, size = 1_000_000, 30_000
    remote.put_many((f"c/{i}", bytes([i]) * size) for i in range(150))
    mine = cache(limit)
    for i in range(150):
        assert mine.get(f"c/{i}") == bytes([i]) * size
        assert on_disk(tmp_path / "cache") <= limit + 4096  # and the count of what was written
    assert on_disk(tmp_path / "cache") > limit // 2
    remote.reset()
    assert mine.get("c/149") == bytes([149]) * size  # the last ones are still there
    assert remote.reads.nbytes == 0
    mine.get("c/0")
    assert remote.reads.nbytes == size
    remote.put("big", bytes(limit))
    for _ in range(2):
        mine.get("big")  # above half the limit
    assert on_disk(tmp_path / "cache") <= limit + 4096


def test_the_least_recently_used_leaves_first(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    remote.put_many((f"c/{i}", bytes(30_000)) for i in range(80))
    mine = cache(1_000_000)
    for i in range(20):
        mine.get(f"c/{i}")
    for path in (tmp_path / "cache").glob("??/*"):
        os.utime(path, (0, 0))  # long ago
    mine.get("c/3")
    mine.get("c/5", Span(-3))
    for i in range(20, 45):
        mine.get(f"c/{i}")
    remote.reset()
    mine.get("c/3")
    mine.get("c/5")
    assert remote.reads.nbytes == 0
    mine.get("c/4")
    assert remote.reads.nbytes == 30_000


def test_what_others_keep_there_stays(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    (folder / "ab").mkdir(parents=True)
    (folder / "partial").mkdir()
    (folder / ".tensorstash-partial").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "cd").symlink_to(tmp_path / "elsewhere")
    names = ["thesis.tex", "ab/notes", "abc", "written", "partial/1", "ab/notes.tsc", "ab/0-.tsc"]
    names += [".tensorstash-partial/thesis.tex", f"cd/{'0' * 30}-.tsc", f"AB-{'0' * 30}-.tsc"]
    strangers = [folder / name for name in names]
    for path in strangers:
        path.write_bytes(bytes(500_000))
        os.utime(path, (0, 0))
    remote.put_many((f"c/{i}", bytes(30_000)) for i in range(100))
    mine = cache(200_000)
    for i in range(100):
        mine.get(f"c/{i}")
    assert all(path.stat().st_size == 500_000 for path in strangers)
