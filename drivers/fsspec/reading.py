"""Reading and listing by fsspec: the half of the driver that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias

from tensorstash.cached import PerProcess
from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Driver,
    Request,
    Span,
    Tag,
    Traffic,
    check_key,
    check_prefix,
    check_size,
    pick,
)
from tensorstash.drivers.fsspec import traits
from tensorstash.drivers.fsspec.client import FsspecClient
from tensorstash.drivers.fsspec.options import Recipe
from tensorstash.drivers.thread_lock import ThreadLocks
from tensorstash.drivers.window import Window
from tensorstash.errors import DriverError, Invalid, Unsupported, counted

Answer: TypeAlias = tuple[Buffer, Tag] | None


class FsspecReader(Driver):
    """Reads values below one path of a filesystem; see
    :class:`~tensorstash.drivers.fsspec.FsspecDriver`."""

    scheme = "fsspec"

    def __init__(
        self,
        recipe: Recipe,
        *,
        timeout: float = 50.0,
        weak_tags: bool = False,
        unsafe: bool = False,
    ) -> None:
        """Nothing is asked of the filesystem before the first use."""
        if not timeout > 0:
            raise Invalid(f"timeout is a number of seconds above 0, not {timeout!r}")
        self.recipe = recipe
        self.timeout = timeout
        self.weak_tags = weak_tags
        self.unsafe = unsafe
        self.traits = traits.of(recipe.names)
        self.scheme = recipe.place.partition("://")[0]
        self.capabilities = Capabilities(
            writable=self.traits.put != "none",
            conditional_put=False,
            locks=False,
            shared="memory" not in recipe.names,
            gap_bytes=256 << 10,
            concurrency=self.traits.concurrency,
            content_tags=self.traits.versions[:1] != ("generation",),
        )
        self._window: Window[Request, Answer] = Window(self.traits.concurrency)
        self._locks = ThreadLocks()
        # What a child inherits stays referred to: its finalizers would close the parent's
        # connections.
        self._clients = PerProcess(partial(FsspecClient, recipe, timeout, self.traits.serial))

    @property
    def url(self) -> str:
        """The URL, without a login; of a filesystem object its protocol and the path."""
        return self.recipe.place

    @property
    def traffic(self) -> Traffic:
        """Calls of the filesystem (each may be several requests) and bytes of values."""
        return self._client.traffic

    # -- reading ------------------------------------------------------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The value, or bytes ``span`` of it."""
        return self._read(check_key(key), span)

    def get_tagged(self, key: str, span: Span | None = None) -> Answer:
        """The value and its tag. Of a part the version is looked at before and after."""
        return self._get_tagged(key, span, None)

    def _get_tagged(self, key: str, span: Span | None, most: int | None) -> Answer:
        for attempt in range(_TRIES):
            found = self._version(check_key(key))
            if found is None:
                return None
            tag, size = found
            if size is not None:
                check_size(key, size, most)
            if tag is None:
                value = self._read(key, None, most=most)
                return None if value is None else (pick(value, span), digest(value))
            # A whole value is of one version, and at least as new as its tag: that will do, also
            # where the value changes so often that no part is read between two equal looks.
            whole = span is None or attempt == _TRIES - 1
            value = self._read(key, None if whole else span, size, most)
            if value is not None and (whole or self._version(key) == found):
                return (pick(value, span) if whole else value), tag
        return None

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """As many at once as the filesystem is good for."""
        window: Window[Request, Buffer | None] = self._window  # type: ignore[assignment]
        return window.each(self._get_plain, requests)

    def get_many_tagged(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """As many at once as the filesystem is good for."""
        return self._window.each(self._get_unless, requests)

    def _get_plain(self, request: Request) -> Buffer | None:
        key, span, _, most = request
        return self._read(check_key(key), span, most=most if span is None else None)

    def _get_unless(self, request: Request) -> Answer:
        key, span, unless, most = request
        if unless is not None and self.tag(key) == unless:
            return b"", unless
        return self._get_tagged(key, span, most if span is None else None)

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts, read between two looks at the version."""
        before = self._version(check_key(key))
        whole = None if before is None or before[0] is not None else self._read(key, None)
        version = before and before[0]
        if whole is not None:
            version = digest(whole)
        if version is None:
            if tag is not None:
                raise Changed(key)
            return None
        if tag is not None and version != tag:
            raise Changed(key)
        if whole is not None:
            return [pick(whole, span) for span in spans], version
        parts = [part for span in spans if (part := self._read(key, span)) is not None]
        if len(parts) < len(spans) or self._version(key) != before:
            raise Changed(key)
        return parts, version

    def tag(self, key: str) -> Tag | None:
        """What names the stored version; reads the value where only its bytes do."""
        found = self._version(check_key(key))
        if found is None or found[0] is not None:
            return None if found is None else found[0]
        value = self._read(key, None)
        return None if value is None else digest(value)

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key that starts with ``prefix``."""
        return (key for key, _ in self._walk(check_prefix(prefix), []))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes stored)`` from the listing itself."""
        check_prefix(prefix)
        for key, entry in self._walk(prefix, []):
            if (size := entry.get("size")) is None:
                value = self.get(key)
                size = None if value is None else len(value)
            if size is not None:
                yield key, size

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``."""
        keys, folders = self._below(check_prefix(prefix))
        cut = len(prefix)
        return sorted(key[cut:] for key in keys), sorted(name[cut:-1] for name in folders)

    # -- within -------------------------------------------------------------------

    @property
    def _client(self) -> FsspecClient:
        return self._clients.here()

    def _path(self, key: str) -> str:
        root = self._client.open()[1]
        return f"{root}/{key}" if root and key else root or key

    def _folder(self, prefix: str) -> str:
        return self._path(prefix.rstrip("/"))

    def _info(self, key: str) -> dict[str, Any] | None:
        found = self._client.call("info", self._path(key))
        return found if found.get("type", "file") == "file" else None

    def _version(self, key: str) -> tuple[Tag | None, int | None] | None:
        """The version's tag (``None``: only its bytes tell) and its size."""
        if not (self.traits.versions or self.weak_tags):
            return None, None
        info = self._client.ask("info", key, lambda: self._info(key))
        if info is None:
            return None
        size = info.get("size")
        for name in self.traits.versions:
            if info.get(name) not in (None, ""):
                return (name, str(info[name]), size), size
        if self.weak_tags:
            for name in ("mtime", "modify", "LastModified", "last_modified", "created"):
                if info.get(name) is not None:
                    return ("weak", str(info[name]), size), size
        return None, size

    def _read(
        self, key: str, span: Span | None, size: int | None = None, most: int | None = None
    ) -> Buffer | None:
        start, stop = span or (0, None)
        if start < 0 and stop is not None:  # no filesystem takes that
            value = self._read(key, None)
            return None if value is None else pick(value, span)

        def read() -> bytes:
            if span is None or span == (0, None):
                return self._whole(key, most)
            known = size
            if known is None:
                if (info := self._info(key)) is None:
                    raise FileNotFoundError(key)
                known = info.get("size")
            first, last = start, stop
            if known is not None:
                first, end = span.resolve(known)
                if first >= end:
                    return b""
                if start < 0 and not self.traits.folders:
                    first = start  # one request for the tail of whatever is there then
            data: bytes = self._client.call("cat_file", self._path(key), start=first, end=last)
            wanted = (
                -start if stop is None and start < 0 else None if stop is None else stop - start
            )
            if wanted is not None and len(data) > wanted:
                raise Unsupported(
                    f"{self.url} answered {counted(len(data), 'byte')} of {key!r} where "
                    f"{wanted} were asked "
                    "for; copy the data to where parts can be read"
                )
            return data

        return self._client.ask("get", key, read)

    def _whole(self, key: str, most: int | None) -> bytes:
        path = self._path(key)
        # Where fsspec opens a file and reads from it, it can read to a limit at no cost. Others
        # send requests of their own, for which a limit would be another request, or a range,
        # which many refuse of an empty value.
        limit = {}
        if most is not None and self._client.opens_files():
            limit["end"] = most + 1
        data: bytes = self._client.call("cat_file", path, **limit)
        check_size(key, len(data), most)
        return data

    def _walk(
        self, prefix: str, folders: MutableSequence[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every key below ``prefix`` with what the listing says of it; ``folders`` gathers
        those on the way. By ``ls``: ``walk`` and ``find`` take a failure for an empty folder."""
        todo = [prefix]
        while todo:
            folder = todo.pop()
            if folder.count("/") - prefix.count("/") > _DEEPEST:
                raise DriverError(
                    f"{self.url} holds folders in folders more than {_DEEPEST} deep, as one does "
                    f"that holds itself; see what is below {prefix!r}",
                    key=prefix,
                    driver=self.scheme,
                )
            keys, below = self._below(folder)
            yield from keys.items()
            folders.extend(below)
            todo.extend(below)

    def _below(self, prefix: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
        """Keys directly below ``prefix``, and folders (with their ``/``)."""

        def look() -> tuple[str, Any]:
            path = self._folder(prefix)  # which opens the filesystem, and may fail as the rest
            return path, self._client.call("ls", path, detail=True)

        path, entries = self._client.ask("list", prefix, look) or ("", ())
        base = path.strip("/") + "/" if path.strip("/") else ""
        if entries and len(entries) == 1 and self.traits.folders and prefix:
            own = prefix.rstrip("/")
            alike = entries[0]["name"].rpartition("/")[2] == own.rpartition("/")[2]
            # A value listed as if it were a folder that holds itself.
            if alike and self._client.ask("info", own, lambda: self._info(own)) is not None:
                return {}, set()
        keys: dict[str, dict[str, Any]] = {}
        folders: set[str] = set()
        for entry in entries or ():
            name = entry["name"].strip("/")
            if not name.startswith(base) or not (name := name[len(base) :]):
                continue  # the place itself, or its marker
            if "/" in name or "\\" in name or name.startswith(TEMPORARY):
                continue
            if entry["type"] == "directory":
                folders.add(f"{prefix}{name}/")
            else:
                keys[prefix + name] = entry
        return keys, folders


_TRIES = 4
_DEEPEST = 256
"""Folders in folders below the one that is listed: those of chunks are as many as dimensions."""

TEMPORARY = ".tensorstash-"
"""How the names of files begin that are not in their place yet; no keys."""


def digest(value: Buffer) -> Tag:
    """A tag that follows from the bytes."""
    return blake2b(value, digest_size=20).hexdigest()
