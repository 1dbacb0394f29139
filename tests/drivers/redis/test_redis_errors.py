"""What a Redis server refuses, and how it is said: the class, the advice, and no secret."""

from __future__ import annotations

import datetime
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tensorstash.driver import Driver, Request, Span
from tensorstash.errors import (
    Denied,
    DriverError,
    Invalid,
    NoSpace,
    TimedOut,
    Unavailable,
    Unsupported,
)
from tensorstash.registry import connect
from tests.servers.certificates import Certificates
from tests.servers.cluster import replica
from tests.servers.port import HOST
from tests.servers.redis import Redis, redis
from tests.servers.valkey import valkey

SECRET = "s3cr-et:p@ss/word"


# -- credentials and rights --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"password": SECRET}, {"username": "narrow", "password": SECRET}, {"username": "nobody"}],
)
def test_wrong_credentials_are_denied_at_once(redis_server: Redis, options: Any) -> None:
    driver = connect(redis_server.fresh(), options)
    for call in (
        lambda: driver.get("k"),
        lambda: driver.put("k", b"1"),
        lambda: driver.put("k", b"1", if_absent=True),
        lambda: [*driver.list()],
        lambda: driver.lock("k").__enter__(),
    ):
        with pytest.raises(Denied, match="check username and password") as caught:
            call()
        assert SECRET not in str(caught.value) + str(caught.value.__cause__)
    assert driver.traffic is not None and driver.traffic.retries == 0


def test_what_a_user_may_not_do_is_denied(redis_server: Redis) -> None:
    admin = connect(redis_server.fresh(), redis_server.options)
    admin.put("k", b"1")
    reader = connect(admin.url, {"username": "reader", "password": "reading"})
    assert reader.get("k") == b"1" and [*reader.list()] == ["k"]
    narrow = connect(admin.url, {"username": "narrow", "password": "narrowing"})
    for call in (
        lambda: reader.put("k", b"2"),
        lambda: reader.put("new", b"2", if_absent=True),
        lambda: reader.delete("k"),
        lambda: reader.delete_prefix(""),
        lambda: narrow.get("k"),
        lambda: narrow.put("new", b"1", if_absent=True),
        lambda: narrow.tag("k"),
    ):
        with pytest.raises(Denied, match="ask for the right"):
            call()
    assert admin.get("k") == b"1"


def test_a_replica_is_read_only() -> None:
    with closing(redis()) as primary, closing(replica(primary)) as copy:
        connect(primary.address, {}).put("k", b"1")
        driver = connect(copy.address, {})
        end = time.monotonic() + 60
        while driver.get("k") is None and time.monotonic() < end:
            time.sleep(0.01)
        assert driver.get("k") == b"1"
        for call in (
            lambda: driver.put("k", b"2"),
            lambda: driver.put("new", b"2", if_absent=True),
            lambda: driver.delete("k"),
        ):
            with pytest.raises(Denied, match="connect to the primary"):
                call()


def test_a_certificate_of_an_unknown_authority(redis_tls: Redis) -> None:
    with pytest.raises(Unavailable, match="ca_certs"):
        connect(redis_tls.fresh(), redis_tls_options(redis_tls, ca_certs=None)).get("k")
    loose = redis_tls_options(redis_tls, ca_certs=None) | {"verify": False}
    assert connect(redis_tls.fresh(), loose).get("k") is None
    with pytest.raises(DriverError):
        connect(f"redis://{HOST}:{redis_tls.port}/0", {"timeout": 1.0}).get("k")


def redis_tls_options(server: Redis, ca_certs: str | None) -> dict[str, Any]:
    return {"password": server.password, **({"ca_certs": ca_certs} if ca_certs else {})}


def test_a_client_certificate(certificates: Certificates, tmp_path: Path) -> None:
    own = client_certificate(tmp_path)
    settings = {"tls-auth-clients": "yes", "tls-ca-cert-file": own["certfile"]}
    with closing(redis(certificates=certificates, settings=settings)) as server:
        authority = {"ca_certs": str(certificates.authority)}
        with pytest.raises(Unavailable):
            connect(server.fresh(), {**authority, "timeout": 1.0}).get("k")
        assert connect(server.fresh(), {**authority, **own}).get("k") is None


