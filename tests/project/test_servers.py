"""The servers that other tests rely on: they serve, they break on demand, they leave nothing."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.servers.certificates import Certificates
from tests.servers.cluster import Cluster, replica
from tests.servers.http import Http
from tests.servers.missing import program
from tests.servers.moto import moto
from tests.servers.process import Process
from tests.servers.redis import Redis, redis
from tests.servers.rgw import Rgw
from tests.servers.s3 import S3
from tests.servers.valkey import valkey
from tests.support.project import ROOT

botocore = pytest.importorskip("botocore.exceptions")
errors = pytest.importorskip("redis.exceptions")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def error_code(failed: Any) -> str:
    return str(failed.value.response["Error"]["Code"])


# Processes.


def test_a_closed_server_leaves_neither_process_nor_folder() -> None:
    server = valkey()
    pid, folder = server.process.pid, server.process.folder
    assert not gone(pid)
    assert folder.exists()
    server.close()
    assert gone(pid)
    assert not folder.exists()


def test_a_server_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1.*\n(.|\n)*Bad directive"):
        valkey(settings={"no-such-setting": "1"})


def test_a_server_that_does_not_answer_shows_its_log() -> None:
    command = [sys.executable, "-uc", "import time; print('here I am'); time.sleep(60)"]
    with pytest.raises(RuntimeError, match=r"not ready; its log:\nhere I am"):
        Process(command, lambda: False, seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_test_run_leaves_no_server(how: signal.Signals) -> None:
    # Started in a thread that is over: the server belongs to the process.
    code = (
        "import signal, threading, time\n"
        "from tests.servers.valkey import valkey\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs of shells ignore it
        "def start():\n"
        "    server = valkey(); print(server.process.pid, flush=True); kept.append(server)\n"
        "kept = []\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"
        "time.sleep(0.2); print(kept[0].client().ping(), flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=-3)
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert run.stdout.readline() == b"True\n"
        run.send_signal(how)
        run.wait(60)
    end = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < end, "the server outlived the tests"
        time.sleep(0.02)


def test_a_missing_program_is_skipped_loudly_but_fails_in_continuous_integration(
    monkeypatch: Any,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is missing: apt-get install"):
        program("no-such-program", "apt-get install it")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is missing"):
        program("no-such-program", "apt-get install it")


# S3.


def put_and_get(server: S3) -> None:
    bucket = server.make_bucket()
    with closing(server.client()) as client:
        client.put_object(Bucket=bucket, Key="a/b", Body=b"0123456789")
        got = client.get_object(Bucket=bucket, Key="a/b", Range="bytes=2-4")
        assert got["Body"].read() == b"234"


def test_moto_serves_and_refuses_wrong_secrets(s3: S3) -> None:
    put_and_get(s3)
    with closing(replace(s3, secret="wrong").client()) as client:
        with pytest.raises(botocore.ClientError) as failed:
            client.list_buckets()
        assert error_code(failed) == "SignatureDoesNotMatch"


def test_moto_without_authentication_and_with_tls(certificates: Certificates) -> None:
    with closing(moto(certificates=certificates)) as server:
        put_and_get(replace(server, secret="whatever"))


def test_rclone_ignores_conditions(rclone_s3: S3) -> None:
    bucket = rclone_s3.make_bucket()
    with closing(rclone_s3.client()) as client:
        client.put_object(Bucket=bucket, Key="k", Body=b"first")
        client.put_object(Bucket=bucket, Key="k", Body=b"second", IfNoneMatch="*")
        assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"second"


def test_ceph_serves_and_keeps_conditions(rgw: Rgw) -> None:
    put_and_get(rgw)
    bucket = rgw.make_bucket()
    with closing(rgw.client()) as client:
        client.put_object(Bucket=bucket, Key="k", Body=b"first")
        with pytest.raises(botocore.ClientError) as failed:
            client.put_object(Bucket=bucket, Key="k", Body=b"second", IfNoneMatch="*")
        assert error_code(failed) == "PreconditionFailed"
    with closing(replace(rgw, secret="wrong").client()) as client:
        with pytest.raises(botocore.ClientError) as failed:
            client.list_buckets()
        assert error_code(failed) == "SignatureDoesNotMatch"


def test_ceph_makes_users_with_quotas(rgw: Rgw) -> None:
    user = rgw.make_user()
    bucket = user.make_bucket()
    user.admin("quota", "set", "--quota-scope=user", f"--uid={user.user}", "--max-objects=1")
    user.admin("quota", "enable", "--quota-scope=user", f"--uid={user.user}")
    with closing(user.client()) as client:
        client.put_object(Bucket=bucket, Key="one", Body=b"1")
        with pytest.raises(botocore.ClientError) as failed:
            for number in range(50):
                client.put_object(Bucket=bucket, Key=f"more-{number}", Body=b"1")
        assert error_code(failed) == "QuotaExceeded"


def test_another_gateway_of_ceph_can_be_killed_and_started_again(rgw: Rgw) -> None:
    with closing(rgw.another()) as server:
        bucket = server.make_bucket()
        with closing(server.client()) as client, closing(rgw.client()) as other:
            client.put_object(Bucket=bucket, Key="k", Body=b"kept")
            assert server.process is not None
            server.process.kill()
            with pytest.raises(botocore.EndpointConnectionError):
                client.get_object(Bucket=bucket, Key="k")
            assert other.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"
            server.process.start()
            assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


# Redis.


def test_valkey_serves_by_tcp_and_by_unix_socket(valkey_server: Redis) -> None:
    import redis as library

    with valkey_server.client() as client:
        client.set("k", b"value")
        assert client.getrange("k", 1, 2) == b"al"
    with library.Redis(unix_socket_path=str(valkey_server.socket)) as client:
        assert client.get("k") == b"value"
    assert valkey_server.fresh() != valkey_server.fresh()


@pytest.mark.parametrize("append_only", ["yes", "no"])
def test_valkey_keeps_what_its_log_says(append_only: str) -> None:
    settings = {"appendonly": append_only, "appendfsync": "always"}
    with closing(valkey(settings=settings)) as server, server.client() as client:
        client.set("k", b"value")
        server.process.restart()
        assert client.get("k") == (b"value" if append_only == "yes" else None)


def test_valkey_runs_out_of_memory_and_refuses() -> None:
    settings = {"maxmemory": "16mb"}
    with closing(valkey(settings=settings)) as server, server.client() as client:
        with pytest.raises(errors.OutOfMemoryError):
            for number in range(32):
                client.set(f"k{number}", bytes(1 << 20))
        assert client.get("k0") == bytes(1 << 20)


def test_valkey_frozen_answers_nothing_until_thawed() -> None:
    with closing(valkey()) as server, server.client(socket_timeout=0.2) as client:
        client.ping()
        server.process.freeze()
        with pytest.raises(errors.TimeoutError):
            client.ping()
        server.process.thaw()
        assert client.ping()


def test_redis_asks_for_a_password_and_keeps_users_apart(redis_server: Redis) -> None:
    with redis_server.client() as client:
        client.set("k", b"value")
    wrong = replace(redis_server, password="wrong")
    with wrong.client() as client, pytest.raises(errors.AuthenticationError):
        client.get("k")
    with redis_server.client(username="reader", password="reading") as client:
        assert client.get("k") == b"value"
        with pytest.raises(errors.NoPermissionError):
            client.set("k", b"other")
    with redis_server.client(username="narrow", password="narrowing") as client:
        client.set("mine", b"1")
        with pytest.raises(errors.NoPermissionError):
            client.get("k")


def test_redis_speaks_tls_to_those_who_trust_its_authority(redis_tls: Redis) -> None:
    with redis_tls.client() as client:
        assert client.ping()
    untrusted = pytest.raises(errors.ConnectionError, match="CERTIFICATE_VERIFY_FAILED")
    with redis_tls.client(ssl_ca_certs=None) as client, untrusted:
        client.ping()


def test_a_cluster_spreads_keys_over_its_nodes(redis_cluster: Cluster) -> None:
    with redis_cluster.client() as client:
        for number in range(30):
            client.set(f"k{number}", b"value")
        assert client.get("k7") == b"value"
    sizes = []
    for node in redis_cluster.nodes:
        with node.client() as client:
            sizes.append(client.dbsize())
    assert sum(sizes) >= 30
    assert all(sizes)


def test_a_replica_follows_and_takes_no_writes() -> None:
    with (
        closing(redis()) as master,
        closing(replica(master)) as copy,
        master.client() as client,
        copy.client() as follower,
    ):
        client.set("k", b"value")
        assert client.wait(1, 5000) == 1
        assert follower.get("k") == b"value"
        with pytest.raises(errors.ReadOnlyError):
            follower.set("k", b"other")


# HTTP.


@pytest.fixture
def connection(http_server: Http) -> Iterator[http.client.HTTPConnection]:
    http_server.files["a/b"] = b"0123456789"
    with closing(http.client.HTTPConnection(http_server.url.removeprefix("http://"))) as made:
        yield made


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("0-2", 206, b"012"),
        ("7-", 206, b"789"),
        ("-2", 206, b"89"),
        ("8-99", 206, b"89"),
        ("10-", 416, b""),
        ("1-2,4-5", 200, b"0123456789"),
    ],
)
def test_http_answers_ranges(connection: Any, wanted: str, status: int, body: bytes) -> None:
    connection.request("GET", "/a/b", headers={"Range": f"bytes={wanted}"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (status, body)


def test_http_can_ignore_ranges_and_leave_out_lengths(connection: Any, http_server: Http) -> None:
    http_server.ranges = http_server.lengths = False
    connection.request("GET", "/a/b", headers={"Range": "bytes=0-2"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Length") is None
    assert answer.read() == b"0123456789"
    assert http_server.requests == ["GET a/b bytes=0-2"]
    assert http_server.sent == 10


def test_http_lists_folders_revalidates_and_asks_for_passwords(
    connection: Any, http_server: Http
) -> None:
    connection.request("GET", "/a/")
    assert connection.getresponse().read() == b'<a href="b">b</a>\n'
    connection.request("GET", "/missing")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (404, b"")
    connection.request("HEAD", "/a/b")
    answer = connection.getresponse()
    assert (answer.getheader("Content-Length"), answer.read()) == ("10", b"")
    connection.request("GET", "/a/b", headers={"If-None-Match": answer.getheader("ETag")})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (304, b"")
    connection.request("PUT", "/new", body=b"1")
    connection.getresponse().read()
    assert http_server.files["new"] == b"1"
    http_server.password = "user:pw"
    connection.request("GET", "/a/b")
    assert connection.getresponse().status == 401


def test_certificates_are_private(certificates: Certificates) -> None:
    assert Path(certificates.key).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", [(), ("-n", "2")], ids=["alone", "spread"])
def test_one_line_says_what_was_skipped_and_why(tmp_path: Path, how: tuple[str, ...]) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(30))\n"
        "def test_a(n): pytest.skip('no server\\nhere')\n"
        "def test_b(): pytest.skip('no sun')\n"
        "def test_c(): pass\n"
    )
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n"
    )
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", *how, "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in run.stdout.splitlines() if "skipped (" in line]
    assert len(said) == 1, run.stdout
    assert said[0].startswith("32 skipped (30: no server here; 1: ")
    assert "1: no sun" in said[0] and "'no_such_module'" in said[0]
    assert "SKIPPED" not in run.stdout
