"""What gap between wanted parts of a shard is worth reading over, rather than a request more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .cloud_bucket import Bucket
from .cloud_peers import Tensorstash

GAPS = (0, 64 << 10, 256 << 10, 1 << 20)


class WithGap(Tensorstash):
    """This package with another ``gap_bytes``."""

    def __init__(self, gap: int) -> None:
        super().__init__("obstore")
        self.gap = gap
        self.name = f"{gap >> 10} KiB"

    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        array = super().open(bucket, path, cache, folder)
        # Of this handle's driver alone.
        array.driver.capabilities = replace(array.driver.capabilities, gap_bytes=self.gap)
        return array
