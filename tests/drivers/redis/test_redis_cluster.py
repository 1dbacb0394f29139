"""A Redis cluster whose slots move while they are used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tensorstash.driver import Driver, Put, Request, Span
from tensorstash.drivers.redis import keys as redis_keys
from tensorstash.errors import Conflict, Unavailable
from tensorstash.registry import connect
from tests.servers.cluster import Cluster, until
from tests.servers.port import HOST, free_port
from tests.servers.redis import redis


@pytest.fixture
def driver(redis_cluster: Cluster) -> Driver:
    return connect(redis_cluster.fresh(), {"cluster": True, "timeout": 5.0})


@pytest.fixture
def nodes(redis_cluster: Cluster) -> Iterator[list[Any]]:
    clients = [node.client() for node in redis_cluster.nodes]
    yield clients
    for client in clients:
        client.close()


class Move:
    """One slot, on its way from the node that has it to another."""

    def __init__(self, nodes: list[Any], place: bytes) -> None:
        self.slot = redis_keys.slot(place)
        ids = [node.execute_command("CLUSTER", "MYID").decode() for node in nodes]
        there = [self._serves(node, nodes) for node in nodes]
        i = there.index(True)
        j = (i + 1) % len(nodes)
        self.origin, self.target, self.nodes = nodes[i], nodes[j], nodes
        self.new = ids[j]
        self.target.execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids[i])
        self.origin.execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids[j])

    def _serves(self, node: Any, nodes: list[Any]) -> bool:
        port = node.connection_pool.connection_kwargs["port"]
        ranges = nodes[0].execute_command("CLUSTER", "SLOTS")
        return any(a <= self.slot <= b and owner[1] == port for a, b, owner, *_ in ranges)

    def migrate(self, count: int) -> None:
        names = self.origin.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        port = self.target.connection_pool.connection_kwargs["port"]
        self.origin.execute_command("MIGRATE", HOST, port, "", 0, 5000, "KEYS", *names)

    def finish(self) -> None:
        self.migrate(10_000)
        for node in (self.target, self.origin, *self.nodes):
            node.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self.new)


def test_slots_are_followed_while_they_move(driver: Driver, nodes: list[Any]) -> None:
    keys = [f"{{all}}/{i}" for i in range(40)]
    driver.put_many((key, key.encode()) for key in keys)
    prefix = driver.url.rpartition("/")[2]
    move = Move(nodes, f"{prefix}/{{all}}/0".encode())
    tags = {key: driver.tag(key) for key in keys}
    places = [each for key in keys[:20] for each in pair(prefix, key)]
    port = move.target.connection_pool.connection_kwargs["port"]
    move.origin.execute_command("MIGRATE", HOST, port, "", 0, 5000, "KEYS", *places)
    found = dict(driver.get_many_tagged(Request(key) for key in keys))
    assert [found[i] for i in range(40)] == [(key.encode(), tags[key]) for key in keys]
    assert driver.get(keys[0], Span(1, 4)) == keys[0][1:4].encode()
    tag = driver.put(keys[0], b"new", if_tag=tags[keys[0]])
    with pytest.raises(Conflict):
        driver.put(keys[0], b"newer", if_tag=tags[keys[0]])
    driver.delete(keys[1])
    # A pair that is nowhere yet can be made when the move is over.
    timer = threading.Timer(0.3, move.finish)
    timer.start()
    driver.put("{all}/fresh", b"1", if_absent=True)
    timer.join()
    assert driver.get_tagged(keys[0]) == (b"new", tag)
    assert driver.get(keys[1]) is None and driver.get("{all}/fresh") == b"1"
    assert {*driver.list()} == {*keys, "{all}/fresh"} - {keys[1]}


def test_a_pair_that_is_half_moved_is_waited_for(driver: Driver, nodes: list[Any]) -> None:
    tag = driver.put("{half}/k", b"1")
    prefix = driver.url.rpartition("/")[2]
    place, version = pair(prefix, "{half}/k")
    move = Move(nodes, place)
    port = move.target.connection_pool.connection_kwargs["port"]
    move.origin.execute_command("MIGRATE", HOST, port, version, 0, 5000)
    timer = threading.Timer(0.2, move.finish)
    timer.start()
    assert driver.get_tagged("{half}/k") == (b"1", tag)
    timer.join()
    until(lambda: driver.get("{half}/k") == b"1")


def test_a_cluster_whose_slots_nobody_serves() -> None:
    settings = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with closing(redis(settings=settings)) as node:
        driver = connect(node.address, {"cluster": True, "timeout": 0.5})
        for call in (
            lambda: [*driver.list()],
            lambda: driver.get("k"),
            lambda: [*driver.put_each([Put("k", b"1")])],
        ):
            with pytest.raises(Unavailable, match="no node serves"):
                call()


def pair(prefix: str, key: str) -> tuple[bytes, bytes]:
    return redis_keys.RedisKeys(prefix + "/").pair(key)
