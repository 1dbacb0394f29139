"""Two disk caches on one folder beside the plain driver: Hypothesis tries to tell them apart."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensorstash.driver import Buffer, Changed, Request, Span, Tag
from tensorstash.drivers.diskcache.driver import DiskCache
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import Conflict
from tensorstash.testing.counting import Count, CountingDriver

KEYS = st.sampled_from(["c/0", "c/1", "c/2", "d/0"])
SIZES = st.sampled_from([0, 1, 10, 4000, 9000, 300_000])
EDGES = st.integers(0, 12) | st.sampled_from([3999, 4000, 262_143, 262_144, 262_145, 300_000])
SPANS = st.builds(Span, EDGES | EDGES.map(lambda edge: -max(edge, 1))) | st.tuples(
    EDGES, EDGES
).map(lambda pair: Span(min(pair), max(pair)))
WHICH = st.integers(0, 1)
ROOMY = 64 << 20


class Caches(RuleBasedStateMachine):
    """Every read is made by one of the caches and by the driver."""

    limit = ROOMY
    immutable = False

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.plain = FileDriver(self.root / "remote")
        self.remote = CountingDriver(self.plain)
        self.caches = [self.connect(), self.connect()]
        self.count = 0
        self.old: list[Tag] = []

    def connect(self) -> DiskCache:
        return DiskCache(self.remote, self.root / "cache", self.limit, self.immutable)

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def value(self, size: int) -> bytes:
        self.count += 1
        return (b"%06d:" % self.count * (size // 7 + 1))[:size]

    # -- writes -------------------------------------------------------------------

    @rule(key=KEYS, size=SIZES, by=st.integers(0, 2))
    def put(self, key: str, size: int, by: int) -> None:
        writer = [*self.caches, self.plain][by]
        if self.immutable:  # then a value is written once
            if self.plain.tag(key) is None:
                writer.put(key, self.value(size), if_absent=True)
            return
        before = self.plain.tag(key)
        if before is not None:
            self.old.append(before)
        self.old.append(writer.put(key, self.value(size)))

    @precondition(lambda self: not self.immutable)
    @rule(key=KEYS, size=SIZES, which=WHICH, fresh=st.booleans())
    def swap(self, key: str, size: int, which: int, fresh: bool) -> None:
        found = self.caches[which].get_tagged(key)
        if found is None:
            return
        assert found[1] == self.plain.tag(key)
        if not fresh:
            self.plain.put(key, self.value(size))
            with pytest.raises(Conflict):
                self.caches[which].put(key, b"lost", if_tag=found[1])
        else:
            self.caches[which].put(key, self.value(size), if_tag=found[1])

    @precondition(lambda self: not self.immutable)
    @rule(key=KEYS, by=st.integers(0, 2), prefix=st.booleans())
    def delete(self, key: str, by: int, prefix: bool) -> None:
        writer = [*self.caches, self.plain][by]
        if prefix:
            writer.delete_prefix(key[:2])
        else:
            writer.delete(key)

    # Positions are drawn as thousandths: names and sizes of files differ from run to run.
    @rule(
        kind=st.sampled_from(["flip", "cut", "remove", "mix"]),
        which=st.integers(0, 999),
        at=st.integers(0, 999),
    )
    def tamper(self, kind: str, which: int, at: int) -> None:
        files = sorted((self.root / "cache").glob("??/*"))
        if not files:
            return
        path = files[which * len(files) // 1000]
        content = bytearray(path.read_bytes())
        place = at * len(content) // 1000
        if kind == "flip" and content:
            content[place] ^= 1
            path.write_bytes(content)
        elif kind == "cut":
            path.write_bytes(content[:place])
        elif kind == "remove":
            path.unlink()
        elif kind == "mix":
            other = files[at * len(files) // 1000]
            # What another puts there is not counted, so it must not take more room.
            if blocks(other) <= blocks(path):
                shutil.copy(other, self.root / "copy")
                (self.root / "copy").rename(path)

    # -- reads --------------------------------------------------------------------

    @rule(key=KEYS, span=st.none() | SPANS, which=WHICH, verb=st.integers(0, 3))
    def read(self, key: str, span: Span | None, which: int, verb: int) -> None:
        mine, expected = self.caches[which], self.plain.get_tagged(key, span)
        hits = mine.counts.hits
        self.remote.reset()
        if verb == 0:
            assert _copy(mine.get_tagged(key, span)) == _copy(expected)
        elif verb == 1:
            found = mine.get(key, span)
            assert (None if found is None else bytes(found)) == (expected and expected[0])
        elif verb == 2:
            [(i, value)] = mine.get_many([Request(key, span)])
            assert (i, value and bytes(value)) == (0, expected and expected[0])
        else:
            out, same = bytearray(5000), bytearray(5000)
            size, right = mine.get_into(key, memoryview(out)), self.plain.get_into(key, same)
            assert size == right or min(size or 0, right or 0) > 5000
            assert size is None or size > 5000 or out == same
            expected = self.plain.get_tagged(key)
        hit = mine.counts.hits > hits
        nbytes = 0 if hit or expected is None else len(expected[0])
        if hit and self.immutable:
            assert self.remote.counts == {}
        else:
            counts = self.remote.counts
            # A large body is read after the answer: found damaged, it costs a second request.
            again = counts.pop("get_tagged", Count())
            assert again == (Count(1, 1, nbytes) if again.calls else Count())
            assert counts == {"get_many_tagged": Count(1, 1, nbytes - again.nbytes)}
        if self.limit == ROOMY and expected is not None:
            self.remote.reset()
            assert _copy(self.caches[1 - which].get_tagged(key, span)) is not None
            assert self.remote.reads.nbytes == 0

    @rule(
        asked=st.lists(st.tuples(KEYS, st.none() | SPANS, st.integers(0, 5)), max_size=8),
        which=WHICH,
    )
    def read_many(self, asked: list[Any], which: int) -> None:
        requests = []
        for key, span, kind in asked:
            unless: Tag | None = None
            if kind == 1:
                unless = self.plain.tag(key)
            elif kind in (2, 3) and len(self.old) >= kind and not self.immutable:
                unless = self.old[-kind]
            requests.append(Request(key, span, unless))
        self.remote.reset()
        found = dict(self.caches[which].get_many_tagged(iter(requests)))
        assert len(found) == len(requests)
        wanted = 0
        for i, (key, span, unless, _) in enumerate(requests):
            expected = _copy(self.plain.get_tagged(key, span))
            if expected is not None and unless == expected[1]:
                expected = b"", expected[1]
            assert _copy(found[i]) == expected
            wanted += len(self.plain.get(key, span) or b"")
        counts = self.remote.counts["get_many_tagged"]
        assert self.immutable or (counts.calls, counts.keys) == ((1 if asked else 0), len(asked))
        assert self.remote.reads.nbytes <= wanted
        assert self.remote.reads.keys <= len(asked) + self.remote.counts["get_tagged"].keys

    @rule(
        key=KEYS,
        spans=st.lists(SPANS, min_size=1, max_size=3),
        which=WHICH,
        version=st.integers(0, 2),
    )
    def read_ranges(self, key: str, spans: list[Span], which: int, version: int) -> None:
        tag: Tag | None = None
        if version == 1:
            tag = self.plain.tag(key)
        elif version == 2 and self.old and not self.immutable:
            tag = self.old[-1]

        def outcome(driver: Any) -> Any:
            try:
                found = driver.get_ranges(key, spans, tag)
            except Changed:
                return "changed"
            return found and ([*map(bytes, found[0])], found[1])

        expected = outcome(self.plain)
        # A block found damaged takes its file along, out of which the same call may have been
        # answered for another span: the second call keeps that anew.
        assert outcome(self.caches[which]) == expected
        assert outcome(self.caches[which]) == expected
        self.remote.reset()
        assert outcome(self.caches[1 - which]) == expected
        if self.limit == ROOMY and isinstance(expected, tuple):
            # Not a byte is moved again.
            assert not any(count.nbytes for count in self.remote.counts.values())
            assert sum(count.calls for count in self.remote.counts.values()) <= 1

    @rule(which=WHICH)
    def restart(self, which: int) -> None:
        self.caches[which] = self.connect()

    @invariant()
    def the_disk_is_not_overfull(self) -> None:
        files = [path for path in (self.root / "cache").rglob("*") if path.is_file()]
        assert not [path for path in files if path.parent.name == ".tensorstash-partial"]
        assert sum(map(blocks, files)) * 4096 <= self.limit + 4096


def blocks(path: Path) -> int:
    return -(-path.stat().st_size // 4096)


def _copy(found: tuple[Buffer, Tag] | None) -> tuple[bytes, Tag] | None:
    return None if found is None else (bytes(found[0]), found[1])


class Small(Caches):
    """The largest value is never kept, and six of the others fill it."""

    limit = 64 << 10


class Medium(Caches):
    """Two of the largest do not fit."""

    limit = 700_000


class Immutable(Caches):
    immutable = True


class SmallImmutable(Caches):
    immutable = True
    limit = 64 << 10


for _machine in (Caches, Small, Medium, Immutable, SmallImmutable):
    _machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestRoomy = Caches.TestCase
TestSmall = Small.TestCase
TestMedium = Medium.TestCase
TestImmutable = Immutable.TestCase
TestSmallImmutable = SmallImmutable.TestCase
