"""A driver whose every request is a round trip, in this process: for tests of what is sent."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice

from tensorstash.driver import Buffer, Check, Driver, Request, Span, Tag, Traffic
from tensorstash.drivers.memory import MemoryDriver


class FarDriver(Driver):
    """``driver`` as if it were far away: not ``local``, answers in another order than asked (by
    ``seed``), at most ``concurrency`` at once. ``sent`` lists every request as ``(verb, key)``;
    ``most`` is the most that were under way together."""

    def __init__(self, driver: Driver | None = None, concurrency: int = 8, seed: int = 0) -> None:
        self.driver = driver or MemoryDriver()
        self.scheme = self.driver.scheme
        self.capabilities = replace(
            self.driver.capabilities,
            local=False,
            concurrency=concurrency,
            gap_bytes=1024,
            maps=False,
        )
        self._random = random.Random(seed)
        self.sent: list[tuple[str, str]] = []
        self.most = 0
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def _note(self, verb: str, key: str) -> None:
        self.sent.append((verb, key))
        self._traffic.requests += 1

    def reset(self) -> None:
        self.sent.clear()
        self.most = 0

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        self._note("get", key)
        return self.driver.get_tagged(key, span)

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        todo = enumerate(requests)
        under_way: list[tuple[int, Request]] = []
        while True:
            while len(under_way) < self.capabilities.concurrency:
                item = next(todo, None)
                if item is None:
                    break
                self._note("get", item[1].key)
                under_way.append(item)
            if not under_way:
                return
            self.most = max(self.most, len(under_way))
            i, request = under_way.pop(self._random.randrange(len(under_way)))
            [(_, found)] = self.driver.get_many_tagged([request])
            self._traffic.bytes_read += 0 if found is None else len(found[0])
            yield i, found

    def tag(self, key: str) -> Tag | None:
        self._note("tag", key)
        return self.driver.tag(key)

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        self._note("put", key)
        self._traffic.bytes_written += len(value)
        return self.driver.put(key, value, if_absent=if_absent, if_tag=if_tag)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        todo = iter(items)
        while batch := [*islice(todo, self.capabilities.concurrency)]:
            self.most = max(self.most, len(batch))
            for key, value in batch:
                self._note("put", key)
                self.driver.put(key, value)

    def delete(self, key: str) -> None:
        self._note("delete", key)
        self.driver.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        self._note("delete_many", "")
        self.driver.delete_many(keys)

    def list(self, prefix: str = "") -> Iterator[str]:
        self._note("list", prefix)
        return self.driver.list(prefix)

    def list_dir(self, prefix: str = "") -> tuple[list[str], list[str]]:
        self._note("list", prefix)
        keys, folders = self.driver.list_dir(prefix)
        return [*keys], [*folders]

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        self._note("lock", key)
        return self.driver.lock(key, timeout)

    @property
    def url(self) -> str:
        return self.driver.url
