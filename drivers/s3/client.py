"""What the S3 driver asks of a client library: one bucket, one request at a time, no retries.

Two libraries can carry it out (``s3fs/``, ``obstore/``). Whatever decides about
data - retries, time limits, conditions, lost replies, windows - is the driver's, so that both
behave alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tensorstash.driver import Buffer, Span

Kind = Literal[
    "denied",
    "precondition",
    "busy",
    "lost",
    "no space",
    "no bucket",
    "refused",
    "redirected",
    "other",
]


class Failed(Exception):
    """A request that did not succeed, in neutral words.

    ``kind``: ``denied`` (401, 403: keys, signature, policy, expired token), ``precondition`` (412,
    409: a condition did not hold), ``busy`` (429, 503 SlowDown: refused before anything was
    done, to be repeated), ``lost`` (connection refused, reset or cut, time-out, 500, 502, 504: it
    may or may not have been carried out), ``no space`` (quota), ``no bucket``, ``refused``
    (501, or 400 to a header it does not know), ``redirected`` (to another server, which was not
    asked), ``other`` (its cause is a :class:`~tensorstash.drivers.body.Surplus` where more bytes
    came than there can be). The message names no secret;
    ``timed_out`` says that ``lost`` means an answer that did not come in time; ``hidden`` that
    ``denied`` may be about an absent object, and is not about who asks.
    """

    def __init__(
        self, kind: Kind, message: str, *, timed_out: bool = False, hidden: bool = False
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.timed_out = timed_out
        self.hidden = hidden


class Found(NamedTuple):
    """An object, or a part of it: its bytes, ETag (without quotes) and whole size, and how many
    requests it took to get it."""

    data: Buffer
    etag: str
    size: int
    requests: int = 1


class Head(NamedTuple):
    """An object's ETag, size and the mark (idempotency token) it was put with, how many requests
    that took, and when it was stored (seconds since 1970)."""

    etag: str
    size: int
    mark: str | None
    requests: int = 1
    modified: float | None = None


class Page(NamedTuple):
    """One page of a listing: ``(key, size)`` pairs, folders (with their ``/``), where the next
    page begins (``None``: this is the last), and the keys' ETags."""

    keys: Sequence[tuple[str, int]]
    folders: Sequence[str]
    after: str | None
    etags: Sequence[str] = ()


class Client(ABC):
    """Used from one event loop only. Every method sends one request (or a page of one) once, and
    raises nothing but :class:`Failed` and ``asyncio.CancelledError``. Keys are whole keys in
    the bucket. ETags are without quotes."""

    amazon: bool = False
    """Requests go to Amazon's own servers, which keep conditions; known once one was sent."""
    quoted: bool = True
    """ETags of ``put(if_etag=...)`` are sent in quotes; the driver clears this for a server that
    compares the bare header (Ceph before 19)."""
    can_unquote: bool = False
    """``quoted`` is heeded."""

    @abstractmethod
    async def get(
        self,
        key: str,
        span: Span | None = None,
        unless: str | None = None,
        most: int | None = None,
    ) -> Found | None:
        """The object or bytes ``span`` of it; ``None`` for a definite not-found. While its ETag is
        ``unless``: empty data with that ETag (``If-None-Match``). Of a whole object of more than
        ``most`` bytes, and of a part that is longer than asked for, no more is read."""

    @abstractmethod
    async def head(self, key: str) -> Head | None:
        """What the object is, without its bytes (an implementation may need a byte of it)."""

    @abstractmethod
    async def put(
        self,
        key: str,
        value: Buffer,
        *,
        if_absent: bool = False,
        if_etag: str | None = None,
        mark: str | None = None,
    ) -> str:
        """Store and return the ETag. ``mark``, an idempotency token, becomes user metadata
        ``tensorstash-mark``."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> None:
        """Delete up to 1,000 objects; absent ones are no error."""

    async def delete_if(self, keys: Sequence[str], etags: Sequence[str]) -> list[bool]:
        """Delete up to 1,000 objects that still have these ETags, one by the request for one and
        several by that for many; which are gone now (or were absent)."""
        raise Failed("refused", "this client deletes without conditions")

    @abstractmethod
    async def page(self, prefix: str, folders: bool, after: str | None = None) -> Page:
        """A page of the listing below ``prefix``; with ``folders``, what lies deeper is summed up
        in the folders directly below."""

    @abstractmethod
    async def begin_parts(self, key: str, mark: str | None = None) -> str:
        """Begin a multipart upload: its id."""

    @abstractmethod
    async def put_part(self, key: str, upload: str, number: int, value: Buffer) -> str:
        """Store part ``number`` (from 1) and return its ETag."""

    @abstractmethod
    async def end_parts(
        self,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        if_absent: bool = False,
        if_etag: str | None = None,
    ) -> str:
        """Make the parts one object, and return its ETag."""

    @abstractmethod
    async def abort_parts(self, key: str, upload: str) -> None:
        """Drop the parts of an upload that will not end."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""
