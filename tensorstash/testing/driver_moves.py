"""What a driver promises that moves values by renaming, or says that it does not."""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

from ..driver import Driver


def _stored(driver: Driver) -> dict[str, bytes]:
    return {key: bytes(driver.get(key) or b"") for key in driver.list()}


class DriverMoves:
    """Part of :class:`~tensorstash.testing.DriverContract`."""

    def test_renames_all_below_a_prefix_or_nothing(self, driver: Driver) -> None:
        for key in ("a/zarr.json", "a/c/0", "a/b/c/1", "ab/c/0", "there/k"):
            driver.put(key, key.encode())
        before = _stored(driver)
        assert not driver.rename("a/", driver, "there/")  # there is something
        assert not driver.rename("none/", driver, "new/")  # nothing is here
        assert _stored(driver) == before
        if not driver.rename("a/", driver, "x/y/"):
            assert _stored(driver) == before
            return
        moved = {"x/y/" + key[2:] if key[:2] == "a/" else key: before[key] for key in before}
        assert _stored(driver) == moved
        driver.put("a/c/0", b"anew")
        assert _stored(driver) == {**moved, "a/c/0": b"anew"}
