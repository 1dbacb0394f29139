"""An S3 server as tests see it: where it is, whose keys open it, and fresh buckets."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.servers.process import Process


@dataclass(frozen=True)
class S3:
    """A running S3 server (``process`` is ``None`` where it is not ours to kill)."""

    endpoint: str
    key: str
    secret: str = field(repr=False)
    process: Process | None = None
    authority: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What our driver needs to reach this server: ``stash.open(url, **s3.options)``."""
        options = {"endpoint": self.endpoint, "key": self.key, "secret": self.secret}
        return options if self.authority is None else options | {"ca": str(self.authority)}

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as the proxy wants them."""
        parts = urlsplit(self.endpoint)
        assert parts.hostname and parts.port
        return parts.hostname, parts.port

    def client(self, service: str = "s3", **options: Any) -> Any:
        """A boto3 client that tries everything once; ``options`` go to botocore's ``Config``."""
        import boto3
        from botocore.config import Config

        given = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}}
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            verify=None if self.authority is None else str(self.authority),
            config=Config(**(given | options)),
        )

    def make_bucket(self) -> str:
        """A fresh bucket: its name."""
        name = f"b-{uuid.uuid4().hex[:16]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def through(self, endpoint: str) -> S3:
        """The same server by another way, such as a proxy."""
        return replace(self, endpoint=endpoint)

    def close(self) -> None:
        """Stop the server."""
        if self.process is not None:
            self.process.close()
