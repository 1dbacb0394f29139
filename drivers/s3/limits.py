"""How long requests to S3 may take, and how large they may be."""

from __future__ import annotations

from dataclasses import dataclass

from tensorstash.errors import Invalid

_SECONDS = {"timeout": 0.1, "lease": 1.0}
_BYTES = {"multipart_bytes": 5 << 20, "part_bytes": 5 << 20}  # S3 takes no smaller parts


@dataclass(frozen=True)
class Limits:
    """Options of the driver; see ``connect``."""

    timeout: float = 30.0
    lease: float = 10.0
    multipart_bytes: int = 64 << 20
    part_bytes: int = 16 << 20

    def checked(self) -> Limits:
        """These limits, or :class:`~tensorstash.errors.Invalid` that names the wrong one."""
        for name, least in _SECONDS.items():
            check_seconds(name, getattr(self, name), least)
        for name, count in _BYTES.items():
            check_count(name, getattr(self, name), count)
        return self


def check_seconds(name: str, value: object, least: float) -> None:
    """Refuse what is no number of seconds from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise Invalid(f"option {name!r} of s3:// is a number of seconds from {least:g}")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no integer from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Invalid(f"option {name!r} of s3:// is an integer from {least}")
