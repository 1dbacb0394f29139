"""What a driver promises that writes within stored values, or that it says it does not."""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

import multiprocessing

import pytest

from ..driver import Buffer, Driver, Parts, Request, Span
from ..errors import Corrupt, Invalid, Unsupported
from .driver_races import needs, run_in_processes

_ROW, _ROWS = 5000, 30


def _write_rows(driver: Driver, numbers: multiprocessing.SimpleQueue[int]) -> None:
    me = numbers.get()
    for row in range(me, _ROWS, 3):
        data = bytes([row + 1]) * _ROW
        driver.put_parts([Parts("shared/c/0", _ROW * _ROWS, b"\0", [(row * _ROW, data)])])


class DriverParts:
    """Part of :class:`~tensorstash.testing.DriverContract`."""

    def test_writes_parts_of_values_in_place_or_says_that_it_cannot(self, driver: Driver) -> None:
        parts: list[tuple[int, Buffer]] = [(7, b"one"), (0, memoryview(b"two")), (8, b"X")]
        if not driver.capabilities.in_place:
            with pytest.raises(Unsupported):
                driver.put_parts([Parts("a/k", 12, b"\0", parts)])
            with pytest.raises(Unsupported):
                driver.flush("a/")
            assert driver.get("a/k") is None
            return
        driver.put_parts([Parts("a/k", 12, b"\1\2\3", parts), Parts("a/zero", 6, b"\0\0", ())])
        expected = b"two\1\2\3\1oXe\2\3"
        assert bytes(driver.get("a/k") or b"") == expected
        assert bytes(driver.get("a/zero") or b"") == bytes(6)
        driver.put_parts([Parts("a/k", 12, b"\0", [(11, b"!")])])
        expected = expected[:11] + b"!"
        assert bytes(driver.get("a/k") or b"") == expected
        driver.flush("a/")
        driver.flush("")
        for size in (11, 13):
            with pytest.raises(Corrupt) as caught:
                driver.put_parts([Parts("a/k", size, b"\0", [(0, b"no")])])
            assert caught.value.key == "a/k"
        assert bytes(driver.get("a/k") or b"") == expected
        driver.put_parts([Parts("a/k", 4, b"\0", [(0, b"full")])])  # all of it
        assert bytes(driver.get("a/k") or b"") == b"full"
        driver.delete("a/k")
        driver.put_parts([Parts("a/k", 4, b"\7", [(1, b"ab")])])
        assert bytes(driver.get("a/k") or b"") == b"\7ab\7"
        assert sorted(driver.list("a/")) == ["a/k", "a/zero"]
        for key in ("", "../x", "a//b", "/abs"):
            with pytest.raises(Invalid):
                driver.put_parts([Parts(key, 4, b"\0", [(0, b"no")])])

    def test_shows_at_once_what_is_written_in_place(self, driver: Driver) -> None:
        needs(driver.capabilities.in_place)
        driver.put_parts([Parts("a/k", 10_000, b"\0", [(10, b"one")])])
        if driver.capabilities.local:
            view = driver.view("a/k")
            assert view is not None and view.readonly and bytes(view[10:13]) == b"one"
            driver.put_parts([Parts("a/k", 10_000, b"\0", [(10, b"two")])])
            assert bytes(view[10:13]) == b"two"
            assert driver.view("absent") is None
            driver.put("a/k", b"another")
            again = driver.view("a/k")
            assert again is not None and bytes(again) == b"another"
            driver.delete("a/k")
            assert driver.view("a/k") is None
            return
        asked = [Request("a/k", Span(9, 14)), Request("absent", Span(0, 4)), Request("a/k")]
        found = dict(driver.get_parts(asked))
        assert [each and bytes(each[0][:5]) for each in (found[0], found[1], found[2])] == [
            b"\0one\0",
            None,
            bytes(5),
        ]
        [(_, beyond)] = driver.get_parts([Request("a/k", Span(10_000, 10_004))])
        assert beyond is not None and bytes(beyond[0]) == b""

    def test_loses_no_part_between_processes(self, driver: Driver) -> None:
        needs(driver.capabilities.in_place and driver.capabilities.shared)
        context = multiprocessing.get_context("fork")
        numbers = context.SimpleQueue()
        for me in range(3):
            numbers.put(me)
        run_in_processes(context, 3, _write_rows, driver, numbers)
        expected = b"".join(bytes([row + 1]) * _ROW for row in range(_ROWS))
        assert bytes(driver.get("shared/c/0") or b"") == expected
