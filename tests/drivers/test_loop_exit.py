"""A process ends well whatever its event loop was doing: no abort, no hang, not a word.

What happens now and then where a machine is busy is made certain here: threads of a client
linger where they could be met by the end of the interpreter.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from tests.servers.s3 import S3
from tests.support.project import ROOT

pytest.importorskip("obstore")

CHILDREN = 2

# After the wake-up: the loop's thread goes on, its caller is not back yet.
LINGERING = """
import asyncio, os, sys, threading, time
from tensorstash.drivers import loop
def lingering(method):
    def call_soon_threadsafe(*args, **options):
        handle = method(*args, **options)
        if not threading.current_thread().name.startswith(("MainThread", "tensorstash")):
            time.sleep(0.05)
        return handle
    return call_soon_threadsafe
"""

WITHIN = """
base = asyncio.BaseEventLoop
base.call_soon_threadsafe = lingering(base.call_soon_threadsafe)
"""

AROUND = """
loop._OwnedLoop.call_soon_threadsafe = lingering(loop._OwnedLoop.call_soon_threadsafe)
"""

FOREIGN = """
import obstore
from obstore.store import MemoryStore
async def put():
    await obstore.put_async(MemoryStore(), "k", b"1")
loop.current().run(put())
"""

DRIVER = """
from tensorstash.driver import Request
from tensorstash.drivers import s3
driver = s3.connect(sys.argv[1], client="obstore", endpoint=os.environ["ENDPOINT"])
driver.put("k", b"1")
"""

UNDER_WAY = """
for _ in range(8):
    loop.current().soon(driver._here().get("k", None, None))
"""

LEFT = """
batch = driver.get_many(Request("k") for _ in range(100))
next(batch)
batch.close()
"""

DAEMONS = """
def busy():
    while True:
        driver.get("k")
        dict(driver.get_many(Request("k") for _ in range(20)))
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.1)
"""

AFTER = """
import atexit, os, sys, warnings
def last():
    warnings.simplefilter("ignore")
    try:
        driver.get("k")
    except RuntimeError:
        return
    os.write(2, b"not refused")
atexit.register(last)  # before the loop's own, so it runs after that
"""


def end_well(code: str, *words: str) -> None:
    command = [sys.executable, "-c", code, *words]
    children = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(CHILDREN)
    ]
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in children]
    assert ends == [(b"", 0)] * CHILDREN


@pytest.fixture
def place(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("ENDPOINT", s3.endpoint)
    return f"{s3.make_bucket()}/a"


def test_a_thread_of_a_client_that_we_know_nothing_of() -> None:
    end_well(LINGERING + WITHIN + FOREIGN)


@pytest.mark.parametrize(
    "work", ["", UNDER_WAY, LEFT, DAEMONS], ids=["answered", "under way", "left", "daemons"]
)
def test_requests_to_s3(place: str, work: str) -> None:
    end_well(LINGERING + AROUND + DRIVER + work, place)


def test_what_comes_after_the_end_is_refused(place: str) -> None:
    end_well(AFTER + DRIVER, place)


def test_a_cancelled_request_is_held_until_obstore_has_done_with_it() -> None:
    from tensorstash.drivers.s3.obstore import client as obstore_client
    from tensorstash.drivers.s3.obstore import futures
    from tensorstash.drivers.s3.options import Settings

    async def main() -> None:
        asked, over = asyncio.Event(), asyncio.Event()

        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await over.wait()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            at = f"http://{host}:{port}"
            client = obstore_client.make(Settings("b", key="k", secret="s", endpoint=at, idle=60.0))
            task = asyncio.ensure_future(client.get("k"))
            await asked.wait()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(futures.all_done(), 0.2)
            task.cancel()
            await asyncio.wait_for(futures.all_done(), 10)
            over.set()
            await client.close()

    asyncio.run(main())


def test_a_client_that_fails_or_hangs_keeps_no_other_open() -> None:
    from tensorstash.drivers.s3.pool import Pool, Shared

    closed: list[str] = []

    class Client:
        def __init__(self, how: str) -> None:
            self.how = how

        async def close(self) -> None:
            if self.how == "fails":
                raise OSError
            if self.how == "hangs":
                await asyncio.sleep(60)
            closed.append(self.how)

    async def run() -> None:
        pool = Pool()
        for how in ("fails", "hangs", "closes"):
            client: Any = Client(how)
            pool._clients[how] = Shared(client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.close(), 0.2)

    asyncio.run(run())
    assert closed == ["closes"]


def test_what_is_noted_of_requests_stays_small() -> None:
    from tensorstash.drivers.s3.obstore import futures

    async def run() -> None:
        future = asyncio.get_running_loop().create_future()
        for _ in range(1000):
            futures.tracked(asyncio.get_running_loop().create_future())
        assert futures.tracked(future) is future
        assert len(futures._tracked) < 300 and futures._alive()[-1]() is future

    asyncio.run(run())
