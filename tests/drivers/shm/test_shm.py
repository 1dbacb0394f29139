"""Shared memory: every process of the host sees it, no other user does, and failures are told."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.shm import ShmDriver, hold
from tensorstash.drivers.shm import driver as shm
from tensorstash.errors import Denied, DriverError, Invalid, NoSpace
from tensorstash.registry import connect
from tensorstash.testing.driver_races import run_in_processes
from tests.support.native import turned
from tests.support.oracle import same
from tests.support.races import finish, fork, spawn
from tests.support.shm_names import child, fresh, left


@pytest.fixture
def name() -> Iterator[str]:
    yield from fresh()


def write_seven(pipe: Any, name: str) -> None:
    array = stash.open(f"shm://{name}/a", "r+")
    array[3:7] = 7
    pipe.send(array[...].tolist())
    pipe.recv()
    array[0] = 1


@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_processes_share_what_they_write(name: str, context: Any) -> None:
    array = stash.create(f"shm://{name}/a", (10,), "i4", chunks=(5,), codecs=None)
    process, pipe = child(context, write_seven, name)
    assert pipe.recv() == [0] * 3 + [7] * 4 + [0] * 3
    same(array[...], np.array([0] * 3 + [7] * 4 + [0] * 3, "i4"))
    pipe.send("go on")
    finish(process)
    assert array[0] == 1


def test_views_share_the_memory_itself(name: str) -> None:
    array = stash.create(f"shm://{name}", (1 << 20,), "u1", chunks=(1 << 20,), codecs=None)
    process, _ = child(spawn, write_all, name)
    finish(process)
    view = array.mmap()
    assert (view[0], view[-1], view.flags.owndata) == (5, 5, False)
    path = os.path.join(shm._memory(), f"tensorstash-{os.geteuid()}-{name}", "values", "c", "0")
    with open(path, "r+b") as file:  # as nobody should: it shows whose memory this is
        file.write(b"\x09")
    assert view[0] == 9
    array[...] = 1
    assert view[0] == 9 and array.mmap()[0] == 1


def write_all(_: Any, name: str) -> None:
    stash.open(f"shm://{name}", "r+")[...] = 5


def count_up(name: str, times: int) -> None:
    array = stash.open(f"shm://{name}", "r+")
    for _ in range(times):
        array.append(np.ones((1, 4), "i8"))


def test_appends_of_processes_all_land(name: str) -> None:
    array = stash.create(f"shm://{name}", (0, 4), "i8", chunks=(16, 4))
    run_in_processes(fork, 3, count_up, name, 10)
    assert array.refresh().shape == (30, 4) and array[...].all()


def test_names_nest_and_groups_work(name: str) -> None:
    group = stash.create_group(f"shm://{name}/run")
    group.create("raw/image", (4, 4), "u2")[...] = 1
    assert stash.open(f"shm://{name}/run/raw/image")[0, 0] == 1
    assert [*stash.open_group(f"shm://{name}/run").keys()] == ["raw"]
    outer = connect(f"shm://{name}", {})
    assert sorted(outer.list())[0].startswith("run/")
    assert stash.copy(group["raw/image"], f"shm://{name}/copy")[...].sum() == 16
    assert connect(f"shm://{name}/run/", {}).url == f"shm://{name}/run"


@pytest.mark.parametrize(
    "rest", ["", "/", "a/../b", "a//b", "..", "a\\b", "a\0", "n" * 191, "\ud800"]
)
def test_names_that_cannot_be(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", lambda *_: pytest.fail("nothing is to be made"))
    with pytest.raises(Invalid):
        connect(f"shm://{rest}", {})


# -- other users, full and broken places ---------------------------------------------------------


def test_nobody_else_may_look(name: str) -> None:
    driver = ShmDriver(name)
    driver.put("k", b"1")
    (entry,) = left(name)
    status = os.stat(os.path.join(shm._memory(), entry))
    assert stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == os.geteuid()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
SOMEBODY = 65534


def be_somebody(pipe: Any, name: str) -> None:
    os.setuid(SOMEBODY)
    driver = ShmDriver(name)
    pipe.send([*driver.list()])
    driver.put("theirs", b"1")
    pipe.send(sorted(entry for entry in os.listdir(shm._memory()) if name in entry))
    pipe.recv()


@as_root
def test_two_users_of_one_name_have_a_store_each(name: str) -> None:
    driver = ShmDriver(name)
    driver.put("mine", b"1")
    process, pipe = child(fork, be_somebody, name)
    assert pipe.recv() == []
    assert pipe.recv() == sorted(f"tensorstash-{uid}-{name}" for uid in (0, SOMEBODY))
    another = ShmDriver(f"other-{name}")  # sweeps
    assert [*driver.list()] == ["mine"]
    assert any(str(SOMEBODY) in entry for entry in left(name))
    pipe.send("end")
    finish(process)
    del driver, another


@as_root
def test_a_folder_that_somebody_else_made_is_refused(name: str) -> None:
    folder = Path(shm._memory(), f"tensorstash-0-{name}")
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    try:
        with pytest.raises(Denied, match="belongs to another user; use another name"):
            ShmDriver(name)
        ShmDriver(f"other-{name}").close()
        assert folder.exists(), "it is not ours to sweep"
    finally:
        folder.rmdir()


def test_a_link_in_the_way_is_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    (tmp_path / "values" / "k").write_bytes(b"precious")
    link = Path(shm._memory(), f"tensorstash-{os.geteuid()}-{name}")
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(DriverError, match="cannot hold"):
            ShmDriver(name)
        ShmDriver(f"other-{name}").close()
        assert (tmp_path / "values" / "k").read_bytes() == b"precious"
    finally:
        link.unlink()


def test_failures_are_told_and_are_not_absence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = stash.create(f"shm://{name}", (4,), "i4", codecs=None)
    array[...] = 1

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "")

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(NoSpace, match=r"shared memory is full.*--shm-size") as caught:
            array[...] = 2
        assert caught.value.errno == errno.ENOSPC
    assert array[...].tolist() == [1] * 4
    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", broken)
        patch.setattr(os, "pread", broken)
        with turned(False), pytest.raises(DriverError):  # the kernel makes its calls itself
            array[...]
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        with pytest.raises(NoSpace, match="cannot hold"):
            ShmDriver(f"other-{name}")


def test_whoever_never_lets_go_is_not_waited_for_for_ever(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "_PATIENCE", 0.1)
    folder = Path(shm._memory(), f"tensorstash-{os.geteuid()}-{name}")
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    try:
        hold._lock(fd, hold.fcntl.LOCK_EX)  # as one that was stopped while it removed it
        with pytest.raises(DriverError, match="cannot hold"):
            ShmDriver(name)
    finally:
        os.close(fd)
    ShmDriver(name).close()


def test_without_shared_memory_it_is_in_the_temporary_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    driver = ShmDriver(name)
    monkeypatch.undo()
    driver.put("k", b"1")
    assert driver.get("k") == b"1" and len([*tmp_path.iterdir()]) == 1
    driver.close()
    assert [*tmp_path.iterdir()] == []


# -- DataLoader ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "used"), [("fork", False), ("fork", True), ("spawn", True)])
def test_a_dataloader_reads_it(name: str, method: str, used: bool) -> None:
    pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from tensorstash.torch import ArrayDataset

    rows = np.arange(200 * 8).reshape(200, 8)
    array = stash.save(f"shm://{name}", rows, chunks=(32, 8), codecs=None)
    if used:
        same(array[...], rows)
    loader = DataLoader(
        ArrayDataset(array), batch_size=16, num_workers=2, multiprocessing_context=method
    )
    for _ in range(2):
        batches = [batch[0] if isinstance(batch, (list, tuple)) else batch for batch in loader]
        same(np.concatenate([batch.numpy() for batch in batches]), rows)
    assert left(name) and array[199, 7] == 1599
    assert len(pickle.dumps(array)) < 2048
