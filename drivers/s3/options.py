"""What a user says to the S3 driver: which bucket and who asks (:class:`Settings`, what a client
library is made from); how long requests take and how large they are, at most (:class:`Limits`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from tensorstash.driver import check_key
from tensorstash.errors import Invalid

Connection = Callable[[], Mapping[str, Any]]

SECRETS = ("key", "secret", "token")
CONNECTION = (*SECRETS, "profile", "region", "endpoint", "anon", "path_style", "ca", "verify")
_SECONDS = {"timeout": 0.1, "lease": 1.0}
_BYTES = {"multipart_bytes": 5 << 20, "part_bytes": 5 << 20}  # S3 takes no smaller parts


@dataclass(frozen=True)
class Settings:
    """One bucket as one identity sees it. What is ``None`` comes from the usual chain:
    ``AWS_*`` variables, then ``~/.aws``, then the machine's role."""

    bucket: str
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    region: str | None = None
    endpoint: str | None = None
    anon: bool = False
    path_style: bool | None = None
    """``None``: in the path where an endpoint is given, else as the library chooses."""
    ca: str | None = None
    """A file of certificates to trust instead of the system's."""
    verify: bool = True
    concurrency: int = 64
    idle: float = 10.0
    """Seconds that a connection may take to open, or be silent while an answer is due."""

    def checked(self) -> Settings:
        """These settings, or :class:`~tensorstash.errors.Invalid` that names the wrong one."""
        for name in (*SECRETS, "profile", "region", "endpoint", "ca"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise Invalid(f"option {name!r} of s3:// must be a non-empty text")
        for name in ("anon", "verify"):
            if not isinstance(getattr(self, name), bool):
                raise Invalid(f"option {name!r} of s3:// must be True or False")
        if self.path_style is not None and not isinstance(self.path_style, bool):
            raise Invalid("option 'path_style' of s3:// must be True, False or None")
        _check_count("concurrency", self.concurrency, 1)
        _check_seconds("idle", self.idle, 0.1)
        if (self.key is None) != (self.secret is None):
            raise Invalid("options 'key' and 'secret' of s3:// belong together; give both")
        if self.token is not None and self.key is None:
            raise Invalid("option 'token' of s3:// needs 'key' and 'secret' beside it")
        if self.anon and self.key is not None:
            raise Invalid("s3:// takes anon=True or 'key' and 'secret', not both")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        return self

    def with_connection(self, connection: Connection | None) -> Settings:
        """These settings and, over them, what the user's ``connection`` returns."""
        if connection is None:
            return self
        given = connection()
        if not isinstance(given, Mapping):
            raise Invalid(
                f"'connection' of s3:// must return a dict of options, not {type(given).__name__}"
            )
        given = dict(given)
        if "endpoint_url" in given:
            given["endpoint"] = given.pop("endpoint_url")
        wrong = [name for name in given if name not in CONNECTION]
        if wrong:
            raise Invalid(
                f"'connection' of s3:// returned the option {str(wrong[0])[:40]!r}; it may return "
                f"{', '.join(CONNECTION)}"
            )
        return replace(self, **given).checked()

    def without_secrets(self) -> dict[str, Any]:
        """The options that differ from their defaults and may be shown to anyone."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in (*SECRETS, "bucket") and getattr(self, f.name) != f.default
        }

    def environment(self) -> tuple[tuple[str, str], ...]:
        """What the usual chain reads from the environment: it belongs to a client's identity."""
        return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


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
            _check_seconds(name, getattr(self, name), least)
        for name, count in _BYTES.items():
            _check_count(name, getattr(self, name), count)
        return self


def split(rest: str) -> tuple[str, str]:
    """``(bucket, prefix)`` of ``bucket/path``; the prefix is empty or ends in ``/``."""
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        raise Invalid("an s3:// URL holds no credentials; give options 'key' and 'secret'")
    if not bucket or any(c in bucket for c in "\\:?#* \0"):
        raise Invalid(f"s3://{rest} names no bucket; give s3://bucket/path")
    path = path.strip("/")
    return bucket, check_key(path) + "/" if path else ""


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        secret = parts.username is not None or parts.password is not None
    except ValueError:
        good, secret = False, False
    if secret:
        raise Invalid("option 'endpoint' of s3:// holds credentials; give 'key' and 'secret'")
    if not good:
        raise Invalid(f"option 'endpoint' of s3:// is {endpoint!r}, not like http://host:9000")


def _check_seconds(name: str, value: object, least: float) -> None:
    """Refuse what is no number of seconds from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise Invalid(f"option {name!r} of s3:// is a number of seconds from {least:g}")


def _check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no integer from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Invalid(f"option {name!r} of s3:// is an integer from {least}")
