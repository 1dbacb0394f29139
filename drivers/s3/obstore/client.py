"""S3 requests through obstore: reads, puts and deletes at a fraction of what s3fs costs.

What obstore cannot do exactly goes through s3fs, so that the driver sees one client that is
whole:

* listings: obstore answers the key ``a/`` as ``a``, and fails where one is ``a//b``;
* deletes on a condition;
* multipart uploads, whose steps it does not offer one by one;
* keys that it cannot express (:func:`expressible`);
* answers to a range that it does not read: 416, or 200 with a part or the whole;
* everything where its runtime cannot run: in a child forked from a process that used it;
* everything where a session token could leave the server it is for (``store.py``), and
  what a server redirects.

What a server says about an error it reads whole: from one that sends such words without end it
takes memory for ``idle`` seconds. s3fs cuts them.

It compares no checksums of the server with the bodies that come: damage on the way is for TLS,
and for the checksums within the values, to notice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import NotModifiedError
from obstore.store import S3Store

from tensorstash.driver import Buffer, Span, flat
from tensorstash.drivers import body
from tensorstash.drivers.s3 import retry
from tensorstash.drivers.s3.client import Client, Failed, Found, Head, Page
from tensorstash.drivers.s3.obstore.errors import answer_of
from tensorstash.drivers.s3.obstore.futures import tracked
from tensorstash.drivers.s3.obstore.store import connect, runs, usable
from tensorstash.drivers.s3.options import Settings
from tensorstash.errors import counted

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, OffsetRange, SuffixRange

__all__ = ["ObstoreClient", "expressible", "make", "usable"]

_MARK = "tensorstash-mark"
_AT_ONCE = 8 << 20

_INEXPRESSIBLE = re.compile(
    "[\0-\x1f\x7f\ufffe\uffff\ud800-\udfff]"  # refused in a path, or in the XML of a delete
    r"|(?:^|/)\.{0,2}(?:/|$)"  # segments that it drops or refuses
)


def make(settings: Settings) -> Client:
    """A client of one bucket."""
    return ObstoreClient(settings)


def expressible(key: str) -> bool:
    """Whether obstore means exactly this key: it has no empty, ``.`` or ``..`` segment and no
    control character."""
    return _INEXPRESSIBLE.search(key) is None


class ObstoreClient(Client):
    """One bucket through obstore, and through s3fs what obstore cannot do."""

    can_unquote = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: S3Store | None = None
        self._connecting = asyncio.Lock()
        self._made: Client | None = None
        self._barred = False

    # -- reading ------------------------------------------------------------------

    async def get(
        self,
        key: str,
        span: Span | None = None,
        unless: str | None = None,
        most: int | None = None,
    ) -> Found | None:
        """See :meth:`Client.get`."""
        store = await self._serving(key)
        if store is None or (span is not None and _empty(span)):
            return await self._spare().get(key, span, unless, most)
        options: GetOptions = {}
        wanted = None if span is None else _range(span)
        if wanted is not None:
            options["range"] = wanted
        if unless is not None:
            options["if_none_match"] = f'"{unless}"'
        try:
            async with self._limit() as limit:
                result = await tracked(obstore.get_async(store, key, options=options))
                first, last = result.range
                known = most if span is None else _length(span)
                body.limit(last - first, known)
                data = await _received(result, last - first, known is not None, limit)
        except TimeoutError as error:
            raise _late() from error
        except body.Surplus as error:
            raise Failed("other", str(error)) from error
        except NotModifiedError:
            if unless is None:
                raise Failed("other", "304, which was not asked for") from None
            return Found(b"", unless, 0)
        except Exception as error:
            answer = answer_of(error)
            if answer.absent:
                return None
            if answer.redirected or (wanted is not None and answer.ranged):
                found = await self._spare().get(key, span, unless, most)
                return None if found is None else found._replace(requests=found.requests + 1)
            raise answer.failure() from answer.cause(error)
        etag, size = _etag(result.meta["e_tag"]), result.meta["size"]
        if len(data) != last - first:
            raise Failed("lost", f"{counted(len(data), 'byte')} came of {last - first}")
        if span is not None:
            start, stop = span.resolve(size)
            if not first <= start <= stop <= last:
                raise Failed("other", f"the server answered {first}-{last} to {start}-{stop}")
            data = data[start - first : stop - first]
        return Found(data, etag, size)

    async def head(self, key: str) -> Head | None:
        """See :meth:`Client.head`. From the first byte: the answer to a HEAD does not tell a
        missing bucket from a missing object."""
        store = await self._serving(key)
        if store is None:
            return await self._spare().head(key)
        try:
            async with self._limit() as limit:
                result = await tracked(obstore.get_async(store, key, options={"range": (0, 1)}))
                await _received(result, 1, True, limit)
        except TimeoutError as error:
            raise _late() from error
        except body.Surplus as error:
            raise Failed("other", str(error)) from error
        except Exception as error:
            answer = answer_of(error)
            if answer.absent:
                return None
            if answer.ranged or answer.redirected:
                head = await self._spare().head(key)
                return None if head is None else head._replace(requests=head.requests + 1)
            raise answer.failure() from answer.cause(error)
        meta = result.meta
        mark, at = result.attributes.get(_MARK), meta["last_modified"].timestamp()
        return Head(_etag(meta["e_tag"]), meta["size"], mark, modified=at)

    async def page(self, prefix: str, folders: bool, after: str | None = None) -> Page:
        """See :meth:`Client.page`."""
        return await self._spare().page(prefix, folders, after)

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
        store = await self._serving(key)
        if store is None:
            spare = self._spare()
            return await spare.put(key, value, if_absent=if_absent, if_etag=if_etag, mark=mark)
        data = flat(value)
        try:
            async with self._limit(len(data)):
                answered = await tracked(
                    obstore.put_async(
                        store,
                        key,
                        data,
                        attributes=None if mark is None else {_MARK: mark},
                        mode="create"
                        if if_absent
                        else "overwrite"
                        if if_etag is None
                        else {"e_tag": f'"{if_etag}"' if self.quoted else if_etag},
                        use_multipart=False,
                    )
                )
        except TimeoutError as error:
            raise _late() from error
        except Exception as error:
            answer = answer_of(error)
            if answer.redirected:  # so nothing was stored
                spare = self._spare()
                return await spare.put(key, value, if_absent=if_absent, if_etag=if_etag, mark=mark)
            conditional = if_absent or if_etag is not None
            raise answer.failure(conditional=conditional) from answer.cause(error)
        return _etag(answered["e_tag"])

    async def delete(self, keys: Sequence[str]) -> None:
        """See :meth:`Client.delete`."""
        served = [key for key in keys if expressible(key)]
        store = await self._serving(served[0]) if served else None
        if store is None:
            served = []
        if len(served) < len(keys):
            left = set(served)
            await self._spare().delete([key for key in keys if key not in left])
        if store is None:
            return
        try:
            async with self._limit():
                await tracked(obstore.delete_async(store, served))
        except TimeoutError as error:
            raise _late() from error
        except Exception as error:
            answer = answer_of(error)
            if answer.redirected:
                await self._spare().delete(served)
                return
            raise answer.failure() from answer.cause(error)

    async def delete_if(self, keys: Sequence[str], etags: Sequence[str]) -> list[bool]:
        """See :meth:`Client.delete_if`."""
        return await self._spare().delete_if(keys, etags)

    async def begin_parts(self, key: str, mark: str | None = None) -> str:
        """See :meth:`Client.begin_parts`."""
        return await self._spare().begin_parts(key, mark)

    async def put_part(self, key: str, upload: str, number: int, value: Buffer) -> str:
        """See :meth:`Client.put_part`."""
        return await self._spare().put_part(key, upload, number, value)

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
        spare = self._spare()
        return await spare.end_parts(key, upload, etags, if_absent=if_absent, if_etag=if_etag)

    async def abort_parts(self, key: str, upload: str) -> None:
        """See :meth:`Client.abort_parts`."""
        await self._spare().abort_parts(key, upload)

    async def close(self) -> None:
        """See :meth:`Client.close`."""
        self._store = None
        made, self._made = self._made, None
        if made is not None:
            await made.close()

    # -- within -------------------------------------------------------------------

    def _spare(self) -> Client:
        """The client for the rest, made when it is first needed."""
        if self._made is None:
            try:
                from tensorstash.drivers.s3.s3fs.client import make
            except ModuleNotFoundError as error:
                raise Failed(
                    "refused", f"obstore cannot do this; pip install {error.name}"
                ) from error
            self._made = make(self._settings)
        self._made.quoted = self.quoted
        return self._made

    async def _serving(self, key: str) -> S3Store | None:
        """The store for a request about ``key``, or ``None``: s3fs must do it."""
        if not expressible(key):
            return None
        if self._store is not None:
            return self._store if usable() else None
        async with self._connecting:
            if self._store is None and not self._barred and await runs():
                self._store, self.amazon = await asyncio.to_thread(connect, self._settings)
                self._barred = self._store is None
        return self._store

    def _limit(self, nbytes: int = 0) -> asyncio.Timeout:
        # obstore's own limits count an upload as silence of the server.
        return asyncio.timeout(self._settings.idle + nbytes / retry.SLOWEST)


async def _received(result: GetResult, nbytes: int, known: bool, limit: asyncio.Timeout) -> bytes:
    """The body of ``result``, which announces ``nbytes``; ``Surplus`` where it has more. Where it
    is not ``known`` how many there can be, memory and time are taken only as they come."""
    at_once = nbytes if known else min(nbytes, _AT_ONCE)
    _extend(limit, at_once)
    retry.expect(at_once)
    # Each piece but the last has as many bytes as this, or more.
    stream = result.stream(min_chunk_size=at_once + 1).__aiter__()
    pieces: list[bytes] = []
    total = 0
    while total <= nbytes:
        try:
            piece = await tracked(stream.__anext__())
        except StopAsyncIteration:
            break
        pieces.append(piece)
        total += len(piece)
        if len(piece) <= at_once:
            break
        _extend(limit, len(piece))
        retry.expect(at_once)
    if total > nbytes:
        raise body.Surplus(total, nbytes)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _length(span: Span) -> int | None:
    start, stop = span
    return -start if start < 0 else None if stop is None else stop - start


def _extend(limit: asyncio.Timeout, nbytes: int) -> None:
    when = limit.when()
    if when is not None and nbytes > retry.SLOWEST:
        limit.reschedule(when + nbytes / retry.SLOWEST)


def _late() -> Failed:
    return Failed("lost", "no answer in time", timed_out=True)


def _empty(span: Span) -> bool:
    return span.stop is not None and span.start >= 0 and span.stop <= span.start


def _range(span: Span) -> tuple[int, int] | OffsetRange | SuffixRange | None:
    if span.start < 0:
        return {"suffix": -span.start}
    if span.stop is None:
        return {"offset": span.start} if span.start else None
    return span.start, span.stop


def _etag(etag: str | None) -> str:
    if etag is None:
        raise Failed("lost", "the answer has no ETag")
    return etag[1:-1] if etag[:1] == etag[-1:] == '"' else etag
