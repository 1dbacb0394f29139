"""A Redis cluster of three nodes, and a replica."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.servers.missing import program
from tests.servers.port import HOST, free_port
from tests.servers.redis import DEBIAN, Redis, redis


@dataclass(frozen=True)
class Cluster:
    """Three masters that share the slots."""

    nodes: tuple[Redis, ...]

    @property
    def url(self) -> str:
        """The first node; the others are found through it."""
        return self.nodes[0].url

    @property
    def options(self) -> dict[str, Any]:
        """What our driver needs beside the URL."""
        return {"cluster": True}

    def fresh(self) -> str:
        """A URL of the cluster that no other test uses."""
        return self.nodes[0].fresh()

    def client(self) -> Any:
        """A redis-py cluster client."""
        from redis.cluster import RedisCluster

        return RedisCluster.from_url(self.url)

    def close(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.close()


def cluster() -> Cluster:
    """A cluster of our own, ready."""
    tool = program("redis-cli", DEBIAN)
    settings = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "2000",
        "cluster-announce-hostname": '""',
    }
    nodes: list[Redis] = []
    try:
        for _ in range(3):
            # By default a node's bus is 10,000 ports above it, among the kernel's own.
            nodes.append(redis(settings=settings | {"cluster-port": str(free_port())}))
        addresses = [f"{HOST}:{node.port}" for node in nodes]
        done = subprocess.run(
            [tool, "--cluster", "create", *addresses, "--cluster-yes"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"redis-cli --cluster create: {done.stdout[-1000:]}{done.stderr}")
        for node in nodes:
            with node.client(decode_responses=True) as client:
                until(lambda: client.cluster("info")["cluster_state"] == "ok")
    except BaseException:
        Cluster(tuple(nodes)).close()
        raise
    return Cluster(tuple(nodes))


def replica(master: Redis) -> Redis:
    """A read-only replica of ``master``, in step with it."""
    copy = redis(settings={"replicaof": f"{HOST} {master.port}"})
    with copy.client() as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    return copy


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until ``holds()``."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds} s")
        time.sleep(0.02)
