"""Drivers around a driver: one counts what is asked of it, one fails when told to."""
# ruff: noqa: D102 - their methods promise what those of Driver promise

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..driver import Buffer, Check, Driver, Put, Request, Span, Tag
from ..errors import DriverError
from ..wrapper import WrapperDriver


@dataclass(frozen=True, slots=True)
class Count:
    """What was asked of one verb: calls, keys named (or listed), bytes of values moved."""

    calls: int = 0
    keys: int = 0
    nbytes: int = 0

    def __add__(self, other: Count) -> Count:
        """Both together."""
        return Count(self.calls + other.calls, self.keys + other.keys, self.nbytes + other.nbytes)


_READS = ("get", "get_tagged", "get_many", "get_many_tagged", "get_into", "get_ranges")
_WRITES = ("put", "put_many", "put_each")


class CountingDriver(WrapperDriver):
    """A wrapper around a driver that counts requests by verb; safe in several threads.

    A pickled or forked copy counts for itself.
    """

    def __init__(self, driver: Driver) -> None:
        """Count what is asked of ``driver``."""
        super().__init__(driver)
        self.capabilities = driver.capabilities
        self.reset()

    def reset(self) -> None:
        """Start counting at zero."""
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._counts: dict[str, Count] = defaultdict(Count)

    @property
    def counts(self) -> dict[str, Count]:
        """What was counted so far, by the name of the :class:`Driver` method; a verb that was
        never used is ``Count(0, 0, 0)``."""
        self._check_process()
        with self._guard:
            return defaultdict(Count, self._counts)

    @property
    def reads(self) -> Count:
        """All verbs together that move bytes here. ``get_ranges`` counts its key once."""
        counts = self.counts
        return sum((counts[verb] for verb in _READS), Count())

    @property
    def writes(self) -> Count:
        """All verbs together that store bytes."""
        counts = self.counts
        return sum((counts[verb] for verb in _WRITES), Count())

    def _count(self, verb: str, calls: int = 1, keys: int = 1, nbytes: int = 0) -> None:
        self._check_process()
        with self._guard:
            self._counts[verb] += Count(calls, keys, nbytes)

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # forked: the guard may be held by a thread we lack
            self.reset()

    def __reduce__(self) -> tuple[type[CountingDriver], tuple[Driver]]:
        """Travels as the driver within; counts stay here."""
        return CountingDriver, (self.driver,)

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        value = self.driver.get(key, span)
        self._count("get", nbytes=0 if value is None else len(value))
        return value

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        found = self.driver.get_tagged(key, span)
        self._count("get_tagged", nbytes=0 if found is None else len(found[0]))
        return found

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        self._count("get_many", keys=0)
        for i, value in self.driver.get_many(requests):
            self._count("get_many", calls=0, nbytes=0 if value is None else len(value))
            yield i, value

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        self._count("get_many_tagged", keys=0)
        for i, found in self.driver.get_many_tagged(requests):
            nbytes = 0 if found is None else len(found[0])
            self._count("get_many_tagged", calls=0, nbytes=nbytes)
            yield i, found

    def get_into(self, key: str, out: memoryview) -> int | None:
        size = self.driver.get_into(key, out)
        self._count("get_into", nbytes=min(size or 0, len(out)))
        return size

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        found = self.driver.get_ranges(key, spans, tag)
        self._count("get_ranges", nbytes=0 if found is None else sum(map(len, found[0])))
        return found

    def map(self, key: str) -> memoryview | None:
        self._count("map")
        return self.driver.map(key)

    def tag(self, key: str) -> Tag | None:
        self._count("tag")
        return self.driver.tag(key)

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        self._count("put", nbytes=len(value))
        return self.driver.put(key, value, if_absent=if_absent, if_tag=if_tag)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        def counted() -> Iterator[tuple[str, Buffer]]:
            for key, value in items:
                self._count("put_many", calls=0, nbytes=len(value))
                yield key, value

        self._count("put_many", keys=0)
        self.driver.put_many(counted())

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        def counted() -> Iterator[Put]:
            for put in puts:
                self._count("put_each", calls=0, nbytes=len(put.value))
                yield put

        self._count("put_each", keys=0)
        return self.driver.put_each(counted())

    def delete(self, key: str) -> None:
        self._count("delete")
        self.driver.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        self._count("delete_many", keys=len(keys))
        self.driver.delete_many(keys)

    def put_anew(self, key: str, value: Buffer, tag: Tag) -> Tag:
        self._count("put", nbytes=len(value))
        return self.driver.put_anew(key, value, tag)

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        pairs = [*pairs]
        self._count("delete_each", keys=len(pairs))
        return self.driver.delete_each(pairs)

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        self._count("tags", keys=0)
        for pair in self.driver.tags(prefix, wanted):
            self._count("tags", calls=0)
            yield pair

    def delete_prefix(self, prefix: str) -> None:
        self._count("delete_prefix")
        self.driver.delete_prefix(prefix)

    def prune(self, prefix: str) -> None:
        self._count("prune")
        self.driver.prune(prefix)

    def list(self, prefix: str = "") -> Iterator[str]:
        self._count("list", keys=0)
        return self._counted(self.driver.list(prefix))

    def taken(self, prefix: str = "") -> Iterator[str]:
        self._count("list", keys=0)
        return self._counted(self.driver.taken(prefix))

    def _counted(self, keys: Iterator[str]) -> Iterator[str]:
        for key in keys:
            self._count("list", calls=0)
            yield key

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._count("sizes", keys=0)
        return self.driver.sizes(prefix)

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        found = self.driver.list_dir(prefix)
        self._count("list_dir", keys=len(found[0]) + len(found[1]))
        return found

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        self._count("lock")
        return self.driver.lock(key, timeout)


