"""What the replies of a web server must look like, before anything in them is believed."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from yarl import URL

from tensorstash.driver import Span, Tag, check_key, check_size
from tensorstash.drivers import body
from tensorstash.drivers.fsspec.reading import TEMPORARY
from tensorstash.errors import DriverError, Invalid, Unsupported

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_LINK = re.compile(r"""href\s{0,9}=\s{0,9}["']([^"'\s]{1,4096})["']""", re.IGNORECASE)


class Reply(NamedTuple):
    """Bytes that were asked for, the version's tag if the server names one, and its size."""

    data: bytes
    tag: Tag | None
    size: int | None


def exact(url: str) -> Any:
    """The URL as it is spelled, escapes and all."""
    return URL(url, encoded=True)


def linked(page: str, url: str) -> list[str]:
    """Names directly below ``url`` (which ends in ``/``) that its page links to, folders with
    their ``/``. Links to anywhere else, to itself and to what is further down are none."""
    here = exact(url)
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


async def value(answer: Any, key: str, most: int | None) -> bytes:
    """A whole value."""
    try:
        length = body.limit(number(answer.headers.get("Content-Length")), most)
        return await body.read(answer.content.read, length)
    except body.Surplus as error:
        check_size(key, error.nbytes, most)
        raise body.too_large(key, error, "http") from error


def check(answer: Any, key: str, good: set[int]) -> None:
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


def part(answer: Any, key: str, span: Span) -> tuple[int, int | None]:
    """How many bytes come, and the value's size; :class:`DriverError` when they are not those
    asked for."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is not None:
        first, last = int(match[1]), int(match[2])
        size = number(match[3])
        start, stop = span.resolve(last + 1 if size is None else size)
        if size is None and span.start < 0:
            start, stop = max(first, last + 1 + span.start), last + 1
        if first <= last < body.ANNOUNCED + first and (first, last + 1) == (start, stop):
            return stop - start, size
    raise other(key, span)


def other(key: str, span: Span) -> DriverError:
    """The error for bytes that are not those asked for."""
    return DriverError(
        f"the server sent other bytes of {key!r} than the {span} asked for; its answer to Range "
        "cannot be trusted, copy the data",
        key=key,
        driver="http",
    )


def number(text: str | None) -> int | None:
    """What a header counts; ``None`` where it says nothing, or nothing that can be."""
    return int(text) if text and len(text) < 19 and text.isdecimal() else None
