"""The S3 driver's work in the event loop: requests repeated, counted, logged, and their failures
told in our words."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

from tensorstash.driver import Span, Traffic, check_size
from tensorstash.drivers.body import Surplus, too_large
from tensorstash.drivers.s3 import listing, pool, retry
from tensorstash.drivers.s3.client import Client, Failed, Found, Head, Page
from tensorstash.drivers.s3.errors import SCHEME, error_of, unknown
from tensorstash.drivers.s3.keys import HIDDEN
from tensorstash.drivers.s3.options import Limits, Settings
from tensorstash.drivers.s3.probe import Conditions, Deletes, probe, probe_deletes, probe_parts
from tensorstash.errors import Conflict, TimedOut, Unavailable, Unsupported

_T = TypeVar("_T")

_logger = logging.getLogger("tensorstash")
_found: dict[Any, Conditions] = {}
_deletes: dict[Any, Deletes] = {}
_parts: dict[Any, bool] = {}
_CANCELLED = object()
_PARTS_AT_ONCE = 8


class Requests:
    """What the driver asks for, below ``root``, in one process. Its coroutines run in the event
    loop; keys are the driver's."""

    def __init__(
        self,
        kind: str,
        settings: Settings,
        root: str,
        url: str,
        limits: Limits,
        denied_is_absent: bool = False,
    ) -> None:
        self._denied_is_absent = denied_is_absent
        self.traffic = Traffic()
        self.settings = settings
        self.limits = limits
        self._kind = kind
        self._environment = settings.environment()
        self._root = root
        self._url = url
        self._pool = pool.current()
        self._shared: pool.Shared | None = None

    # -- reading ------------------------------------------------------------------

    async def get(
        self, key: str, span: Span | None, unless: str | None, most: int | None = None
    ) -> Found | None:
        """See :meth:`Client.get`."""
        place = self._root + key
        span = None if span is None else _sane(span)

        async def attempt(n: int) -> Found | None:
            found = await self._send(
                n,
                "GET",
                key,
                lambda client: self._seen(client.get(place, span, unless, most)),
                span,
            )
            if found is not None:
                self.traffic.bytes_read += len(found.data)
                self.traffic.requests += found.requests - 1
            return found

        return await self._repeat("read", key, attempt, most=most)

    async def tag(self, key: str) -> str | None:
        """The stored version's ETag."""
        head = await self.head(key)
        return None if head is None else head.etag

    async def head(self, key: str) -> Head | None:
        """See :meth:`Client.head`."""
        place = self._root + key

        async def attempt(n: int) -> Head | None:
            head = await self._send(n, "HEAD", key, lambda client: self._seen(client.head(place)))
            if head is not None:
                self.traffic.requests += head.requests - 1
            return head

        return await self._repeat("read", key, attempt)

    async def page(self, prefix: str, folders: bool, after: str | None) -> Page:
        """See :meth:`Client.page`; names are below the driver's root."""
        place, skip = self._root + prefix, len(self._root)

        async def attempt(n: int) -> Page:
            return await self._send(
                n, "LIST", prefix, lambda client: client.page(place, folders, after)
            )

        page = await self._repeat("list", prefix, attempt)
        names = [*(key for key, _ in page.keys), *page.folders]
        if strange := next((name for name in names if not name.startswith(place)), None):
            raise listing.wrong(prefix, self._url, listing.elsewhere(strange))
        return Page(
            [(key[skip:], size) for key, size in page.keys],
            [folder[skip:] for folder in page.folders],
            page.after,
            page.etags,
        )

    # -- writing ------------------------------------------------------------------

    async def put(self, key: str, value: bytes) -> str:
        """Store whatever was there before; in parts where it is large."""
        if len(value) >= self.limits.multipart_bytes:
            return await self._put_parts(key, value)
        place = self._root + key

        async def attempt(n: int) -> str:
            return await self._send(
                n, "PUT", key, lambda client: client.put(place, value), nbytes=len(value)
            )

        return await self._repeat("write", key, attempt, len(value))

    async def put_if(self, key: str, value: bytes, etag: str | None) -> str:
        """Store where the object is absent (``etag`` of ``None``) or still ``etag``.

        An answer that is lost leaves open whether the value was stored, so it carries a mark of
        its own, by which the next attempt recognises it.
        """
        await self._conditions()
        place, mark = self._root + key, secrets.token_hex(8)
        doubtful = repeated = looked = False

        async def look(client: Client) -> Any:
            return await self._seen(client.head(place))

        async def put(client: Client) -> str:
            return await client.put(place, value, if_absent=etag is None, if_etag=etag, mark=mark)

        async def attempt(n: int) -> str:
            nonlocal doubtful, repeated, looked
            while True:  # calling itself it would keep the value until the collector comes
                if doubtful:
                    head = await self._send(n, "HEAD", key, look)
                    if head is not None and head.mark == mark:
                        return str(head.etag)
                    if (None if head is None else head.etag) != etag:
                        raise unknown(key, self._url)
                    doubtful, looked = False, True
                try:
                    return await self._send(n, "PUT", key, put, nbytes=len(value), conditional=True)
                except asyncio.CancelledError:
                    repeated = True
                    raise
                except Failed as failed:
                    if failed.kind == "lost":
                        doubtful = repeated = True
                    elif failed.kind == "precondition" and repeated:
                        # Perhaps it was our own earlier attempt that changed the object.
                        if looked and self._denied_is_absent:  # which may be hidden from us
                            raise unknown(key, self._url) from failed
                        doubtful = True
                        continue
                    raise

        try:
            return await self._repeat("write", key, attempt, len(value))
        except (TimedOut, Unavailable) as error:
            if not repeated:
                raise
            raise type(error)(
                f"{error}; whether it was stored is unknown: read it again",
                key=key,
                driver=error.driver,
            ) from error.__cause__

    async def delete(self, keys: Sequence[str]) -> None:
        """Up to 1,000 keys."""
        places = [self._root + key for key in keys]
        shown = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"

        async def attempt(n: int) -> None:
            await self._send(n, "DELETE", shown, lambda client: client.delete(places))

        await self._repeat("delete", shown, attempt)

    async def deletes(self) -> Deletes:
        """Which deletes the server does on a condition: tried out once in a process, when first
        one is wanted."""
        await self._conditions()
        return await self._tried(_deletes, "try conditional deletes below", probe_deletes)

    async def delete_if(self, keys: Sequence[str], etags: Sequence[str]) -> list[bool]:
        """Up to 1,000 keys, or one, as the server allows; which are gone."""
        places = [self._root + key for key in keys]
        shown = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"

        async def attempt(n: int) -> list[bool]:
            return await self._send(
                n, "DELETE", shown, lambda client: client.delete_if(places, etags), conditional=True
            )

        return await self._repeat("delete", shown, attempt)

    async def put_anew(self, key: str, value: bytes, etag: str) -> str:
        """Store again what is stored as ``etag``, so that its ETag changes: an object of parts has
        another one than the same bytes in one piece. It stays where the server puts parts
        together whatever the condition."""
        await self._conditions()
        if "-" in etag or not await self._tried(_parts, "try parts below", probe_parts):
            return await self.put_if(key, value, etag)
        return await self._put_parts(key, value, etag)

    async def close(self) -> None:
        """Let go of the connections once nothing is under way on them."""
        if self._shared is not None:
            await self._shared.retire()

    # -- within -------------------------------------------------------------------

    def shared(self) -> pool.Shared:
        """The client of now: after a close, another one."""
        shared = self._shared
        if shared is None or shared.closed:
            shared = self._shared = self._pool.get(self._kind, self.settings, self._environment)
        return shared

    async def _seen(self, work: Awaitable[_T | None]) -> _T | None:
        """What a read found; nothing where it is denied and the user wants that read as absent."""
        try:
            return await work
        except Failed as failed:
            if failed.hidden and self._denied_is_absent:
                return None
            raise

    async def _conditions(self) -> None:
        """See to it that the server keeps conditions: tried out once in a process."""
        shared = self.shared()
        place = (self.settings.endpoint, self._environment, self.settings.bucket)
        found = _found.get(place)
        if found is None:
            async with shared.probing:
                found = _found.get(place)
                if found is None:
                    found = _found[place] = await self._probe(shared)
        shared.client.quoted = found.quoted
        if found.missing:
            raise Unsupported(
                f"the server of {self._url} {found.missing}, so that concurrent writers would lose "
                'data; use another server, or options={"unsafe": True} where one process writes'
            )

    async def _probe(self, shared: pool.Shared) -> Conditions:
        key = f"{HIDDEN}/probe-"
        client = shared.client

        async def attempt(n: int) -> Conditions:
            async def send(verb: str, work: Awaitable[Any], /) -> Any:
                return await self._send(n, verb, key, lambda _: work, conditional=True)

            if not shared.sent:  # only then is it known whose servers these are
                await send("HEAD", self._seen(client.head(self._root + key)))
            return Conditions() if client.amazon else await probe(send, client, self._root + key)

        return await self._repeat("try conditional puts below", HIDDEN, attempt)

    async def _tried(
        self,
        found: dict[Any, _T],
        verb: str,
        run: Callable[[Any, Client, str], Awaitable[_T]],
    ) -> _T:
        """What a probe, made by ``run``, says of this server; made once in a process."""
        shared = self.shared()
        place = (self.settings.endpoint, self._environment, self.settings.bucket)
        async with shared.probing:
            if place not in found:
                key = f"{HIDDEN}/probe-"

                async def attempt(n: int) -> _T:
                    async def send(verb: str, work: Awaitable[Any], /) -> Any:
                        return await self._send(n, verb, key, lambda _: work, conditional=True)

                    return await run(send, shared.client, self._root + key)

                found[place] = await self._repeat(verb, HIDDEN, attempt)
        return found[place]

    async def _repeat(
        self,
        verb: str,
        key: str,
        attempt: Callable[[int], Awaitable[_T]],
        nbytes: int = 0,
        most: int | None = None,
    ) -> _T:
        try:
            return await retry.repeat(attempt, self.limits.timeout + nbytes / retry.SLOWEST)
        except Failed as failed:
            if isinstance(failed.__cause__, Surplus):
                check_size(key, failed.__cause__.nbytes, most)
                raise too_large(key, failed.__cause__, SCHEME) from failed
            if failed.kind == "precondition":
                raise Conflict(
                    f"{key!r} in {self._url} was written by someone else first; read it again",
                    key=key,
                ) from failed
            raise error_of(failed, verb, key, self._url) from failed

    async def _send(
        self,
        n: int,
        verb: str,
        key: str,
        work: Callable[[Client], Awaitable[_T]],
        span: Span | None = None,
        nbytes: int = 0,
        conditional: bool = False,
    ) -> _T:
        """One request (of ``nbytes`` going up), counted and logged. One that is not
        ``conditional`` may be told that another was faster even so (409: Ceph, of reads too);
        then it tries again."""
        shared, traffic = self.shared(), self.traffic
        traffic.requests += 1
        if n > 1:
            traffic.retries += 1
        shared.under_way += 1
        shared.sent += 1
        verbose = _logger.isEnabledFor(logging.DEBUG)
        began = perf_counter() if verbose else 0.0
        outcome: object = _CANCELLED
        try:
            outcome = answer = await work(shared.client)
            traffic.bytes_written += nbytes
            return answer
        except Failed as failed:
            outcome = failed
            if failed.kind == "precondition" and not conditional:
                raise Failed("busy", str(failed)) from failed
            raise
        finally:
            shared.under_way -= 1
            if verbose:
                _log(verb, key, span, outcome, nbytes, began, n)

    async def _put_parts(self, key: str, value: bytes, etag: str | None = None) -> str:
        """Store in parts, which are dropped where that fails; in place of ``etag``, if given."""
        place, mark = self._root + key, secrets.token_hex(8)

        async def begin(n: int) -> str:
            return await self._send(n, "BEGIN", key, lambda client: client.begin_parts(place, mark))

        upload = await self._repeat("write", key, begin)
        gate = asyncio.Semaphore(_PARTS_AT_ONCE)
        # No more than 10,000 parts are allowed.
        size = max(self.limits.part_bytes, -(-len(value) // 10_000))

        async def part(number: int) -> str:
            async with gate:
                data = value[(number - 1) * size : number * size]

                async def attempt(n: int) -> str:
                    return await self._send(
                        n,
                        "PART",
                        key,
                        lambda client: client.put_part(place, upload, number, data),
                        nbytes=len(data),
                    )

                return await self._repeat("write", key, attempt, len(data))

        async def end(n: int) -> str:
            try:
                return await self._send(
                    n,
                    "END",
                    key,
                    lambda client: client.end_parts(place, upload, etags, if_etag=etag),
                    conditional=etag is not None,
                )
            except Failed:
                if n == 1:
                    raise
                # An earlier attempt may have ended it: then the upload is no more.
                head = await self._send(n, "HEAD", key, lambda client: client.head(place))
                if head is None or head.mark != mark:
                    raise
                return head.etag

        parts = [asyncio.ensure_future(part(k + 1)) for k in range(-(-len(value) // size))]
        try:
            etags = await asyncio.gather(*parts)
            return await self._repeat("write", key, end, len(value))
        except BaseException:
            for task in parts:
                task.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await asyncio.shield(self._abort(key, upload))
            raise

    async def _abort(self, key: str, upload: str) -> None:
        place = self._root + key

        async def attempt(n: int) -> None:
            await self._send(n, "ABORT", key, lambda client: client.abort_parts(place, upload))

        try:
            await retry.repeat(attempt, self.limits.timeout)
        except Failed as failed:
            _logger.warning(
                "the parts of an upload of %r in %s could not be dropped (%s); the bucket's "
                "lifecycle rule for incomplete uploads will",
                key,
                self._url,
                failed,
            )


def _sane(span: Span) -> Span:
    """The same bytes, told in numbers that servers take; none of them as ``Span(0, 0)``."""
    start, stop = span.bounded
    return Span(0, 0) if stop is not None and stop <= max(start, 0) else Span(start, stop)


def _log(
    verb: str, key: str, span: Span | None, outcome: object, nbytes: int, began: float, n: int
) -> None:
    word = "ok"
    if isinstance(outcome, Failed):
        word = f"{outcome.kind} ({outcome})"
    elif isinstance(outcome, Found):
        nbytes = len(outcome.data)
    elif outcome is _CANCELLED:
        word = "cancelled"
    elif outcome is None and verb in ("GET", "HEAD"):
        word = "absent"
    where = "" if span is None else f"[{span.start}:{'' if span.stop is None else span.stop}]"
    ms = (perf_counter() - began) * 1000
    _logger.debug(
        "s3 %s %s%s %s %d bytes %.1f ms attempt %d", verb, key, where, word, nbytes, ms, n
    )
