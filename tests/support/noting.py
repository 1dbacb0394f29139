"""A driver that notes which keys are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tensorstash.driver import Buffer, Put, Request, Span, Tag
from tensorstash.testing.counting import CountingDriver


class Noting(CountingDriver):
    """``driver`` itself. ``read`` and ``stored`` list the keys, each time that it happens."""

    def reset(self) -> None:
        super().reset()
        self.read: list[str] = []
        self.stored: list[str] = []

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        self.read.append(key)
        return super().get_tagged(key, span)

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        self.read.append(key)
        return super().get(key, span)

    def get_into(self, key: str, out: memoryview) -> int | None:
        self.read.append(key)
        return super().get_into(key, out)

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        return super().get_many(self._noted(requests))

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        return super().get_many_tagged(self._noted(requests))

    def _noted(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            self.read.append(request.key)
            yield request

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        self.stored.append(key)
        return super().put(key, value, if_absent=if_absent, if_tag=if_tag)

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        def noted() -> Iterator[Put]:
            for put in puts:
                self.stored.append(put.key)
                yield put

        return super().put_each(noted())
