"""Arrays on a web server: ``http://`` and ``https://``, read only, by fsspec's HTTP client.

A plain server lists nothing reliably: opening an array by its URL needs no listing, walking a
group does, unless its metadata is consolidated.

A body is read no further than what was asked for can be long: the part, the bytes that the
request says a value can have, or else what Content-Length announces, as it arrives; one without
an end is cut at 256 MiB. Redirects are followed, ten of them at most; another origin (scheme,
host or port) gets no header, cookie or login that the user gave, and https:// never leads to
http://. The tag is the ETag of where they end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from yarl import URL

from tensorstash.driver import Buffer, Changed, Request, Span, Tag, check_key, check_size, pick
from tensorstash.drivers import body
from tensorstash.drivers.fsspec import FsspecDriver
from tensorstash.drivers.fsspec.reader import TEMPORARY, Answer, digest
from tensorstash.drivers.fsspec.recipe import Connection, Recipe, of_url
from tensorstash.errors import DriverError, Invalid, Unsupported


def connect(
    rest: str,
    *,
    whole: bool = False,
    index_pages: bool = False,
    connection: Connection | None = None,
    timeout: float = 50.0,
    weak_tags: bool = False,
    **options: Any,
) -> HttpDriver:
    """What lies below ``http://rest``. Options beside these are those of fsspec's
    ``HTTPFileSystem``: ``headers``, ``client_kwargs``, ``ssl``.

    A server that cannot send part of a value raises :class:`Unsupported`; with ``whole`` the
    value is read whole then, and cut here. ``index_pages`` takes the links of the server's
    pages for a listing. With ``weak_tags`` a time or a weak ETag counts as a version.
    """
    return connect_url(
        f"http://{rest}", whole, index_pages, connection, timeout, weak_tags, options
    )


def connect_url(
    url: str,
    whole: bool,
    index_pages: bool,
    connection: Connection | None,
    timeout: float,
    weak_tags: bool,
    options: dict[str, Any],
) -> HttpDriver:
    """The driver for a URL with its scheme."""
    if "?" in url or "#" in url:
        raise Invalid(
            "a URL with '?' or '#' names one object, not a place that holds an array; give what "
            "the server asks for as options={'headers': ...}"
        )
    recipe = of_url(url, options, connection)
    return HttpDriver(
        recipe, timeout=timeout, weak_tags=weak_tags, whole=whole, index_pages=index_pages
    )


_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_LINK = re.compile(r"""href\s{0,9}=\s{0,9}["']([^"'\s]{1,4096})["']""", re.IGNORECASE)
_HTML = {"text/html", "application/xhtml+xml", ""}


class _Reply(NamedTuple):
    """Bytes that were asked for, the version's tag if the server names one, and its size."""

    data: bytes
    tag: Tag | None
    size: int | None


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
        """See :func:`connect`."""
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
        reply = self._process.ask("head", check_key(key), lambda: self._head(key))
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
        root = self._process.open()[1]
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
        page = self._process.ask(
            "list", prefix, lambda: self._process.run(self._fetch_page, url, prefix)
        )
        keys: dict[str, dict[str, Any]] = {}
        folders: set[str] = set()
        for name in _linked(page or "", url):
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
    ) -> _Reply | None:
        """One GET, or a HEAD where no byte is wanted."""
        if span is not None and span.start < 0 and span.stop is not None:
            reply = self._ask(key, None)  # no header says that
            return reply and reply._replace(data=bytes(pick(reply.data, span)))
        if span is not None and span.stop is not None and span.stop <= span.start:
            return self._process.ask("head", key, lambda: self._head(key))
        if span == (0, None):
            span = None
        return self._process.ask(
            "get",
            key,
            lambda: self._process.run(self._fetch, self._path(key), key, span, unless, most),
        )

    def _head(self, key: str) -> _Reply:
        return self._process.run(self._fetch_head, self._path(key), key)

    async def _fetch(
        self,
        fs: Any,
        url: str,
        key: str,
        span: Span | None,
        unless: Tag | None,
        most: int | None,
    ) -> _Reply:
        options, headers = _request(fs)
        if span is not None:
            last = "" if span.stop is None else span.stop - 1
            headers["Range"] = (
                f"bytes={span.start}-{last}" if span.start >= 0 else (f"bytes={span.start}")
            )
        if isinstance(unless, tuple) and unless[0] == "etag":
            headers["If-None-Match"] = unless[1]
        session = await fs.set_session()
        async with session.get(_exact(url), headers=headers, **options) as answer:
            if answer.status == 304 and unless is not None:
                return _Reply(b"", unless, None)
            if answer.status == 416 and span is not None:
                return await self._fetch_head(fs, url, key)  # it begins beyond the end
            _check(answer, key, {200} if span is None else {200, 206})
            if span is None:
                data = await _body(answer, key, most)
                return _Reply(data, self._tag(answer), len(data))
            if answer.status == 206:
                nbytes, size = _part(answer, key, span)
                try:
                    length = body.limit(_number(answer.headers.get("Content-Length")), nbytes)
                    data = await body.read(answer.content.read, length)
                except body.Surplus as error:
                    raise _other(key, span) from error
                if len(data) != nbytes:
                    raise _other(key, span)
                return _Reply(data, self._tag(answer), size)
            # The whole value is on its way. Leaving here drops it, and the connection.
            if not self.whole:
                raise Unsupported(
                    f"the server of {self.url} ignores Range: it would send all of {key!r} for a "
                    "part of it; use the option whole=True to allow that, or copy the data"
                )
            data = await _body(answer, key, None)
            return _Reply(bytes(pick(data, span)), self._tag(answer) or digest(data), len(data))

    async def _fetch_head(self, fs: Any, url: str, key: str) -> _Reply:
        options, headers = _request(fs)
        session = await fs.set_session()
        async with session.head(_exact(url), headers=headers, **options) as answer:
            _check(answer, key, {200})
            return _Reply(b"", self._tag(answer), _number(answer.headers.get("Content-Length")))

    async def _fetch_page(self, fs: Any, url: str, key: str) -> str:
        options, headers = _request(fs)
        session = await fs.set_session()
        async with session.get(_exact(url), headers=headers, **options) as answer:
            _check(answer, key, {200})
            if answer.headers.get("Content-Type", "").partition(";")[0].strip() not in _HTML:
                return ""
            try:
                length = body.limit(_number(answer.headers.get("Content-Length")), body.PAGE)
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


