"""What a driver promises about values, keys and listings to one user at a time."""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from ..driver import Buffer, Changed, Driver, Request, Span
from ..errors import Invalid, Unsupported

_HOSTILE = ["", "/", "/abs", "..", "../x", "a/../../x", "a/..", ".", "a/.", "a//b", "a/"]
_HOSTILE += ["a\\b", "..\\x", "a\0b"]

_WEIRD = ["with space", "ünï/cødé", "100%", "a%2Fb", "c#1?x=y&z", "a+b=c", "~tilde", ".zgroup"]
_WEIRD += ["semi;colon:at@", "quote'\"", "*[x]{y}", "😀/🗻", "n" * 200, "-rf", "dots...", "..x"]


def as_value(value: Buffer | None) -> bytes | None:
    """A copy of what a driver returned."""
    return None if value is None else bytes(value)


def _shorts(value: bytearray) -> memoryview:
    return memoryview(value).cast("H")


def _spread(value: bytearray) -> memoryview:
    return memoryview(bytearray(b"".join(bytes((byte, 0)) for byte in value)))[::2]


class DriverValues:
    """Part of :class:`~tensorstash.testing.DriverContract`."""

    many: ClassVar[int] = 500
    """Keys in the test of many keys."""

    def reconnect(self, driver: Driver) -> Driver:
        """Another handle on the same data."""
        if not driver.capabilities.shared:
            return driver
        found = pickle.loads(pickle.dumps(driver))
        assert isinstance(found, Driver)
        return found

    @pytest.mark.parametrize("size", [0, 1, 2, 4096, 65536, 65537, 8 << 20])
    def test_round_trip(self, driver: Driver, size: int) -> None:
        value = os.urandom(size)
        driver.put("c/0/1", value)
        found = driver.get("c/0/1")
        assert found is not None and bytes(found) == value
        tagged = driver.get_tagged("c/0/1")
        assert tagged is not None and bytes(tagged[0]) == value
        [(i, many)] = driver.get_many([Request("c/0/1")])
        assert i == 0 and many is not None and bytes(many) == value
        out = bytearray(size)
        assert driver.get_into("c/0/1", memoryview(out)) == size
        assert out == value
        again = self.reconnect(driver).get("c/0/1")
        assert again is not None and bytes(again) == value

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, _shorts, _spread])
    def test_put_takes_any_buffer_and_keeps_its_own_copy(self, driver: Driver, kind: Any) -> None:
        source = bytearray(b"0123456789")
        driver.put("k", kind(source))
        source[:] = b"overwritten"[:10]
        assert as_value(driver.get("k")) == b"0123456789"
        driver.put("empty", kind(bytearray()))
        assert as_value(driver.get("empty")) == b""

    def test_absent_is_none(self, driver: Driver) -> None:
        driver.put("there/x", b"1")
        for key in ("absent", "absent/too", "there", "there/x/below", "there/xx", "ther"):
            assert driver.get(key) is None
            assert driver.get(key, Span(0, 1)) is None
            assert driver.get_tagged(key) is None
            assert driver.get_into(key, memoryview(bytearray(4))) is None
            assert driver.get_ranges(key, [Span(0, 1)]) is None
            assert driver.tag(key) is None
            found = driver.get_many([Request(key), Request(key, Span(-1))])
            assert dict(found) == {0: None, 1: None}

    @pytest.mark.parametrize(
        "span",
        [
            *(Span(0), Span(0, 10), Span(0, 3), Span(3, 7), Span(5), Span(9, 10), Span(-1)),
            *(Span(-3), Span(-10), Span(-11), Span(-1000), Span(0, 11), Span(7, 1000)),
            *(Span(0, 0), Span(4, 4), Span(10, 10), Span(10), Span(11), Span(50, 60)),
        ],
    )
    @pytest.mark.parametrize("value", [b"0123456789", b""])
    def test_spans(self, driver: Driver, value: bytes, span: Span) -> None:
        driver.put("k", value)
        start, stop = span.resolve(len(value))
        expected = value[start:stop]
        assert as_value(driver.get("k", span)) == expected
        tagged = driver.get_tagged("k", span)
        assert tagged is not None and bytes(tagged[0]) == expected
        assert tagged[1] == driver.tag("k")
        assert [(i, as_value(v)) for i, v in driver.get_many([Request("k", span)])] == [
            (0, expected)
        ]
        ranges = driver.get_ranges("k", [span, Span(0), span])
        assert ranges is not None and [*map(bytes, ranges[0])] == [expected, value, expected]

    def test_get_many_answers_each_request_once(self, driver: Driver) -> None:
        values = {f"c/{i}": os.urandom(i * 5000) for i in range(20)}
        driver.put_many(values.items())
        requests = [Request(f"c/{i}") for i in (*range(19, -1, -1), 3, 3, 25)]
        requests += [Request("c/7", Span(10, 20)), Request("c/7", Span(-5)), Request("no/such")]
        expected = [
            None if (v := values.get(key)) is None else v[slice(*(span or Span(0)).resolve(len(v)))]
            for key, span, *_ in requests
        ]
        # A buffer is only good until the next is asked for: copy each at once.
        found = [(i, as_value(v)) for i, v in driver.get_many(r for r in requests)]
        assert sorted(i for i, _ in found) == [*range(len(requests))]
        assert all(value == expected[i] for i, value in found)
        assert [*driver.get_many([])] == []

    @pytest.mark.parametrize("far", [1 << 62, 1 << 63, 1 << 70])
    def test_spans_beyond_any_size(self, driver: Driver, far: int) -> None:
        driver.put("k", b"0123456789")
        for span, part in (
            (Span(0, far), b"0123456789"),
            (Span(3, far), b"3456789"),
            (Span(far), b""),
            (Span(far, far + 1), b""),
            (Span(-far), b"0123456789"),
            (Span(-far, 2), b"01"),
        ):
            assert as_value(driver.get("k", span)) == part
            [(_, found)] = driver.get_many_tagged([Request("k", span)])
            assert found is not None and as_value(found[0]) == part
            ranges = driver.get_ranges("k", [span])
            assert ranges is not None and as_value(ranges[0][0]) == part

    def test_get_many_tagged(self, driver: Driver) -> None:
        tags = {f"c/{i}": driver.put(f"c/{i}", b"%d" % i * 100) for i in range(30)}
        requests = [Request(f"c/{i}", None if i % 2 else Span(i, i + 50)) for i in range(35)]
        taken = iter(requests)
        found = dict(driver.get_many_tagged(taken))
        assert [*taken] == [] and sorted(found) == [*range(35)]
        for i, (key, span, *_) in enumerate(requests):
            if i >= 30:
                assert found[i] is None
                continue
            value, tag = found[i] or (b"", None)
            start, stop = (span or Span(0)).resolve(len(b"%d" % i * 100))
            assert bytes(value) == (b"%d" % i * 100)[start:stop] and tag == tags[key]
        # Buffers stay what they are while later ones arrive.
        kept = [pair for _, pair in driver.get_many_tagged(Request(key) for key in tags)]
        assert {bytes(value) for value, _ in filter(None, kept)} == {
            b"%d" % i * 100 for i in range(30)
        }
        assert [*driver.get_many_tagged([])] == []

    def test_get_many_tagged_spares_what_the_asker_holds(self, driver: Driver) -> None:
        old = driver.put("k", b"0123456789")
        asked = [Request("k", None, old), Request("k", Span(-3), old), Request("gone", None, old)]
        assert [*sorted(driver.get_many_tagged(asked))] == [
            (0, (b"", old)),
            (1, (b"", old)),
            (2, None),
        ]
        new = driver.put("k", b"abcdefghij")
        answers = {
            i: None if pair is None else (bytes(pair[0]), pair[1])
            for i, pair in driver.get_many_tagged(asked)
        }
        assert answers == {0: (b"abcdefghij", new), 1: (b"hij", new), 2: None}

    def test_get_many_tagged_may_be_left_early(self, driver: Driver) -> None:
        for i in range(10):
            driver.put(f"c/{i}", b"1")
        for _ in range(3):
            for _, found in driver.get_many_tagged(Request(f"c/{i % 10}") for i in range(1000)):
                assert found is not None
                break
        assert as_value(driver.get("c/3")) == b"1"

    def test_get_into_sizes(self, driver: Driver) -> None:
        for size in (0, 1, 10, 100_000):
            value = os.urandom(size)
            driver.put("k", value)
            out = bytearray(b"\xee" * (size + 20))
            assert driver.get_into("k", memoryview(out)) == size
            assert out == value + b"\xee" * 20
            for room in {0, size // 2, max(size - 1, 0)} - {size}:
                answer = driver.get_into("k", memoryview(bytearray(room)))
                assert answer is not None and answer > room

    def test_get_ranges_are_of_one_version(self, driver: Driver) -> None:
        old = driver.put("k", b"a" * 100)
        found = driver.get_ranges("k", [Span(0, 5), Span(-5)], old)
        assert found is not None and found[1] == old
        new = driver.put("k", b"b" * 100)
        with pytest.raises(Changed):
            driver.get_ranges("k", [Span(0, 5)], old)
        assert driver.get_ranges("k", [Span(0, 5)], new) is not None
        driver.delete("k")
        with pytest.raises(Changed):
            driver.get_ranges("k", [Span(0, 5)], new)

    def test_maps_values_that_stay_or_says_that_it_cannot(self, driver: Driver) -> None:
        value = os.urandom(10_000)
        driver.put("a/k", value)
        if not driver.capabilities.maps:
            with pytest.raises(Unsupported):
                driver.map("a/k")
            return
        view = driver.map("a/k")
        assert view is not None and view.readonly and bytes(view) == value
        assert [driver.map(key) for key in ("absent", "a", "a/k/below", "ab/sent")] == [None] * 4
        driver.put("a/k", b"another")
        again = driver.map("a/k")
        assert bytes(view) == value and as_value(again) == b"another"
        driver.delete("a/k")
        driver.put("a/k", value[::-1])
        driver.delete_prefix("a/")
        assert bytes(view) == value and as_value(again) == b"another"
        assert driver.map("a/k") is None
        driver.put("empty", b"")
        assert as_value(driver.map("empty")) == b""
        for key in _HOSTILE:
            with pytest.raises(Invalid):
                driver.map(key)

    @pytest.mark.parametrize("key", _WEIRD)
    def test_weird_keys(self, driver: Driver, key: str) -> None:
        driver.put(key, b"1")
        driver.put("dir/" + key, b"2")
        assert as_value(driver.get(key)) == b"1"
        assert sorted(driver.list()) == sorted([key, "dir/" + key])
        first = key.split("/")[0]
        assert first in [name for names in driver.list_dir("dir/") for name in names]
        driver.delete(key)
        assert [*driver.list()] == ["dir/" + key]

    @pytest.mark.parametrize("key", _HOSTILE)
    def test_hostile_keys_are_refused(self, driver: Driver, key: str) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: driver.get(key),
            lambda: driver.get_tagged(key, Span(0, 1)),
            lambda: driver.get_into(key, memoryview(bytearray(1))),
            lambda: driver.get_ranges(key, [Span(0, 1)]),
            lambda: [*driver.get_many([Request(key)])],
            lambda: driver.tag(key),
            lambda: driver.put(key, b""),
            lambda: driver.put_many([(key, b"")]),
            lambda: driver.delete(key),
            lambda: driver.delete_many([key]),
        ]
        if key.strip("/"):  # "" is every key
            prefix = key if key.endswith("//") else key + "/"
            calls += [
                lambda: [*driver.list(prefix)],
                lambda: driver.list_dir(prefix),
                lambda: driver.delete_prefix(prefix),
            ]
        for call in calls:
            with pytest.raises(Invalid):
                call()

    def test_put_replaces_and_delete_is_idempotent(self, driver: Driver) -> None:
        driver.put("d/k", b"long value")
        driver.put("d/k", b"short")
        assert as_value(driver.get("d/k")) == b"short"
        driver.delete("d/k")
        driver.delete("d/k")
        driver.delete("never/was")
        driver.delete("d")
        assert driver.get("d/k") is None
        assert [*driver.list()] == []

    # -- listings -----------------------------------------------------------------

    def test_listings(self, driver: Driver) -> None:
        keys = ["foo", "foobar/a", "fo/o", "x/zarr.json", "x/c/0/0", "x/c/0/1", "x/c/1/0", "xy"]
        driver.put_many((key, b"1") for key in keys)
        assert sorted(driver.list()) == sorted(keys)
        assert sorted(driver.list("x/")) == sorted(k for k in keys if k.startswith("x/"))
        assert [*driver.list("foo/")] == []
        assert [*driver.list("x/zarr.json/")] == []
        assert [*driver.list("absent/")] == []
        assert _names(driver, "") == (["foo", "xy"], ["fo", "foobar", "x"])
        assert _names(driver, "x/") == (["zarr.json"], ["c"])
        assert _names(driver, "x/c/") == ([], ["0", "1"])
        assert _names(driver, "foo/") == ([], [])
        assert _names(driver, "absent/") == ([], [])

    def test_delete_prefix(self, driver: Driver) -> None:
        keys = ["foo/a", "foo/b/c", "foobar/a", "zarr.json"]
        driver.put_many((key, b"1") for key in keys)
        driver.delete_prefix("foo/")
        assert sorted(driver.list()) == ["foobar/a", "zarr.json"]
        assert _names(driver, "") == (["zarr.json"], ["foobar"])
        driver.delete_prefix("foo/")
        driver.delete_prefix("zarr.json/")
        driver.delete_many(["zarr.json", "absent"])
        assert [*driver.list()] == ["foobar/a"]
        driver.delete_prefix("")
        assert [*driver.list()] == []
        assert _names(driver, "") == ([], [])
        driver.put("foo/a", b"2")
        assert as_value(driver.get("foo/a")) == b"2"

    def test_prune_takes_no_value(self, driver: Driver) -> None:
        keys = ["foo/a", "foo/b/c", "foobar/a", "zarr.json"]
        driver.put_many((key, key.encode()) for key in keys)
        for prefix in ("foo/b/", "foo/", "absent/", "zarr.json/", ""):
            driver.prune(prefix)
            assert driver.remove_link(prefix) is False
        assert {key: as_value(driver.get(key)) for key in driver.list()} == {
            key: key.encode() for key in keys
        }
        driver.delete_many(["foo/a", "foo/b/c"])
        driver.prune("foo/")
        assert sorted(driver.list()) == ["foobar/a", "zarr.json"]

    @pytest.mark.parametrize("name", [".x.lock", ".tensorstash", ".tag{x}", ".zarr.json.lock"])
    def test_what_is_not_kept_is_listed(self, driver: Driver, name: str) -> None:
        if driver.kept(name) is not None:
            assert driver.kept(f"a/{name}/b") == driver.kept(name)
            return
        driver.put(f"a/{name}/b", b"1")
        assert name in driver.list_dir("a/")[1]
        assert driver.kept("a/b") is None

    def test_many_keys(self, driver: Driver) -> None:
        keys = {f"c/{i // 50}/{i % 50}" for i in range(self.many)}
        driver.put_many((key, key.encode()) for key in keys)
        assert {*driver.list()} == keys
        assert len(driver.list_dir("c/0/")[0]) == 50
        requests = [Request(key) for key in sorted(keys)]
        for i, value in driver.get_many(requests):
            assert as_value(value) == requests[i].key.encode()

    # -- handles ------------------------------------------------------------------

    def test_close_is_not_the_end(self, driver: Driver) -> None:
        driver.put("k", b"1")
        driver.close()
        driver.close()
        assert as_value(driver.get("k")) == b"1"

    def test_pickles_small(self, driver: Driver) -> None:
        driver.put("k", b"1")
        pickled = pickle.dumps(driver)
        assert len(pickled) < 2048
        again = pickle.loads(pickled)
        assert as_value(again.get("k")) == b"1"
        assert again.capabilities == driver.capabilities
        assert (again.url, again.scheme) == (driver.url, driver.scheme)

    def test_says_where_it_points(self, driver: Driver) -> None:
        assert driver.url.startswith(driver.scheme + "://")
        assert driver.url in repr(driver)


def _names(driver: Driver, prefix: str) -> tuple[list[str], list[str]]:
    keys, folders = driver.list_dir(prefix)
    return [*keys], [*folders]
