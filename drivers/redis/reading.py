"""Many reads in few round trips, each of a bounded number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, cast

from tensorstash.driver import Buffer, Changed, Request, Span, Tag, check_size
from tensorstash.drivers.redis.client import RedisClient, RedisRequest
from tensorstash.drivers.redis.commands import GATHER, READ, RedisCommand, command, run
from tensorstash.drivers.redis.keys import RedisKeys
from tensorstash.drivers.redis.parser import ReplyLimit, TooLarge
from tensorstash.drivers.redis.replies import count, parts, upto, value, values
from tensorstash.errors import DriverError

ROUND_BYTES = 16 << 20
"""Bytes wanted in one round trip; a value alone may be larger."""
ROUND_KEYS = 1000
LARGEST = 512 << 20
"""Bytes of a value where nothing says how many it can have."""
SHORT = 2 << 10
"""Bytes below which what a string costs to read is mostly its being one."""
_VERSION = 4096
_FIRST = 8
_GROWTH = 32
_ARRAYS = 4096
_NUMBERS = "0123456789/."

Found = tuple[Buffer, Tag] | None


@dataclass(slots=True)
class _ArraySizes:
    """What is known of the values of one array: how many were seen, and the largest."""

    seen: int = 0
    largest: int = 0


_UNKNOWN = _ArraySizes()


class RedisReading:
    """Reads through one client. It learns how large an array's values are: the first round trip
    asks for few, the next ones for as many as fit."""

    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys
        self._arrays: dict[str, _ArraySizes] = {}

    def many(
        self, requests: Iterable[Request], *, tags: bool = True, loose: bool = False
    ) -> Iterator[tuple[int, Found]]:
        """``(i, (value, tag))`` or ``(i, None)`` in order; without ``tags`` they mean nothing,
        ``loose``: nor those of spans."""
        batch: list[tuple[int, Request]] = []
        wanted, counts = 0, dict[str, int]()
        for i, request in enumerate(requests):
            size, joins = self._expect(request, counts)
            if batch and (wanted + size > ROUND_BYTES or not joins or len(batch) == ROUND_KEYS):
                yield from self._round(batch, tags, loose)
                batch, wanted, counts = [], 0, {}
                size, _ = self._expect(request, counts)
            batch.append((i, request))
            wanted += size
        if batch:
            yield from self._round(batch, tags, loose)

    def one(self, request: Request) -> Found:
        """The answer to one request."""
        [(_, found)] = self._round([(0, request)], True)
        return found

    def value(self, key: str) -> Buffer | None:
        """A whole value, without its version."""
        limit = ReplyLimit(sizes=(LARGEST,), whole=True)
        step = command(b"GET", value, self._keys.value(key), limit=limit)
        [found] = self._ask(RedisRequest("read", key), [step])
        return cast("bytes | None", found)

    def ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Parts of one version; :class:`Changed` when it is not ``tag``, or changed midway."""
        found_parts: list[Buffer] = []
        batch: list[Span] = []
        wanted = 0
        for span in [*spans, None]:
            size = 0 if span is None else _size(span) or 0
            if span is None or (batch and wanted + size > ROUND_BYTES):
                found = self._ranges(key, batch, tag)
                if found is None:
                    if tag is not None:
                        raise Changed(key)
                    return None
                tag = found[1]
                found_parts += found[0]
                batch, wanted = [], 0
            if span is not None:
                batch.append(span)
                wanted += size
        assert tag is not None
        return found_parts, tag

    def gather(
        self, wanted: Sequence[tuple[str, Sequence[int]]], nbytes: int, beside: Request | None
    ) -> tuple[list[Buffer | None], Found]:
        """Of each value ``nbytes`` from each place on, one behind another; several a round trip,
        and ``beside`` in the last."""
        found: list[Buffer | None] = []
        batch: list[tuple[str, Sequence[int]]] = []
        size = 0
        for key, starts in wanted:
            more = len(starts) * nbytes
            if batch and (size + more > ROUND_BYTES or len(batch) == ROUND_KEYS):
                found += self._gather(batch, nbytes, None)[0]
                batch, size = [], 0
            batch.append((key, starts))
            size += more
        last, other = self._gather(batch, nbytes, beside)
        return found + last, other

    def _gather(
        self, batch: list[tuple[str, Sequence[int]]], nbytes: int, beside: Request | None
    ) -> tuple[list[Buffer | None], Found]:
        groups = [[each] for each in batch] if self._client.options.cluster else [batch]
        steps = []
        for group in groups:
            args = [b"%d" % nbytes]
            for _, starts in group:
                args += [b"%d" % len(starts), *(b"%d" % start for start in starts)]
            sizes = [len(starts) * nbytes for _, starts in group]
            limit = ReplyLimit(len(group), 0, sizes, False, max(sizes) <= SHORT)
            places = tuple(self._keys.value(key) for key, _ in group)
            steps.append(run(GATHER, values(len(group)), places, *args, limit=limit))
        if beside is not None:
            steps.append(self._part(beside))
        request = RedisRequest("read", batch[0][0], detail=f"and {len(batch) - 1} more")
        replies = self._ask(request, steps)
        other = None if beside is None else _part_of(beside, replies.pop())
        return [each for reply in replies for each in reply], other

    def tag(self, key: str) -> Tag | None:
        """The stored version, without its bytes."""
        found = self._ranges(key, [], None)
        return None if found is None else found[1]

    # -- within -------------------------------------------------------------------

    def _ask(self, request: RedisRequest, steps: Sequence[RedisCommand]) -> list[Any]:
        """The replies; :class:`Corrupt` names the value that is larger than it can be."""
        try:
            return self._client.execute(request, steps).replies
        except DriverError as error:
            cause = error.__cause__
            if isinstance(cause, TooLarge) and cause.command.limit.whole:
                asked = cause.command
                place = asked.args[1 + cause.index] if asked.args[0] == b"MGET" else asked.key
                check_size(self._keys.key(place) or request.key, cause.nbytes, cause.most)
            raise

    def _ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None
    ) -> tuple[list[Buffer], Tag] | None:
        only = b"" if tag is None else tag if isinstance(tag, bytes) else b"?"
        step = self._step(key, spans, b"", only)
        [found] = self._ask(RedisRequest("read", key, detail=spans), [step])
        if found is None:
            return None
        version, *rest = found
        if tag is not None and version != tag:
            raise Changed(key)
        return rest, version

    def _round(
        self, batch: list[tuple[int, Request]], tags: bool, loose: bool = False
    ) -> list[tuple[int, Found]]:
        plain = [each for each in batch if each[1].span is None and each[1].unless is None]
        rest = [each for each in batch if each[1].span is not None or each[1].unless is not None]
        first = batch[0][1]
        more = f"and {len(batch) - 1} more" if len(batch) > 1 else first.span or ""
        part = self._range if loose else self._part
        steps = [self._whole(plain, tags), [part(request) for _, request in rest]]
        replies = self._ask(
            RedisRequest("read", first.key, detail=more), [each for step in steps for each in step]
        )
        cut = len(steps[0])
        found = self._found(plain, replies[:cut], tags)
        doubtful = found.pop(-1, None) is not None
        nothing = []
        for (i, request), reply in zip(rest, replies[cut:], strict=True):
            if type(reply) is bytes:
                found[i] = reply, b""
                if not reply:
                    nothing.append((i, request))
            else:
                found[i] = _part_of(request, reply)
        if nothing:  # absent, or shorter than that
            again = [self._part(request) for _, request in nothing]
            answered = self._ask(RedisRequest("read", nothing[0][1].key, detail=more), again)
            for (i, request), reply in zip(nothing, answered, strict=True):
                found[i] = _part_of(request, reply)
        if doubtful:  # something else than bytes, or it came just now: ask for each alone
            for i, request in plain:
                if found[i] is None:
                    [reply] = self._ask(RedisRequest("read", request.key), [self._part(request)])
                    found[i] = _part_of(request, reply)
        self._learn(plain, found)
        return [(i, found[i]) for i, _ in batch]

    def _whole(self, batch: list[tuple[int, Request]], tags: bool) -> list[RedisCommand]:
        """MGET returns nothing for what is no string: EXISTS tells that from absence."""
        if not batch:
            return []
        pairs = [self._keys.pair(request.key) for _, request in batch]
        if self._client.options.cluster:  # no command over several slots
            return [
                each
                for (place, tag), (_, request) in zip(pairs, batch, strict=True)
                for each in (
                    command(b"MGET", values(2), place, tag, limit=self._limit([request], True)),
                    command(b"EXISTS", count(1), place),
                )
            ]
        names = [name for pair in pairs for name in (pair if tags else pair[:1])]
        places = [place for place, _ in pairs]
        limit = self._limit([request for _, request in batch], tags)
        return [
            command(b"MGET", values(len(names)), *names, limit=limit),
            command(b"EXISTS", count(len(places)), *places),
        ]

    def _limit(self, batch: Sequence[Request], tags: bool) -> ReplyLimit:
        """What MGET of these values may return, with or without their versions."""
        sizes: list[int] = []
        for request in batch:
            sizes.append(LARGEST if request.most is None else request.most)
            if tags:
                sizes.append(_VERSION)
        array = self._arrays.get(batch[0].key.rstrip(_NUMBERS), _UNKNOWN)
        return ReplyLimit(len(sizes), 0, sizes, True, array.largest <= SHORT)

    def _found(
        self, batch: list[tuple[int, Request]], replies: list[Any], tags: bool
    ) -> dict[int, Found]:
        """What was found, with an entry at -1 when absence is in doubt."""
        if not batch:
            return {}
        cluster = self._client.options.cluster
        flat = [each for reply in replies[::2] for each in reply] if cluster else replies[0]
        tags = tags or cluster
        datas, versions = (flat[::2], flat[1::2]) if tags else (flat, [b""] * len(batch))
        found: dict[int, Found] = {
            i: None if data is None else (data, _digest(data) if version is None else version)
            for (i, _), data, version in zip(batch, datas, versions, strict=True)
        }
        for i, request in batch:
            if request.most is not None and (pair := found[i]) is not None:
                check_size(request.key, len(pair[0]), request.most)
        there = sum(replies[1::2]) if cluster else replies[1]
        if there != len(datas) - datas.count(None):
            found[-1] = b"", b""
        return found

    def _part(self, request: Request) -> RedisCommand:
        unless = request.unless if isinstance(request.unless, bytes) else b""
        return self._step(request.key, [request.span or Span(0)], unless, b"", request.most)

    def _range(self, request: Request) -> RedisCommand:
        """Bytes alone, which cost half of what the script does."""
        span = request.span
        size = None if span is None or span.start < 0 else _size(span)
        if span is None or size is None or request.unless is not None:
            return self._part(request)
        place = self._keys.value(request.key)
        limit = ReplyLimit(sizes=(min(size, LARGEST),), short=size <= SHORT)
        return command(b"GETRANGE", upto(size), place, *_bounds([span]), limit=limit)

    def _step(
        self,
        key: str,
        spans: Sequence[Span],
        unless: bytes,
        only: bytes,
        most: int | None = None,
    ) -> RedisCommand:
        sizes = [_size(span) for span in spans]
        most = LARGEST if most is None else most
        limits = [_VERSION, *(most if size is None else min(size, LARGEST) for size in sizes)]
        limit = ReplyLimit(len(limits), 0, limits, None in sizes, limits[-1] <= SHORT)
        validator = parts(sizes, unless, only)
        return run(
            READ, validator, self._keys.pair(key), unless, only, *_bounds(spans), limit=limit
        )

    def _expect(self, request: Request, counts: dict[str, int]) -> tuple[int, bool]:
        """Bytes to reckon with, and whether one more of its kind may join the round."""
        key, span, _, _ = request
        size = None if span is None else _size(span)
        if size is not None:
            return size, True
        name = key.rstrip(_NUMBERS)
        array = self._arrays.get(name, _UNKNOWN)
        if array.seen * _GROWTH >= ROUND_KEYS:
            return array.largest, True
        counts[name] = counts.get(name, 0) + 1
        return array.largest, counts[name] <= max(_FIRST, array.seen * _GROWTH)

    def _learn(self, batch: list[tuple[int, Request]], found: dict[int, Found]) -> None:
        arrays = self._arrays
        for i, (key, _, _, _) in batch:
            name = key.rstrip(_NUMBERS)
            array = arrays.get(name)
            if array is None:
                if len(arrays) >= _ARRAYS:
                    arrays.clear()
                array = arrays.setdefault(name, _ArraySizes())
            array.seen += 1
            pair = found[i]
            if pair is not None and len(pair[0]) > array.largest:
                array.largest = len(pair[0])


def _digest(data: bytes) -> bytes:
    # Stored by another program: its bytes are its version.
    return b"sha1:" + sha1(data).hexdigest().encode()


def _part_of(request: Request, reply: list[bytes] | None) -> Found:
    if reply is None:
        return None
    return (reply[1], reply[0]) if len(reply) > 1 else (b"", reply[0])


def _size(span: Span) -> int | None:
    """The most bytes a span can have, where that is known."""
    start, stop = span
    if start < 0:
        return -start
    return None if stop is None else max(stop - start, 0)


def _bounds(spans: Sequence[Span]) -> list[bytes]:
    """First and last byte, as GETRANGE counts: from the end if negative, clipped, inclusive."""
    bounds = []
    for start, stop in (span.bounded for span in spans):
        empty = stop is not None and stop <= max(start, 0)
        first, last = (1, 0) if empty else (start, -1 if stop is None else stop - 1)
        bounds += [b"%d" % first, b"%d" % last]
    return bounds
