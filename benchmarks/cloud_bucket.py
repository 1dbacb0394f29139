"""A bucket of a real S3 server on this machine, directly and behind the slow link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .cloud_link import Link

LATENCY = 0.020
BANDWIDTH = 100e6
REGION = "us-east-1"


@dataclass(frozen=True)
class Bucket:
    """Where a peer finds its objects. ``server``: what serves them, in words."""

    name: str
    endpoint: str
    key: str
    secret: str
    server: str

    def upload(self, folder: Path, prefix: str) -> None:
        """Put every file below ``folder`` under ``prefix``."""
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=REGION,
            config=Config(max_pool_connections=8, s3={"addressing_style": "path"}),
        )

        def put(path: Path) -> None:
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=self.name, Key=name, Body=path.read_bytes())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, (path for path in folder.rglob("*") if path.is_file())))
        client.close()


@contextmanager
def buckets() -> Iterator[tuple[Bucket, Bucket, Link]]:
    """A fresh bucket: directly, through the link, and the link.

    Ceph's gateway where ``TENSORSTASH_TEST_RGW`` says that one runs (``.ci/servers start``), else
    moto, which reads the whole object for each range of it.
    """
    from tests.servers.moto import moto
    from tests.servers.rgw import VARIABLE, rgw
    from tests.servers.s3 import S3

    if os.environ.get(VARIABLE):
        gateway = rgw()
        server: S3 = gateway
        words = f"Ceph RGW {gateway.version}"
    else:
        import moto as library

        server = moto()
        words = f"moto {library.__version__} (a range costs it the whole object)"
    # From where alone TensorStore takes them; without files it complains with each handle.
    os.environ["AWS_ACCESS_KEY_ID"] = server.key
    os.environ["AWS_SECRET_ACCESS_KEY"] = server.secret
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    try:
        name = server.make_bucket()
        with Link(server.address, latency=LATENCY, bandwidth=BANDWIDTH) as link:
            direct = Bucket(name, server.endpoint, server.key, server.secret, words)
            yield direct, replace(direct, endpoint=link.endpoint), link
    finally:
        server.close()