def client_certificate(folder: Path) -> dict[str, str]:
    """A certificate that vouches for itself, as the options that show it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    (folder / "own.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "own.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return {"certfile": str(folder / "own.pem"), "keyfile": str(folder / "own.key")}


# -- what the server cannot do -----------------------------------------------------------


def test_a_full_server_refuses_and_keeps_what_it_has() -> None:
    with closing(valkey(settings={"maxmemory": "16mb"})) as server:
        driver = connect(server.address, {})
        stored = {}
        with pytest.raises(NoSpace, match="maxmemory") as caught:
            for i in range(100):
                stored[f"c/{i}"] = os.urandom(1 << 20)
                driver.put(f"c/{i}", stored[f"c/{i}"])
        refused, _ = stored.popitem()
        assert caught.value.key == refused
        with pytest.raises(NoSpace):
            driver.put("c/0", bytes(2 << 20), if_tag=driver.tag("c/0"))
        with pytest.raises(NoSpace):
            driver.put_many((f"d/{i}", bytes(1 << 20)) for i in range(20))
        for i, found in driver.get_many_tagged(Request(key) for key in stored):
            assert found is not None and found[0] == stored[f"c/{i}"]
        driver.delete_prefix("d/")
        driver.delete("c/1")
        driver.put("c/1", b"small again")


def test_a_server_that_evicts_forgets_values_whole() -> None:
    settings = {"maxmemory": "16mb", "maxmemory-policy": "allkeys-random"}
    with closing(valkey(settings=settings)) as server:
        driver = connect(server.address, {})
        for i in range(3000):
            driver.put(f"c/{i}", b"%4d" % i * 2500)
        there = 0
        for i, found in driver.get_many_tagged(Request(f"c/{i}") for i in range(3000)):
            if found is not None:
                there += 1
                assert found[0] == b"%4d" % i * 2500
        assert 0 < there < 3000
        assert {*driver.list()} <= {f"c/{i}" for i in range(3000)}


def test_a_server_that_loads_is_waited_for() -> None:
    with closing(valkey(settings={"appendonly": "yes"})) as server:
        driver = connect(server.address, {})
        driver.put("k", b"1")
        client = server.client()
        for i in range(40):
            client.set(f"more:{i}", bytes(1 << 18))
        client.config_set("loading-process-events-interval-bytes", 1024)
        client.config_set("key-load-delay", 10_000)
        client.config_rewrite()
        client.close()
        server.process.kill()
        starter = threading.Thread(target=server.process.start)
        starter.start()
        assert driver.get("k") == b"1"
        assert driver.traffic is not None and driver.traffic.retries > 0
        starter.join()


def test_a_value_beyond_the_limit_is_refused_before_it_is_sent(redis_url: str) -> None:
    driver = connect(redis_url, {})
    driver.get("k")
    before = driver.traffic.requests  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="smaller chunks"):
        driver.put("k", memoryview(bytes((512 << 20) + 1)))
    assert driver.traffic.requests == before  # type: ignore[union-attr]


def test_a_database_the_server_has_not(valkey_server: Redis) -> None:
    with pytest.raises(DriverError, match="database number"):
        connect(f"redis://{HOST}:{valkey_server.port}/9999", {}).get("k")


@pytest.mark.parametrize(
    "call",
    [
        lambda driver: driver.get("k"),
        lambda driver: driver.get("k", Span(0, 3)),
        lambda driver: driver.get_tagged("k"),
        lambda driver: [*driver.get_many([Request("k"), Request("l")])],
        lambda driver: [*driver.get_many_tagged([Request("l"), Request("k")])],
        lambda driver: driver.tag("k"),
        lambda driver: [*driver.sizes()],
    ],
)
def test_a_key_that_holds_no_bytes_is_not_absent(
    redis_url: str, valkey_server: Redis, call: Any
) -> None:
    client = valkey_server.client()
    client.rpush(redis_url.rpartition("/")[2] + "/k", "a", "list")
    client.close()
    with pytest.raises(DriverError, match="another program uses this key"):
        call(connect(redis_url, {}))


def test_a_stuck_server_is_a_time_out() -> None:
    with closing(valkey()) as server:
        driver = connect(server.address, {"timeout": 0.5})
        driver.put("k", b"1")
        server.process.freeze()
        try:
            with pytest.raises(TimedOut):
                driver.get("k")
        finally:
            server.process.thaw()
        assert driver.get("k") == b"1"


# -- secrets -----------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[Redis]:
    with closing(valkey(password=SECRET)) as server:
        yield server


def factory() -> dict[str, Any]:
    return {"password": SECRET}


def test_a_password_shows_nowhere(guarded: Redis, caplog: Any, monkeypatch: Any) -> None:
    caplog.set_level(logging.DEBUG)
    driver = connect(guarded.address, {"password": SECRET})
    driver.put("k", b"1")
    driver.get("k")
    encoded = SECRET.replace(":", "%3A").replace("@", "%40").replace("/", "%2F")
    same = connect(f"redis://:{encoded}@{HOST}:{guarded.port}/0", {})
    assert same.get("k") == b"1"
    for each in (driver, same):
        pickled = pickle.dumps(each)
        assert SECRET.encode() not in pickled and encoded.encode() not in pickled
        assert SECRET not in repr(each) + each.url
        with pytest.raises(Denied, match="connection=") as caught:
            pickle.loads(pickled).get("k")
        assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text and "redis read 'k'" in caplog.text
    monkeypatch.setenv("REDISCLI_AUTH", SECRET)
    assert pickle.loads(pickle.dumps(driver)).get("k") == b"1"


@pytest.mark.parametrize("rest", [f":{SECRET}@host", f"user:{SECRET}@host:port", f"{SECRET}@"])
def test_a_malformed_url_is_not_quoted(rest: str) -> None:
    with pytest.raises(Invalid) as caught:
        connect(f"redis://{rest}", {})
    for part in ("s3cr", "p@ss", "p@"):
        assert part not in str(caught.value)


def test_a_factory_travels_instead_of_the_password(guarded: Redis) -> None:
    driver = connect(guarded.address, {"connection": factory})
    driver.put("k", b"1")
    again: Driver = pickle.loads(pickle.dumps(driver))
    assert again.get("k") == b"1"
    assert SECRET.encode() not in pickle.dumps(again)


def test_a_factory_is_checked_when_it_is_called() -> None:
    for answer, message in (
        (["password"], "dict"),
        ({"pasword": "x"}, "'pasword'"),
        ({"cluster": True}, "'cluster'"),
        ({"timeout": "soon"}, "'timeout'"),
    ):
        driver = connect("redis://localhost/0", {"connection": lambda answer=answer: answer})
        with pytest.raises(Invalid, match=message):
            driver.get("k")
    with pytest.raises(Invalid, match="function"):
        connect("redis://localhost/0", {"connection": "mine.factory"})