@dataclass(frozen=True, slots=True)
class Call:
    """One use of one key: the method of :class:`Driver`, the key (or prefix), and how many
    such uses this driver saw before, over all verbs."""

    verb: str
    key: str
    number: int


Fault: TypeAlias = Literal["error", "truncate", "flip"] | Exception
"""``"error"`` raises :class:`DriverError` and does nothing; ``"truncate"`` keeps the first half
of the bytes read or stored; ``"flip"`` inverts one bit in their middle; an exception is raised."""


class FailingDriver(WrapperDriver):
    """A wrapper around a driver that fails when ``when(call)`` returns a :data:`Fault`.

    Damage is done to what a read delivers (each part of ``get_ranges``) or a put stores;
    verbs that move no value can only fail. ``when`` is called in the using thread.
    """

    def __init__(self, driver: Driver, when: Callable[[Call], Fault | None]) -> None:
        """Ask ``when`` before every use of a key of ``driver``."""
        super().__init__(driver)
        self.when = when
        self.capabilities = driver.capabilities
        self._seen = 0

    def _ask(self, verb: str, key: str) -> Fault | None:
        number, self._seen = self._seen, self._seen + 1
        fault = self.when(Call(verb, key, number))
        if fault == "error":
            fault = DriverError(f"{verb} of {key!r} fails as told", key=key, driver=self.scheme)
        if isinstance(fault, Exception):
            raise fault
        return fault

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        fault = self._ask("get", key)
        value = self.driver.get(key, span)
        return None if value is None else _damaged(value, fault)

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        fault = self._ask("get_tagged", key)
        found = self.driver.get_tagged(key, span)
        return None if found is None else (_damaged(found[0], fault), found[1])

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        asked = [*requests]
        for i, value in self.driver.get_many(asked):
            fault = self._ask("get_many", asked[i].key)
            yield i, None if value is None else _damaged(value, fault)

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        keys: list[str] = []

        def noted() -> Iterator[Request]:
            for request in requests:
                keys.append(request.key)
                yield request

        for i, found in self.driver.get_many_tagged(noted()):
            fault = self._ask("get_many_tagged", keys[i])
            yield i, None if found is None else (_damaged(found[0], fault), found[1])

    def get_into(self, key: str, out: memoryview) -> int | None:
        fault = self._ask("get_into", key)
        size = self.driver.get_into(key, out)
        if size and size <= len(out) and fault is not None:
            bad = _damaged(bytes(out[:size]), fault)
            out[: len(bad)] = bad
            return len(bad)
        return size

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        fault = self._ask("get_ranges", key)
        found = self.driver.get_ranges(key, spans, tag)
        return None if found is None else ([_damaged(part, fault) for part in found[0]], found[1])

    def map(self, key: str) -> memoryview | None:
        fault = self._ask("map", key)
        value = self.driver.map(key)
        return None if value is None else memoryview(_damaged(value, fault))

    def tag(self, key: str) -> Tag | None:
        self._ask("tag", key)
        return self.driver.tag(key)

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        fault = self._ask("put", key)
        return self.driver.put(key, _damaged(value, fault), if_absent=if_absent, if_tag=if_tag)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        self.driver.put_many(
            (key, _damaged(value, self._ask("put_many", key))) for key, value in items
        )

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        return self.driver.put_each(
            put._replace(value=_damaged(put.value, self._ask("put_each", put.key))) for put in puts
        )

    def delete(self, key: str) -> None:
        self._ask("delete", key)
        self.driver.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        for key in keys:
            self._ask("delete_many", key)
        self.driver.delete_many(keys)

    def put_anew(self, key: str, value: Buffer, tag: Tag) -> Tag:
        fault = self._ask("put_anew", key)
        return self.driver.put_anew(key, _damaged(value, fault), tag)

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        pairs = [*pairs]
        for key, _ in pairs:
            self._ask("delete_each", key)
        return self.driver.delete_each(pairs)

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        self._ask("tags", prefix)
        return self.driver.tags(prefix, wanted)

    def delete_prefix(self, prefix: str) -> None:
        self._ask("delete_prefix", prefix)
        self.driver.delete_prefix(prefix)

    def prune(self, prefix: str) -> None:
        self._ask("prune", prefix)
        self.driver.prune(prefix)

    def list(self, prefix: str = "") -> Iterator[str]:
        self._ask("list", prefix)
        return self.driver.list(prefix)

    def taken(self, prefix: str = "") -> Iterator[str]:
        self._ask("list", prefix)
        return self.driver.taken(prefix)

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        self._ask("list_dir", prefix)
        return self.driver.list_dir(prefix)

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        self._ask("lock", key)
        return self.driver.lock(key, timeout)


def _damaged(value: Buffer, fault: Fault | None) -> Buffer:
    if fault is None or not len(value):
        return value
    if fault == "truncate":
        return bytes(value)[: len(value) // 2]
    bad = bytearray(value)
    bad[len(bad) // 2] ^= 1
    return bytes(bad)
