"""Codec ``gzip``."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tensorstash.codec import ANY, Buffer, BytesCodec, Codec, lenient, short, take
from tensorstash.codecs.streams import GZIP, inflate, pour
from tensorstash.errors import Invalid


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes, whatever its level: reading needs none."""
    return lenient(Gzip, take(name, configuration, level=ANY))


@dataclass(frozen=True, eq=False, repr=False)
class Gzip(BytesCodec):
    """Compresses with gzip (Zarr v3 codec ``gzip``; RFC 1952).

    ``level`` is 0 (store) to 9 (smallest). The header carries no time, so equal input gives
    equal output; files of several members are read.
    """

    name: ClassVar[str] = "gzip"
    step: ClassVar[str | None] = "gzip"
    level: int = 5

    def __post_init__(self) -> None:
        if type(self.level) is not int or not 0 <= self.level <= 9:
            raise Invalid(f"codec 'gzip' level is an integer from 0 to 9, not {short(self.level)}")

    def configuration(self) -> dict[str, Any]:
        """``{"level": ...}``."""
        return {"level": self.level}

    def encode(self, data: Buffer) -> Buffer:
        """One gzip member."""
        return zlib.compress(data, self.level, GZIP)

    def step_options(self, nbytes: int) -> tuple[int, ...] | None:
        """The level; what level 0 makes depends on zlib's buffers."""
        return (self.level,) if self.level else None

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """The content of every member; its size in the trailer is checked, never trusted."""
        return pour(inflate(data, GZIP), limit, out)