def _exact(url: str) -> Any:
    return URL(url, encoded=True)


def _linked(page: str, url: str) -> list[str]:
    """Names directly below ``url`` (which ends in ``/``) that its page links to, folders with
    their ``/``. Links to anywhere else, to itself and to what is further down are none."""
    here = _exact(url)
    names: dict[str, None] = {}
    for link in dict.fromkeys(_LINK.findall(page)):
        try:
            target = here.join(URL(link.replace("&amp;", "&"), encoded=True))
            if target.with_scheme(here.scheme).origin() != here.origin():
                continue
        except ValueError:
            continue
        if target.raw_query_string or not target.raw_path.startswith(here.raw_path):
            continue
        name, slash, deeper = target.raw_path[len(here.raw_path) :].partition("/")
        name = unquote(name)
        if deeper or name.startswith(TEMPORARY):
            continue
        try:
            check_key(name)
        except Invalid:
            continue
        if "/" not in name:
            names[name + slash] = None
    return [*names]


async def _body(answer: Any, key: str, most: int | None) -> bytes:
    """A whole value."""
    try:
        length = body.limit(_number(answer.headers.get("Content-Length")), most)
        return await body.read(answer.content.read, length)
    except body.Surplus as error:
        check_size(key, error.nbytes, most)
        raise body.too_large(key, error, "http") from error


def _check(answer: Any, key: str, good: set[int]) -> None:
    """Nothing but 404 and 410 is absence, and nothing but ``good`` a value."""
    if answer.status in (404, 410):
        raise FileNotFoundError(key)
    answer.raise_for_status()
    if answer.status not in good:
        raise DriverError(
            f"the server answers {answer.status} to a request for {key!r}, and no value; check "
            "the address, and what the server does with it",
            key=key,
            driver="http",
        )
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Unsupported(
            f"the server sends {key!r} compressed though asked not to; switch that off there"
        )


def _part(answer: Any, key: str, span: Span) -> tuple[int, int | None]:
    """How many bytes come, and the value's size; :class:`DriverError` when they are not those
    asked for."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is not None:
        first, last = int(match[1]), int(match[2])
        size = _number(match[3])
        start, stop = span.resolve(last + 1 if size is None else size)
        if size is None and span.start < 0:
            start, stop = max(first, last + 1 + span.start), last + 1
        if first <= last < body.ANNOUNCED + first and (first, last + 1) == (start, stop):
            return stop - start, size
    raise _other(key, span)


def _other(key: str, span: Span) -> DriverError:
    return DriverError(
        f"the server sent other bytes of {key!r} than the {span} asked for; its answer to Range "
        "cannot be trusted, copy the data",
        key=key,
        driver="http",
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 19 and text.isdecimal() else None


def _restore(
    recipe: Recipe, timeout: float, weak_tags: bool, whole: bool, index_pages: bool
) -> HttpDriver:
    return HttpDriver(
        recipe, timeout=timeout, weak_tags=weak_tags, whole=whole, index_pages=index_pages
    )
