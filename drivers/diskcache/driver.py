"""A driver around a driver that keeps what was read in a folder of this host."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tensorstash.cached import PerProcess
from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Driver,
    Parts,
    Put,
    Request,
    Span,
    Tag,
    Traffic,
    check_size,
    turn,
)
from tensorstash.drivers.diskcache.entry import SMALL, Entry
from tensorstash.drivers.diskcache.folder import CacheCounts, CacheFolder
from tensorstash.errors import Invalid
from tensorstash.wrapper import WrapperDriver

_READY_BYTES = 16 << 20
_READY = 1024
_ALL = 1 << 62

_Item = TypeVar("_Item", bound=tuple[str, Any] | Put)


@dataclass(slots=True)
class _Asked:
    """A request on its way, what is kept for it, and the count of writes when it was sent."""

    i: int
    request: Request
    entry: Entry | None
    writes: int


class _InPlace(WrapperDriver):
    """What writes within values: none of these is kept."""

    def put_parts(self, values: Iterable[Parts]) -> None:
        """Write within values by the driver, and forget those before."""
        keys: dict[str, None] = {}

        def noted() -> Iterator[Parts]:
            for value in values:
                keys[value.key] = None
                yield value

        try:
            self.driver.put_parts(noted())
        finally:
            for key in keys:
                self._drop(key)

    def _drop(self, key: str) -> None:
        raise NotImplementedError


class DiskCache(_InPlace):
    """``driver`` itself, except that values and parts of values that were read once come from
    files below ``folder`` while the stored version is still the same.

    Each use of a kept value asks the driver whether its version is the stored one, in the
    window of :meth:`get_many_tagged` and without moving bytes; with ``immutable`` nothing is
    asked, and what was read once is taken for good (a write through this very cache drops what
    it replaces). Absence is never kept.

    Any number of processes may share the folder, and may be killed at any instant. What they
    keep there is together at most ``limit_bytes``, counted in blocks of 4 KiB, and one value
    more for each that is writing just then; the least recently used goes first. A value above
    half the limit is not kept. A file that is damaged, cut short, or another value's is
    noticed by its checksums and fetched again. When the disk is full or read-only, reads go on
    and nothing more is kept.

    The folder is made with mode 0700. Whoever can read it can read what is kept there, whatever
    the backend would say: users with different rights need folders of their own. Values are told
    apart by the driver's ``identity`` and their key.
    """

    def __init__(
        self,
        driver: Driver,
        folder: str | os.PathLike[str],
        limit_bytes: int,
        immutable: bool = False,
        compared: frozenset[str] = frozenset(),
    ) -> None:
        """``compared``: last names of keys whose versions are compared all the same (metadata,
        say). Nothing is read or made before first use. :class:`~tensorstash.errors.Invalid` for a
        driver whose values other processes cannot see, or a limit that is no positive number."""
        if not driver.capabilities.shared:
            raise Invalid(
                f"a disk cache is for values that processes share, and {driver.url} is not; "
                "leave cache_dir out"
            )
        if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int) or limit_bytes <= 0:
            raise Invalid(f"the limit of a disk cache is a number of bytes, not {limit_bytes!r}")
        path = os.fspath(folder)
        if not isinstance(path, str) or not path or "\0" in path:
            raise Invalid(f"{path!r} names no folder; give a path like '~/.cache/tensorstash'")
        super().__init__(driver)
        self.immutable = immutable
        self.compared = compared
        self._folder = CacheFolder(os.path.abspath(os.path.expanduser(path)), limit_bytes)
        self._writes = 0
        self._guards = PerProcess(threading.Lock)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Those of the driver, never ``local``: versions are asked for together."""
        return replace(self.driver.capabilities, local=False)

    @property
    def folder(self) -> str:
        """The absolute path of the folder."""
        return self._folder.path

    @property
    def counts(self) -> CacheCounts:
        """What the cache did in this process so far."""
        return self._folder.counts

    @property
    def traffic(self) -> Traffic:
        """That of the driver, with what was answered here."""
        return replace(self.driver.traffic or Traffic(), disk_hits=self.counts.hits)

    def __reduce__(self) -> tuple[Callable[..., DiskCache], tuple[Any, ...]]:
        """The driver, the folder and the limit; counts stay here."""
        how = self._folder.limit, self.immutable, self.compared
        return DiskCache, (self.driver, self.folder, *how)

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) and its tag, by one request at most."""
        [(_, found)] = self.get_many_tagged([Request(key, span)])
        return found

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """``(i, value)`` in the order of arrival."""
        for i, found in self.get_many_tagged(each._replace(unless=None) for each in requests):
            yield i, None if found is None else found[0]

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """``(i, (value, tag))`` in the order of arrival, in one window of the driver's.

        What is kept is asked for with ``unless`` its version. An asker's own ``unless`` that
        is of another version than the kept one gives way to it: bytes then move only if the
        kept one is outdated.
        """
        source = enumerate(requests)
        asked: dict[int, _Asked] = {}
        ready: deque[tuple[int, tuple[Buffer, Tag]]] = deque()

        def missing(first: _Asked) -> Iterator[Request]:
            number, held = 0, 0
            one: _Asked | None = first
            while one is not None:
                asked[number] = one
                number += 1
                request = one.request
                kept = one.entry
                yield request if kept is None else request._replace(unless=kept.tag)
                one = None
                for i, request in source:
                    candidate = self._look(i, request)
                    found = self._now(candidate)
                    if found is None:
                        one = candidate
                        break
                    # Answers that wait for the driver's next one are memory: end this window
                    # when there are many, and begin another at the next miss.
                    held += len(found[0])
                    ready.append((i, found))
                    if held > _READY_BYTES or len(ready) >= _READY:
                        return

        for i, request in source:
            one = self._look(i, request)
            found = self._now(one)
            if found is not None:
                yield i, found
                continue
            asked.clear()
            for number, answer in self.driver.get_many_tagged(missing(one)):
                sent = asked.pop(number)
                yield sent.i, self._answer(sent, answer)
                while ready:
                    yield ready.popleft()
            while ready:
                yield ready.popleft()

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one version: those kept by one request for its tag, the others, if
        any, by one ``get_ranges`` of the driver's for that version."""
        version = tag
        parts: dict[int, Buffer] = {}
        for i, span in enumerate(spans):
            kept = self._find(key, span, _ALL)
            if kept is None or kept.body is None:
                continue
            version = kept.tag if version is None else version
            if kept.tag == version:
                parts[i] = kept.body
        writes = self._writes
        if parts and self._complete(key, spans, version, parts, writes):
            return [parts[i] for i in range(len(spans))], version
        found = self.driver.get_ranges(key, spans, tag)
        if found is not None:
            for span, part in zip(spans, found[0], strict=True):
                self._keep(key, span, found[1], part, writes)
        return found

    def _complete(
        self, key: str, spans: Sequence[Span], version: Tag, parts: dict[int, Buffer], writes: int
    ) -> bool:
        """Whether ``version`` is the stored one and ``parts`` now hold all ``spans`` of it."""
        hits, nbytes = len(parts), sum(map(len, parts.values()))
        rest = [i for i in range(len(spans)) if i not in parts]
        if rest:
            try:
                found = self.driver.get_ranges(key, [spans[i] for i in rest], version)
            except Changed:
                return False
            if found is None:
                return False
            for i, part in zip(rest, found[0], strict=True):
                parts[i] = part
                self._keep(key, spans[i], version, part, writes)
        elif not self._is_final(key) and self.driver.tag(key) != version:
            return False
        self._hit(hits, nbytes)
        return True

    def tag(self, key: str) -> Tag | None:
        """That of the stored version; with ``immutable`` of the kept value, if there is one."""
        kept = self._find(key, None, 0) if self._is_final(key) else None
        return self.driver.tag(key) if kept is None else kept.tag

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value`` by the driver, and forget what is kept of the one before."""
        try:
            return self.driver.put(key, value, if_absent=if_absent, if_tag=if_tag)
        finally:  # after a failure too: it may be stored, and a conflict says ours is outdated
            self._drop(key)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Store each value by the driver, and forget those before."""
        noted = _Noted(items)
        try:
            self.driver.put_many(noted)
        finally:
            for key in noted.keys:
                self._drop(key)

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        """Store each value by the driver, and forget those before."""
        noted = _Noted(puts)
        try:
            yield from self.driver.put_each(noted)
        finally:
            for key in noted.keys:
                self._drop(key)

    def delete(self, key: str) -> None:
        """Delete by the driver, and forget."""
        try:
            self.driver.delete(key)
        finally:
            self._drop(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete by the driver, and forget."""
        keys = [*keys]
        try:
            self.driver.delete_many(keys)
        finally:
            for key in keys:
                self._drop(key)

    def put_anew(self, key: str, value: Buffer, tag: Tag) -> Tag:
        """Store ``value`` by the driver, and forget what is kept of the one before."""
        try:
            return self.driver.put_anew(key, value, tag)
        finally:
            self._drop(key)

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        """Delete by the driver, and forget."""
        noted = _Noted(pairs)
        try:
            yield from self.driver.delete_each(noted)
        finally:
            for key in noted.keys:
                self._drop(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete by the driver, and forget what would not be compared."""
        try:
            self.driver.delete_prefix(prefix)
        finally:
            with turn(self._guards.here()):
                self._writes += 1
                if self.immutable:
                    self._folder.drop_below(self.identity, prefix)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """As the driver does."""
        return self.driver.sizes(prefix)

    # -- within -------------------------------------------------------------------

    def _is_final(self, key: str) -> bool:
        return self.immutable and key.rpartition("/")[2] not in self.compared

    def _find(self, key: str, span: Span | None, most: int) -> Entry | None:
        """What is kept of bytes ``span``, be it as part of the whole value."""
        place, find = self.identity, self._folder.find
        if span is None or (span.start == 0 and span.stop is None):
            return find(place, key, None, None, most)
        return find(place, key, span, None, most) or find(place, key, None, span, most)

    def _look(self, i: int, request: Request) -> _Asked:
        key, span, unless, _ = request
        # Who holds a version already will hardly want these bytes. Large ones are read when
        # they are known to be right, so that the window holds few.
        entry = self._find(key, span, SMALL if unless is None else 0)
        return _Asked(i, request, entry, self._writes)

    def _now(self, one: _Asked) -> tuple[Buffer, Tag] | None:
        """The answer where the driver need not be asked."""
        if not self._is_final(one.request.key):
            return None
        found = self._serve(one)
        if found is None:
            one.entry = None  # evicted meanwhile, or large and damaged: ask for all of it
        return found

    def _serve(self, one: _Asked) -> tuple[Buffer, Tag] | None:
        """The kept version; ``None`` when it was evicted or found damaged meanwhile."""
        (key, span, unless, most), entry = one.request, one.entry
        if entry is None:
            return None
        if unless is not None and entry.tag == unless:
            return b"", unless  # no value came from here: the asker has it
        if entry.body is None:
            whole = self._find(key, span, _ALL)
            if whole is None or whole.tag != entry.tag:
                return None
            entry = whole
        if entry.body is None:
            return None
        if span is None:  # it was kept for someone who allows more
            check_size(key, len(entry.body), most)
        self._hit(1, len(entry.body))
        return entry.body, entry.tag

    def _answer(self, one: _Asked, found: tuple[Buffer, Tag] | None) -> tuple[Buffer, Tag] | None:
        """What the asker gets for the driver's answer; keeps the bytes that came."""
        key, span, unless, _ = one.request
        if found is not None and one.entry is not None and found[1] == one.entry.tag:
            served = self._serve(one)
            if served is not None:
                return served
            [(_, found)] = self.driver.get_many_tagged([one.request._replace(unless=None)])
        elif found is not None and one.entry is None and found[1] == unless:
            return found
        if found is None:
            if one.entry is not None:
                self._drop(key)
            return None
        value, tag = found
        self._keep(key, span, tag, value, one.writes)
        return (b"", tag) if unless is not None and tag == unless else found

    def _keep(self, key: str, span: Span | None, tag: Tag, value: Buffer, writes: int) -> None:
        self.counts.misses += 1
        if span is not None and span.start == 0 and span.stop is None:
            span = None
        if not self.immutable:
            self._folder.store(self.identity, key, span, tag, value)
            return
        # Without a comparison nobody would notice that a write of ours overtook this read.
        with turn(self._guards.here()):
            if writes == self._writes:
                self._folder.store(self.identity, key, span, tag, value)

    def _hit(self, count: int, nbytes: int) -> None:
        counts = self.counts
        counts.hits += count
        counts.bytes_served += nbytes

    def _drop(self, key: str) -> None:
        with turn(self._guards.here()):
            self._writes += 1
            self._folder.drop(self.identity, key, spans=self.immutable)


class _Noted(Iterator[_Item]):
    """An iterator that remembers the keys of what was taken from it."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = iter(items)
        self.keys: list[str] = []

    def __next__(self) -> _Item:
        item = next(self._items)
        self.keys.append(item[0])
        return item
