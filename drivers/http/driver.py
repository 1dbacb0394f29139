"""Reads by fsspec's HTTP client, one GET each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from tensorstash.driver import Buffer, Changed, Request, Span, Tag, check_key, pick
from tensorstash.drivers import body
from tensorstash.drivers.fsspec.driver import FsspecDriver
from tensorstash.drivers.fsspec.options import Recipe
from tensorstash.drivers.fsspec.reading import Answer, digest
from tensorstash.drivers.http import replies
from tensorstash.errors import DriverError, Unsupported

_HTML = {"text/html", "application/xhtml+xml", ""}


class HttpDriver(FsspecDriver):
    """Reads with one GET each, and checks that the answer is what was asked for.

    404 and 410 are absence, everything else that is no answer is an error. A tag is the ETag,
    else a digest of the value; where a part is read and the server sends no strong ETag, a
    version cannot be named without reading the whole, and :class:`Unsupported` says so.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        timeout: float = 50.0,
        weak_tags: bool = False,
        whole: bool = False,
        index_pages: bool = False,
    ) -> None:
        """See :func:`tensorstash.drivers.http.connect`."""
        super().__init__(recipe, timeout=timeout, weak_tags=weak_tags)
        self.capabilities = replace(self.capabilities, lists=False)  # a page may name some only
        self.whole = whole
        self.index_pages = index_pages

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The value, or bytes ``span`` of it."""
        return self._get_plain(Request(key, span))

    def get_tagged(self, key: str, span: Span | None = None) -> Answer:
        """The value and its tag, out of one answer."""
        return self._get_unless(Request(key, span))

    def _get_plain(self, request: Request) -> Buffer | None:
        reply = self._ask(check_key(request.key), request.span, most=request.most)
        return None if reply is None else reply.data

    def _get_unless(self, request: Request) -> Answer:
        key, span, unless, most = request
        reply = self._ask(check_key(key), span, unless, most)
        if reply is None:
            return None
        tag, data = reply.tag, reply.data
        if tag is None and span is not None:
            if not self.whole:
                raise Unsupported(
                    f"{self.url} names no version of {key!r} (no strong ETag), so parts of it "
                    "cannot be told from those of another; use the option weak_tags=True to go by "
                    "its time and size, or whole=True to read it whole"
                )
            reply = self._ask(key, None)
            if reply is None:
                return None
            tag, data = digest(reply.data), pick(reply.data, span)  # type: ignore[assignment]
        elif tag is None:
            tag = digest(data)
        return (b"" if tag == unless else data), tag

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Each part by a GET of its own, all at once; their tags must agree."""
        check_key(key)
        found = dict(self._window.each(self._get_unless, (Request(key, span) for span in spans)))
        answers = [answer for i in range(len(spans)) if (answer := found[i]) is not None]
        tags = {version for _, version in answers} | ({tag} - {None})
        if not tags:
            return None
        if len(answers) < len(spans) or len(tags) > 1:
            raise Changed(key)
        return [data for data, _ in answers], tags.pop()

    def tag(self, key: str) -> Tag | None:
        """The ETag by a HEAD; a digest of the value where there is none."""
        reply = self._client.ask("head", check_key(key), lambda: self._head(key))
        if reply is None or reply.tag is not None:
            return None if reply is None else reply.tag
        found = self.get_tagged(key)
        return None if found is None else found[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Secrets stay here: elsewhere ``connection`` has them."""
        recipe = self.recipe.without_secrets()
        return _restore, (recipe, self.timeout, self.weak_tags, self.whole, self.index_pages)

    # -- within -------------------------------------------------------------------

    def _path(self, key: str) -> str:
        root = self._client.open()[1]
        return f"{root}/{quote(key)}" if key else root

    def _folder(self, prefix: str) -> str:
        return super()._folder(prefix) + "/"  # without it a server answers with a redirect

    def _below(self, prefix: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
        if not self.index_pages:
            raise Unsupported(
                f"{self.url} cannot list {prefix!r}: a web server lists nothing reliably; open an "
                "array by its own URL, or use the option index_pages=True to go by its pages"
            )
        url = self._folder(prefix)
        page = self._client.ask(
            "list", prefix, lambda: self._client.run(self._fetch_page, url, prefix)
        )
        keys: dict[str, dict[str, Any]] = {}
        folders: set[str] = set()
        for name in replies.linked(page or "", url):
            if name.endswith("/"):
                folders.add(prefix + name)
            else:
                keys[prefix + name] = {"size": None}
        return keys, folders

    def _ask(
        self,
        key: str,
        span: Span | None,
        unless: Tag | None = None,
        most: int | None = None,
    ) -> replies.Reply | None:
        """One GET, or a HEAD where no byte is wanted."""
        if span is not None and span.start < 0 and span.stop is not None:
            reply = self._ask(key, None)  # no header says that
            return reply and reply._replace(data=bytes(pick(reply.data, span)))
        if span is not None and span.stop is not None and span.stop <= span.start:
            return self._client.ask("head", key, lambda: self._head(key))
        if span == (0, None):
            span = None
        return self._client.ask(
            "get",
            key,
            lambda: self._client.run(self._fetch, self._path(key), key, span, unless, most),
        )

    def _head(self, key: str) -> replies.Reply:
        return self._client.run(self._fetch_head, self._path(key), key)

    async def _fetch(
        self,
        fs: Any,
        url: str,
        key: str,
        span: Span | None,
        unless: Tag | None,
        most: int | None,
    ) -> replies.Reply:
        options, headers = _request(fs)
        if span is not None:
            last = "" if span.stop is None else span.stop - 1
            headers["Range"] = (
                f"bytes={span.start}-{last}" if span.start >= 0 else (f"bytes={span.start}")
            )
        if isinstance(unless, tuple) and unless[0] == "etag":
            headers["If-None-Match"] = unless[1]
        session = await fs.set_session()
        async with session.get(replies.exact(url), headers=headers, **options) as answer:
            if answer.status == 304 and unless is not None:
                return replies.Reply(b"", unless, None)
            if answer.status == 416 and span is not None:
                return await self._fetch_head(fs, url, key)  # it begins beyond the end
            replies.check(answer, key, {200} if span is None else {200, 206})
            if span is None:
                data = await replies.value(answer, key, most)
                return replies.Reply(data, self._tag(answer), len(data))
            if answer.status == 206:
                nbytes, size = replies.part(answer, key, span)
                try:
                    length = body.limit(
                        replies.number(answer.headers.get("Content-Length")), nbytes
                    )
                    data = await body.read(answer.content.read, length)
                except body.Surplus as error:
                    raise replies.other(key, span) from error
                if len(data) != nbytes:
                    raise replies.other(key, span)
                return replies.Reply(data, self._tag(answer), size)
            # The whole value is on its way. Leaving here drops it, and the connection.
            if not self.whole:
                raise Unsupported(
                    f"the server of {self.url} ignores Range: it would send all of {key!r} for a "
                    "part of it; use the option whole=True to allow that, or copy the data"
                )
            data = await replies.value(answer, key, None)
            return replies.Reply(
                bytes(pick(data, span)), self._tag(answer) or digest(data), len(data)
            )

    async def _fetch_head(self, fs: Any, url: str, key: str) -> replies.Reply:
        options, headers = _request(fs)
        session = await fs.set_session()
        async with session.head(replies.exact(url), headers=headers, **options) as answer:
            replies.check(answer, key, {200})
            return replies.Reply(
                b"", self._tag(answer), replies.number(answer.headers.get("Content-Length"))
            )

    async def _fetch_page(self, fs: Any, url: str, key: str) -> str:
        options, headers = _request(fs)
        session = await fs.set_session()
        async with session.get(replies.exact(url), headers=headers, **options) as answer:
            replies.check(answer, key, {200})
            if answer.headers.get("Content-Type", "").partition(";")[0].strip() not in _HTML:
                return ""
            try:
                length = body.limit(replies.number(answer.headers.get("Content-Length")), body.PAGE)
                data = await body.read(answer.content.read, length)
            except body.Surplus as error:
                raise DriverError(
                    f"the page of {self.url} that lists {key!r} has more than {body.PAGE} bytes; "
                    "list the files in another way, or consolidate the metadata",
                    key=key,
                    driver="http",
                ) from error
            return data.decode(errors="replace")

    def _tag(self, answer: Any) -> Tag | None:
        etag = answer.headers.get("ETag")
        if etag and not etag.startswith("W/"):
            return "etag", etag
        if not self.weak_tags:
            return None
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        size = total or answer.headers.get("Content-Length")
        named = etag or answer.headers.get("Last-Modified")
        return None if named is None else ("weak", named, size)


def _request(fs: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Options and headers of a request: the user's, and no compression on the way."""
    options = dict(fs.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    return {"allow_redirects": True, **options}, headers


def _restore(
    recipe: Recipe, timeout: float, weak_tags: bool, whole: bool, index_pages: bool
) -> HttpDriver:
    return HttpDriver(
        recipe, timeout=timeout, weak_tags=weak_tags, whole=whole, index_pages=index_pages
    )
