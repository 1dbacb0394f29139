from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import fsspec
import pytest
from fsspec.asyn import sync

import tensorstash as stash
from tensorstash.driver import Changed, Driver, Span
from tensorstash.drivers.fsspec import connect
from tensorstash.registry import connect as stash_connect
from tensorstash.testing.driver import DriverContract
from tensorstash.testing.driver_races import in_threads
from tests.servers.s3 import S3


class TestMemoryFilesystem(DriverContract):
    rounds = 200
    many = 100
    examples = 15

    @pytest.fixture
    def driver(self) -> Iterator[Driver]:
        fs = fsspec.filesystem("memory")
        driver = connect("/contract/root", fs=fs)
        yield driver
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]

    def test_works_in_a_spawned_process(self, driver: Driver) -> None:
        pytest.skip("the memory of another process")


class TestObjectStore(DriverContract):
    """An asynchronous filesystem over real requests: s3fs, as a generic filesystem object."""

    many = 60
    rounds = 30
    examples = 4
    torn_puts = 10

    @pytest.fixture
    def driver(self, s3: S3) -> Iterator[Driver]:
        keys = (s3.key, s3.secret, s3.endpoint)
        fs = fsspec.filesystem("s3", skip_instance_cache=True, **credentials(*keys))
        yield connect(f"{s3.make_bucket()}/root", fs=fs, connection=partial(credentials, *keys))
        # Its own finalizer gives up after 0.1 s, and then complains of what it left open.
        if getattr(fs, "_s3creator", None) is not None:
            sync(fs.loop, fs._s3creator.__aexit__, None, None, None)

    def test_reads_are_never_torn(self, driver: Driver) -> None:
        # The suite's two values take turns, and an ETag of contents names both turns alike.
        sizes = [1 << 20, (1 << 20) + 4096]
        driver.put("k", bytes(sizes[0]))
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                for found in (driver.get_tagged("k"), driver.get_tagged("k", Span(-5000))):
                    assert found is not None and len({*bytes(found[0])}) == 1
                with suppress(Changed):
                    parts = driver.get_ranges("k", [Span(0, 9), Span(-9), Span(5000, 5009)])
                    assert parts is not None and len({bytes(part) for part in parts[0]}) == 1

        def write() -> None:
            try:
                for i in range(12):
                    driver.put("k", bytes([i]) * sizes[i % 2])
            finally:
                done.set()

        in_threads(3, lambda i: read() if i else write())


def credentials(key: str, secret: str, endpoint: str) -> dict[str, Any]:
    return {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": endpoint}}


class TestFtp(DriverContract):
    """A filesystem with folders, one connection, and no name for a version."""

    many = 60
    rounds = 30
    examples = 4
    torn_puts = 10

    @pytest.fixture
    def driver(self, ftp_port: int) -> Driver:
        options = {"timeout": 20.0, "connection": ftp_login}
        return stash_connect(f"ftp://127.0.0.1:{ftp_port}/{uuid.uuid4().hex}/root", options)


def ftp_login() -> dict[str, Any]:
    return {"username": "me", "password": "hush"}


@pytest.fixture(scope="module")
def ftp_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    root = tmp_path_factory.mktemp("ftp")
    pytest.importorskip("pyftpdlib")
    script = (
        "import sys\n"
        "from pyftpdlib.authorizers import DummyAuthorizer\n"
        "from pyftpdlib.handlers import FTPHandler\n"
        "from pyftpdlib.servers import ThreadedFTPServer\n"
        "FTPHandler.authorizer = DummyAuthorizer()\n"
        "FTPHandler.authorizer.add_user('me', 'hush', sys.argv[1], perm='elradfmwMT')\n"
        "server = ThreadedFTPServer(('127.0.0.1', 0), FTPHandler)\n"
        "print(server.address[1], flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


def test_appends_that_change_no_byte_need_no_condition() -> None:
    mapper = fsspec.get_mapper("memory://unchanged")
    array = stash.create(mapper, (3,), "i8", chunks=4, options={"unsafe": True})
    array[:] = [1, 2, 3]
    assert array.append([0]) == 3 and array[:].tolist() == [1, 2, 3, 0]
    place = fsspec.get_mapper("memory://unchanged-records")
    records = stash.save_records(place, {"x": [1]}, options={"unsafe": True})
    records.extend({"x": [0, 0]})
    records.append({"x": 0})
    assert records["x"][:].tolist() == [1, 0, 0, 0]
