"""The driver contract on real servers: Valkey, Redis, by TCP, TLS and socket, a cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tensorstash.driver import Driver
from tensorstash.registry import connect
from tensorstash.testing.driver import DriverContract
from tests.servers.cluster import Cluster
from tests.servers.redis import Redis


def new(address: str, **options: Any) -> Driver:
    """A driver on a place of its own, whose locks are soon free."""
    return connect(address, {"lease": 1.5, **options})


def prefix() -> str:
    return f"t-{uuid.uuid4().hex[:16]}"


class RedisContract(DriverContract):
    many = 1200
    examples = 25


class Again(RedisContract):
    """On a server reached in another way: fewer repetitions."""

    examples = 8
    rounds = 200
    torn_puts = 20


class TestValkey(RedisContract):
    @pytest.fixture
    def driver(self, redis_url: str) -> Driver:
        return new(redis_url)


class TestValkeyWithoutPrefix(Again):
    @pytest.fixture
    def driver(self, valkey_server: Redis) -> Iterator[Driver]:
        everything = new(f"redis://127.0.0.1:{valkey_server.port}/7")
        everything.delete_prefix("")
        yield everything
        everything.delete_prefix("")


class TestUnixSocket(Again):
    @pytest.fixture
    def driver(self, valkey_server: Redis) -> Driver:
        return new(f"unix://{valkey_server.socket}?db=3&prefix={prefix()}/*[x]?")


class TestExpiring(Again):
    """Puts of another kind, whose end the tests do not see."""

    @pytest.fixture
    def driver(self, redis_url: str) -> Driver:
        return new(redis_url, expire=3600)


def password() -> dict[str, Any]:
    """A connection factory: what a pickle carries instead of the password."""
    return {"password": os.environ["TENSORSTASH_TEST_PASSWORD"]}


class TestPasswordAndPrefix(Again):
    """A user who may touch one prefix and do nothing dangerous."""

    @pytest.fixture
    def driver(self, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> Driver:
        monkeypatch.setenv("TENSORSTASH_TEST_PASSWORD", "narrowing")
        url = f"{redis_server.address}/mine/{prefix()}"
        return new(url, username="narrow", connection=password)


class TestTls(Again):
    @pytest.fixture
    def driver(self, redis_tls: Redis, monkeypatch: pytest.MonkeyPatch) -> Driver:
        assert redis_tls.certificates is not None and redis_tls.password
        monkeypatch.setenv("TENSORSTASH_TEST_PASSWORD", redis_tls.password)
        authority = str(redis_tls.certificates.authority)
        return new(redis_tls.fresh(), ca_certs=authority, connection=password)


class TestCluster(Again):
    @pytest.fixture
    def driver(self, redis_cluster: Cluster) -> Driver:
        return new(redis_cluster.fresh(), cluster=True)
