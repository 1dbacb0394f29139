"""Pages of a listing, one after the other, of a server that may not mean to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tensorstash.drivers.s3.client import Page
from tensorstash.drivers.s3.errors import SCHEME
from tensorstash.errors import DriverError

_EMPTY = 1000
"""Pages without a name, one after the other, that a server may send which looks for some."""


def pages(ask: Callable[[str | None], Page], prefix: str, url: str) -> Iterator[Page]:
    """``ask(after)`` from the beginning (``None``) to the last page. :class:`DriverError` where a
    page tells what cannot be: a place to go on that was told before, names that do not come after
    all earlier ones, pages without end and without names."""
    after: str | None = None
    seen: set[str] = set()
    last_key = last_folder = ""
    empty = 0
    while True:
        page = ask(after)
        last_key = _after([key for key, _ in page.keys], last_key, prefix, url)
        last_folder = _after(page.folders, last_folder, prefix, url)
        yield page
        after = page.after
        if after is None:
            return
        empty = 0 if page.keys or page.folders else empty + 1
        if after in seen:
            raise wrong(prefix, url, "repeats a continuation token, so that it has no end")
        if empty > _EMPTY:
            raise wrong(prefix, url, f"goes on for {_EMPTY} pages without a name")
        seen.add(after)


def _after(names: Sequence[str], last: str, prefix: str, url: str) -> str:
    for name in names:
        if name <= last and last:
            raise wrong(prefix, url, f"has {name[:60]!r} after {last[:60]!r}, out of order")
        last = name
    return last


def elsewhere(name: str) -> str:
    """What :func:`wrong` says of a name that does not begin as asked."""
    return f"has a name from elsewhere ({name[:60]!r})"


def wrong(prefix: str, url: str, what: str) -> DriverError:
    """The error for a listing that cannot be."""
    return DriverError(
        f"the server's listing of {prefix!r} in {url} {what}: it cannot be trusted to be whole; "
        "check what server answers at this endpoint",
        key=prefix,
        driver=SCHEME,
    )
