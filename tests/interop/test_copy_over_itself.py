"""``copy`` onto the place that it reads from, by whatever name, deletes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid
from tensorstash.location import resolve
from tensorstash.testing.counting import Count, CountingDriver
from tests.servers.s3 import S3
from tests.support.every_place import stored
from tests.support.far import FarDriver

DATA = np.arange(100, dtype="i4").reshape(10, 10)


def made(folder: Path, **how: Any) -> Path:
    """An array of DATA in ``disk/g/a``, a group above it, and ``data``, which leads to ``disk``."""
    (folder / "disk").mkdir()
    os.symlink("disk", folder / "data")
    stash.create_group(folder / "disk" / "g", zarr_format=how.get("zarr_format", 3))
    stash.save(folder / "disk" / "g" / "a", DATA, chunks=5, **how)
    return folder / "disk" / "g" / "a"


def without_identity(place: Path) -> None:
    document = place / "zarr.json"
    document.write_bytes(document.read_bytes().rstrip())


def by_zarr(folder: Path) -> Any:
    return pytest.importorskip("zarr").storage.LocalStore(folder / "disk" / "g" / "a")


def by_fsspec(folder: Path) -> Any:
    pytest.importorskip("fsspec")
    return stash.open(f"local://{folder}/disk/g/a", options={"unsafe": True})


def by_mapper(folder: Path) -> Any:
    mapper = pytest.importorskip("fsspec").filesystem("file").get_mapper
    return mapper(str(folder / "disk" / "g" / "a"))


NAMES: dict[str, Callable[[Path], Any]] = {
    "a link": lambda folder: folder / "data" / "g" / "a",
    "an URL": lambda folder: f"file://{folder}/data/g/a",
    "a member": lambda folder: stash.open_group(folder / "data" / "g")["a"],
    "zarr": by_zarr,
    "fsspec": by_fsspec,
    "mapper": by_mapper,
}


@contextmanager
def unchanged(place: Path) -> Iterator[None]:
    before = stored(resolve(place))
    yield
    assert stored(resolve(place)) == before
    assert np.array_equal(stash.load(place), DATA)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("onto", ["", ".."])
@pytest.mark.parametrize("kind", ["ours", "v2", "of others"])
def test_under_another_name_it_is_refused(name: str, onto: str, kind: str, tmp_path: Path) -> None:
    place = made(tmp_path, zarr_format=2 if kind == "v2" else 3)
    if kind == "of others":
        without_identity(place)
    source = NAMES[name](tmp_path)
    target = place.parent if onto else place
    with unchanged(place), pytest.raises(Invalid, match="over itself") as caught:
        stash.copy(source, target, chunks=3, overwrite=True)
    assert "overwrite=True" not in str(caught.value)
    assert sorted(stash.open_group(place.parent)) == ["a"]


@pytest.mark.parametrize("name", NAMES)
def test_to_another_name_it_is_refused(name: str, tmp_path: Path) -> None:
    place = made(tmp_path)
    target = NAMES[name](tmp_path)
    if isinstance(target, stash.Array):
        target = target.driver if not target.path else tmp_path / "data" / "g" / "a"
    with unchanged(place), pytest.raises(Invalid, match="over itself"):
        stash.copy(place, target, overwrite=True)


@pytest.mark.parametrize("how", [shutil.copy2, os.link], ids=["copied", "hard links"])
@pytest.mark.parametrize("kind", ["ours", "v2", "of others"])
def test_a_copy_of_the_folder_is_another_place(how: Any, kind: str, tmp_path: Path) -> None:
    place = made(tmp_path, zarr_format=2 if kind == "v2" else 3)
    if kind == "of others":
        without_identity(place)
    other = tmp_path / "other"
    shutil.copytree(place, other, copy_function=how)
    with unchanged(place):
        copied = stash.copy(place, other, chunks=3, overwrite=True)
    assert np.array_equal(copied[...], DATA)
    assert np.array_equal(stash.load(other), DATA)
    shutil.rmtree(other)
    shutil.copytree(place.parent, other, copy_function=how)
    with unchanged(place):
        assert np.array_equal(stash.copy(place, other, overwrite=True)[...], DATA)


def test_a_field_of_records_is_not_copied_over_them(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    os.symlink("disk", tmp_path / "data")
    records = stash.save_records(tmp_path / "disk" / "r", {"x": np.arange(9)})
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(tmp_path / "data" / "r" / "x", tmp_path / "disk" / "r", overwrite=True)
    assert records["x"][...].tolist() == [*range(9)]


@pytest.mark.parametrize("call", ["array", "view", "records", "some"])
def test_what_is_saved_over_itself_is_read_before(call: str, tmp_path: Path) -> None:
    place, linked = made(tmp_path), tmp_path / "data" / "g" / "a"
    if call == "array":
        stash.save(place, stash.open(linked), chunks=3)
    elif call == "view":
        stash.save(place, stash.open(linked).lazy[...], chunks=3)
    if call in ("array", "view"):
        assert np.array_equal(stash.load(place), DATA)
        return
    stash.save_records(tmp_path / "disk" / "r", {"x": np.arange(9), "s": [*"abcdefghi"]})
    rows = stash.open_records(tmp_path / "data" / "r")
    kept = stash.save_records(tmp_path / "disk" / "r", rows if call == "records" else rows[:5])
    assert "".join(kept["s"][...]) == ("abcdefghi" if call == "records" else "abcde")


class Elsewhere(MemoryDriver):
    """The same memory, of a server that has another name too."""

    @property
    def url(self) -> str:
        return "memory://another-name"


@pytest.mark.parametrize("far", [False, True])
def test_servers_of_two_names(far: bool) -> None:
    store: dict[str, Any] = {}
    stash.save(store, DATA, chunks=5)
    before = dict(store)
    driver: Driver = Elsewhere(store)
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(store, FarDriver(driver) if far else driver, overwrite=True)
    assert store == before


def test_who_was_stopped_while_it_looked_has_changed_nothing() -> None:
    store: dict[str, Any] = {}
    array = stash.save(store, DATA, chunks=5)

    class Stops(Elsewhere):
        def put(self, key: str, value: Any, **how: Any) -> Any:
            super().put(key, value, **how)
            raise KeyboardInterrupt

        def delete(self, key: str) -> None:
            raise KeyboardInterrupt  # as if it had been killed

    with pytest.raises(KeyboardInterrupt):
        stash.copy(store, Stops(store), overwrite=True)
    assert np.array_equal(array[...], DATA)
    array.append(DATA)
    assert np.array_equal(stash.load(store)[10:], DATA)
    assert any("probe" in key for key in store)
    stash.save(store, DATA)
    assert not any("probe" in key for key in store)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("cache", ["filecache", "simplecache"])
def test_a_source_that_is_kept_as_it_was(cache: str, read: bool, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    place = made(tmp_path)
    files = fsspec.filesystem(cache, target_protocol="file", cache_storage=str(tmp_path / "kept"))
    source = files.get_mapper(str(place))
    if read:
        assert np.array_equal(stash.load(source), DATA)
    with unchanged(place), pytest.raises(Invalid, match="over itself"):
        stash.copy(source, place, chunks=3, overwrite=True)


def test_chunks_that_are_a_link_into_the_target(tmp_path: Path) -> None:
    place = made(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy2(place / "zarr.json", other)
    os.symlink(place / "c", other / "c")
    with unchanged(place), pytest.raises(Invalid, match="over itself"):
        stash.copy(other, place, chunks=3, overwrite=True)
    # The other way round the link goes, and nothing that it leads to.
    with unchanged(place):
        assert np.array_equal(stash.copy(place, other, chunks=3, overwrite=True)[...], DATA)
    assert not (other / "c").is_symlink()


def test_another_array_that_is_replaced_is_not_put_for_a_look() -> None:
    counting = CountingDriver(MemoryDriver())
    stash.save(counting, DATA, chunks=10)
    counting.reset()
    stash.copy(stash.save({}, DATA, chunks=10), counting, overwrite=True)
    puts = sum((counting.counts[verb] for verb in ("put", "put_many", "put_each")), Count())
    assert puts.keys == 3  # the mark, the chunk, the document


def test_redis_by_two_names(redis_url: str) -> None:
    stash.save(redis_url, DATA, chunks=5)
    named = redis_url.replace("127.0.0.1", "localhost")
    assert named != redis_url
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(named, redis_url, overwrite=True)
    assert np.array_equal(stash.load(named), DATA)


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_s3_by_two_names_and_clients(client: str, s3: S3) -> None:
    url = f"s3://{s3.make_bucket()}/a"
    options = {**s3.options, "client": "s3fs"}
    named = {**s3.options, "client": client}
    named["endpoint"] = named["endpoint"].replace("127.0.0.1", "localhost")
    assert named["endpoint"] != options["endpoint"]
    stash.save(url, DATA, chunks=5, options=options)
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(stash.open(url, options=named), url, overwrite=True, options=options)
    assert np.array_equal(stash.load(url, options=options), DATA)


def test_a_wrapper_with_a_cache_on_disk(tmp_path: Path, s3: S3) -> None:
    url = f"s3://{s3.make_bucket()}/a"
    stash.save(url, DATA, chunks=5, options=s3.options)
    named = {**s3.options, "endpoint": s3.options["endpoint"].replace("127.0.0.1", "localhost")}
    source = stash.open(url, options=named, cache_dir=tmp_path, immutable=True, cache="1MiB")
    assert np.array_equal(source[...], DATA)
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(source, url, overwrite=True, options=s3.options)
    assert np.array_equal(stash.load(url, options=s3.options), DATA)
