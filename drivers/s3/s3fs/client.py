"""S3 requests through s3fs: its session, credentials and signing, without its retries.

Bodies are protected on their way up by the SHA-256 in the signature, which a server checks
before it stores, and on their way down by TLS where there is some and by the crc32c of the
arrays. The checksum headers that newer botocore adds are left out: they protect nothing
beyond that, and older servers refuse them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from tensorstash.driver import Buffer, Span
from tensorstash.drivers import body
from tensorstash.drivers.s3 import retry
from tensorstash.drivers.s3.client import Client, Failed, Found, Head, Kind, Page
from tensorstash.drivers.s3.errors import is_hidden, kind_of
from tensorstash.drivers.s3.options import Settings
from tensorstash.drivers.s3.s3fs.session import Elsewhere, file_system
from tensorstash.errors import counted

_MARK = "tensorstash-mark"
_NOTHING: Mapping[str, Any] = {}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")

_TIMED_OUT = (TimeoutError, boto.ConnectTimeoutError, boto.ReadTimeoutError)
_LOST = (
    aiohttp.ClientError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
    OSError,
)
_NO_KEYS = (
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.TokenRetrievalError,
)


def make(settings: Settings) -> Client:
    """A client of one bucket."""
    return S3fsClient(settings)


class S3fsClient(Client):
    """One ``S3FileSystem`` of the event loop it is first used in."""

    can_unquote = True

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.bucket
        self._secrets = [s for s in (settings.secret, settings.token, settings.key) if s]
        self._fs = file_system(settings)
        self._connected = False
        self._host = "the server"

    # -- reading ------------------------------------------------------------------

    async def get(
        self,
        key: str,
        span: Span | None = None,
        unless: str | None = None,
        most: int | None = None,
    ) -> Found | None:
        """See :meth:`Client.get`."""
        if span is not None and span.stop is not None and span.stop <= max(span.start, 0):
            head = await self.head(key)  # HTTP has no empty range
            return None if head is None else Found(b"", head.etag, head.size, head.requests)
        more = {} if unless is None else {"IfNoneMatch": f'"{unless}"'}
        header = None if span is None else _range(span)
        if header is not None:
            more["Range"] = header
        requests = 1
        while True:
            try:
                answer = await self._call("get_object", Key=key, **more)
                return await self._read(answer, span, most, requests)
            except _Absent:
                return None
            except _NotModified:
                return Found(b"", unless or "", 0, requests)
            except _Beyond:
                head = await self._head(key)
                requests += 2
                if head is not None and span is not None:
                    start, stop = span.resolve(head.size)
                    if start == stop:
                        return Found(b"", head.etag, head.size, requests - 1)
                # It was replaced in between: ask again.

    async def head(self, key: str) -> Head | None:
        """From the first byte: the answer to a HEAD does not tell a missing bucket from a missing
        object."""
        try:
            answer = await self._call("get_object", Key=key, Range="bytes=0-0")
            found = await self._read(answer, Span(0, 1), None, 1)
        except _Absent:
            return None
        except _Beyond:  # so it exists, and holds nothing
            head = await self._head(key)
            return None if head is None else head._replace(requests=2)
        return Head(found.etag, found.size, _mark(answer), modified=_modified(answer))

    async def _head(self, key: str) -> Head | None:
        try:
            answer = await self._call("head_object", Key=key)
        except _Absent:
            return None
        etag, size = _etag(answer), int(_told(answer, "ContentLength", "lost"))
        return Head(etag, size, _mark(answer), modified=_modified(answer))

    async def page(self, prefix: str, folders: bool, after: str | None = None) -> Page:
        """See :meth:`Client.page`."""
        more = {} if after is None else {"ContinuationToken": after}
        if folders:
            more["Delimiter"] = "/"
        answer = await self._call("list_objects_v2", Prefix=prefix, **more)
        keys = [(_told(one, "Key"), int(one.get("Size", 0))) for one in answer.get("Contents", ())]
        below = [_told(one, "Prefix") for one in answer.get("CommonPrefixes", ())]
        etags = [_bare(one.get("ETag", "")) for one in answer.get("Contents", ())]
        following = answer.get("NextContinuationToken")
        if answer.get("IsTruncated") and not following:
            raise Failed("other", "the listing is cut short and does not say where it goes on")
        return Page(keys, below, following or None, etags)

    # -- writing ------------------------------------------------------------------

    async def put(
        self,
        key: str,
        value: Buffer,
        *,
        if_absent: bool = False,
        if_etag: str | None = None,
        mark: str | None = None,
    ) -> str:
        """See :meth:`Client.put`."""
        more = {} if mark is None else {"Metadata": {_MARK: mark}}
        conditions = self._conditions(if_absent, if_etag)
        return await self._store("put_object", conditions, Key=key, Body=_body(value), **more)

    async def delete(self, keys: Sequence[str]) -> None:
        """See :meth:`Client.delete`."""
        if len(keys) == 1:
            await self._delete_one(keys[0])
            return
        objects = [{"Key": key} for key in keys]
        try:
            answer = await self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
        except Failed as failed:
            if failed.kind != "refused":
                raise
            # Swift wants a Content-MD5 here, and no XML can carry some characters of a key.
            for key in keys:
                await self._delete_one(key)
            return
        for error in answer.get("Errors", ()):
            if error.get("Code") != "NoSuchKey":
                raise self._failure(error.get("Code", ""), error.get("Message", ""), 0)

    async def _delete_one(self, key: str) -> None:
        with suppress(_Absent):
            await self._call("delete_object", Key=key)

    async def delete_if(self, keys: Sequence[str], etags: Sequence[str]) -> list[bool]:
        """See :meth:`Client.delete_if`."""
        if len(keys) == 1:
            try:
                await self._call("delete_object", Key=keys[0], **self._conditions(False, etags[0]))
            except _Absent:
                return [True]
            except Failed as failed:
                if failed.kind != "precondition":
                    raise
                return [False]
            return [True]
        objects = [
            {"Key": key, "ETag": self._conditions(False, etag)["IfMatch"]}
            for key, etag in zip(keys, etags, strict=True)
        ]
        answer = await self._call("delete_objects", Delete={"Objects": objects, "Quiet": True})
        kept: set[str] = set()
        for error in answer.get("Errors", ()):
            code = error.get("Code", "")
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                kept.add(error.get("Key", ""))
            elif code != "NoSuchKey":
                raise self._failure(code, error.get("Message", ""), 0)
        return [key not in kept for key in keys]

    async def begin_parts(self, key: str, mark: str | None = None) -> str:
        """See :meth:`Client.begin_parts`."""
        more = {} if mark is None else {"Metadata": {_MARK: mark}}
        answer = await self._call("create_multipart_upload", Key=key, **more)
        return cast(str, _told(answer, "UploadId", "lost"))

    async def put_part(self, key: str, upload: str, number: int, value: Buffer) -> str:
        """See :meth:`Client.put_part`."""
        answer = await self._call(
            "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=_body(value)
        )
        return _etag(answer)

    async def end_parts(
        self,
        key: str,
        upload: str,
        etags: Sequence[str],
        *,
        if_absent: bool = False,
        if_etag: str | None = None,
    ) -> str:
        """See :meth:`Client.end_parts`."""
        parts = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in enumerate(etags, 1)]
        return await self._store(
            "complete_multipart_upload",
            self._conditions(if_absent, if_etag),
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )

    async def abort_parts(self, key: str, upload: str) -> None:
        """See :meth:`Client.abort_parts`."""
        with suppress(_Absent):
            await self._call("abort_multipart_upload", Key=key, UploadId=upload)

    async def close(self) -> None:
        """See :meth:`Client.close`."""
        creator, self._fs._s3 = getattr(self._fs, "_s3creator", None), None
        self._fs._s3creator = None
        self._connected = False
        if creator is not None:
            await creator.__aexit__(None, None, None)

    # -- within -------------------------------------------------------------------

    async def _connect(self) -> None:
        client = await self._fs.set_session()
        parts = urlsplit(client.meta.endpoint_url)
        host = parts.hostname or ""
        self._host = host if parts.port is None else f"{host}:{parts.port}"
        self.amazon = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        self._connected = True

    async def _store(self, method: str, conditions: dict[str, Any], **arguments: Any) -> str:
        """The ETag of what a request stored."""
        try:
            return _etag(await self._call(method, **arguments, **conditions))
        except _Absent:  # what a server may say to If-Match where nothing is stored
            raise Failed("precondition" if conditions else "other", "404 NoSuchKey") from None

    async def _call(self, method: str, **arguments: Any) -> Any:
        """The answer; :class:`Failed`, or one of the three outcomes that are no failure: each only
        of a request that can have it, whatever the server says."""
        try:
            if not self._connected:
                await self._connect()
            return await self._fs._call_s3(method, Bucket=self._bucket, **arguments)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            outcome = self._outcome(error, method, arguments)
            # In words about a signature a server may repeat what was signed, a token with it.
            secret = isinstance(outcome, Failed) and outcome.kind in ("denied", "redirected")
            raise outcome from (None if secret else error)

    async def _read(self, answer: Any, span: Span | None, most: int | None, requests: int) -> Found:
        """What was asked for, of an answer's body."""
        stream, announced = answer["Body"], answer.get("ContentLength")
        try:
            async with stream:
                etag = _etag(answer)
                part = _part(answer.get("ContentRange"), announced, span)
                length = body.limit(part.nbytes, most)
                await body.skip(stream.read, part.skip)
                data = await body.read(stream.read, length, retry.came, part.cut)
        except (asyncio.CancelledError, Failed):
            raise
        except body.Surplus as error:
            raise Failed("other", str(error)) from error
        except Exception as error:
            raise self._outcome(error) from error
        if part.nbytes is not None and len(data) != part.nbytes:
            raise Failed("lost", f"{counted(len(data), 'byte')} came of {part.nbytes}")
        size = len(data) if part.size is None else part.size
        return Found(data, etag, size, requests)

    def _conditions(self, if_absent: bool, if_etag: str | None) -> dict[str, Any]:
        if if_absent:
            return {"IfNoneMatch": "*"}
        if if_etag is not None:
            return {"IfMatch": f'"{if_etag}"' if self.quoted else if_etag}
        return {}

    def _outcome(
        self, error: Exception, method: str = "", arguments: Mapping[str, Any] = _NOTHING
    ) -> Exception:
        for each in (error, error.__cause__, getattr(error, "kwargs", {}).get("error")):
            if isinstance(each, body.Surplus):
                return Failed("other", "its answer does not end")
            if isinstance(each, Elsewhere):
                return self._redirected(each.location)
        cause = error if hasattr(error, "response") else error.__cause__
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):
            found = answer.get("Error", {})
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code, message = str(found.get("Code", "")), str(found.get("Message", ""))
            if status in (301, 302, 303, 307, 308):
                headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
                return self._redirected(headers.get("location") or found.get("Endpoint") or "")
            if code in _NOT_FOUND.get(method, ()):
                return _Absent()
            if (
                "IfNoneMatch" in arguments
                and method == "get_object"
                and "304" in (code, str(status))
            ):
                return _NotModified()
            if "Range" in arguments and (status == 416 or code == "InvalidRange"):
                return _Beyond()
            return self._failure(code, message, status)
        if isinstance(error, _NO_KEYS):
            return Failed(
                "denied", "no usable credentials in the options, the environment or ~/.aws"
            )
        if isinstance(error, boto.SSLError):
            return Failed("other", f"TLS: {self._clean(str(error))}")
        if isinstance(error, _LOST):
            return Failed(
                "lost",
                self._clean(str(error)) or type(error).__name__,
                timed_out=isinstance(error, _TIMED_OUT),
            )
        return Failed("other", f"{type(error).__name__}: {self._clean(str(error))}")

    def _redirected(self, location: str) -> Failed:
        """``location``: an address, or the name of a host."""
        try:
            parts = urlsplit(location if "//" in location else f"//{location}")
            port = "" if parts.port is None else f":{parts.port}"
            target = f"{parts.hostname or ''}{port}"
        except ValueError:
            target = "an address that is none"
        if not target:
            target = "no address" if not location else self._host
        return Failed("redirected", f"{self._host} redirects to {target[:100]}")

    def _failure(self, code: str, message: str, status: int) -> Failed:
        shown = " ".join(dict.fromkeys(str(s) for s in (status, code) if s))
        kind = kind_of(code, status)
        if kind in ("refused", "other") and message and message != code:
            shown += f": {self._clean(message)}"
        return Failed(kind, shown, hidden=is_hidden(code, status))

    def _clean(self, text: str) -> str:
        """One line without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:200]


_NOT_FOUND = {
    "get_object": ("NoSuchKey",),
    "put_object": ("NoSuchKey",),
    "complete_multipart_upload": ("NoSuchKey",),
    "delete_object": ("NoSuchKey",),
    "head_object": ("NoSuchKey", "404", "NotFound"),  # its answer has no body to name a code
    "abort_multipart_upload": ("NoSuchKey", "NoSuchUpload"),
}
"""Codes that say for certain that nothing is there, of the requests that can find so: a 404 alone
may be a proxy's."""


