"""pytest fixtures: the servers, each started when first asked for, one per xdist worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.servers.certificates import Certificates
from tests.servers.certificates import certificates as make_certificates
from tests.servers.cluster import Cluster, cluster
from tests.servers.faults import FaultProxy, Proxies
from tests.servers.http import Http
from tests.servers.moto import moto
from tests.servers.rclone import rclone
from tests.servers.redis import Redis, redis
from tests.servers.rgw import Rgw
from tests.servers.rgw import rgw as find_rgw
from tests.servers.s3 import S3
from tests.servers.valkey import valkey


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """moto, with authentication switched on: wrong secrets are refused."""
    with closing(moto(authentication=True)) as server:
        yield server


@pytest.fixture(scope="session")
def rgw() -> Rgw:
    """Ceph's gateway, the same for all workers: never to be killed (``rgw.another()`` may be)."""
    return find_rgw()


@pytest.fixture(scope="session")
def rclone_s3() -> Iterator[S3]:
    """The server that ignores conditions."""
    with closing(rclone()) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Redis]:
    """A plain Valkey server that keeps nothing on disk."""
    with closing(valkey()) as server:
        yield server


@pytest.fixture
def redis_url(valkey_server: Redis) -> str:
    """A fresh prefix in the plain Valkey server, as a URL."""
    return valkey_server.fresh()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """Debian's Redis with a password, and a user ``reader`` (password ``reading``) who may not
    write and ``narrow`` (password ``narrowing``) who may touch only keys that begin ``mine``."""
    users = (
        "reader on >reading ~* +@all -@write -@admin -@dangerous",
        "narrow on >narrowing ~mine* +@all -@admin -@dangerous",
    )
    with closing(redis(password="letmein", users=users)) as server:
        yield server


@pytest.fixture(scope="session")
def redis_tls(certificates: Certificates) -> Iterator[Redis]:
    """Debian's Redis behind TLS, with a password."""
    with closing(redis(password="letmein", certificates=certificates)) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """Three nodes of Debian's Redis."""
    with closing(cluster()) as servers:
        yield servers


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: Any) -> Certificates:
    """An authority of our own and a server certificate for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def http_server() -> Iterator[Http]:
    """An empty HTTP server; how it behaves can be changed."""
    with closing(Http()) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Proxies]:
    """``proxy(upstream, ...)`` makes a fault proxy that ends with the test."""
    with ExitStack() as stack:
        yield lambda upstream, **options: stack.enter_context(FaultProxy(upstream, **options))