class _Absent(Exception):
    """A definite not-found."""


class _NotModified(Exception):
    """The stored version is the one the asker holds."""


class _Beyond(Exception):
    """The object ends before the range begins."""


def _body(value: Buffer) -> bytes:
    return value if type(value) is bytes else bytes(value)


def _mark(answer: Any) -> str | None:
    return cast("str | None", answer.get("Metadata", {}).get(_MARK))


def _modified(answer: Any) -> float | None:
    found = answer.get("LastModified")
    return None if found is None else float(found.timestamp())


def _told(answer: Any, name: str, kind: Kind = "other") -> Any:
    """What an answer has to say; :class:`Failed` where it does not."""
    if name not in answer:
        raise Failed(kind, f"the answer has no {name}")
    return answer[name]


def _etag(answer: Any) -> str:
    return _bare(_told(answer, "ETag", "lost"))


def _bare(etag: str) -> str:
    return etag.strip('"')


def _range(span: Span) -> str | None:
    start, stop = span
    if start < 0:
        return f"bytes={start}"
    if stop is None:
        return f"bytes={start}-" if start else None
    return f"bytes={start}-{stop - 1}"


class _Part(NamedTuple):
    """Which bytes of a body are wanted: those after ``skip``, ``nbytes`` of them (``None``: until
    it ends), with others behind them where it is ``cut``; and the object's size, if known."""

    skip: int = 0
    nbytes: int | None = None
    cut: bool = False
    size: int | None = None


def _part(given: str | None, announced: int | None, span: Span | None) -> _Part:
    """From the headers ``Content-Range`` and ``Content-Length`` of an answer, and what was asked
    for: a server may ignore ranges."""
    if span is None:
        if given is not None:
            raise Failed("other", f"the server answered {given[:60]!r} where all was asked for")
        return _Part(nbytes=announced, size=announced)
    if given is None:
        if announced is None:
            raise Failed("other", "the server ignores ranges, and does not say how much it sends")
        start, stop = span.resolve(announced)
        return _Part(start, stop - start, stop < announced, announced)
    match = _CONTENT_RANGE.fullmatch(given)
    if match is not None:
        first, last, size = map(int, match.groups())
        start, stop = span.resolve(size)
        if first <= start <= stop <= last + 1:
            return _Part(start - first, stop - start, stop <= last, size)
    raise Failed("other", f"the server answered {given[:60]!r} to a request for {span}")
