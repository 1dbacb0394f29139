"""A repository against a plain dict of versions, with transactions that overlap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Buffer, Driver, Tag
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tests.support.every_place import KINDS, place
from tests.versions.model import Model

OPERATIONS = (
    "begin", "create", "write", "append", "shrink", "delete", "abort", "commit", "rebased",
    "conflict", "tag", "branch", "reset", "look",
)  # fmt: skip


def run(driver: Driver, seed: int, steps: int) -> Counter[str]:
    model = Model(driver, seed)
    for _ in range(steps):
        model.step()
    model.finish()
    return model.seen


def test_every_version_is_what_was_committed(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(24):
        try:
            seen += run(MemoryDriver({}), seed, 50)
        except Exception as error:
            raise AssertionError(f"with seed {seed}") from error
    for seed in range(3):
        seen += run(FileDriver(tmp_path / str(seed)), seed, 40)
    assert all(seen[each] > 2 for each in OPERATIONS), seen


# Elsewhere what differs is the driver, not the repository.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("file", "memory", "zarr")])
def test_on_every_driver(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        if not driver.capabilities.conditional_put:
            pytest.skip("one writer at a time")
        seen = run(driver, 7, 60)
    assert seen["rebased"] + seen["commit"] > 2


class Unguarded(MemoryDriver):
    """Takes the condition of a branch's put away: what the model must notice."""

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Any:
        if key.startswith("branch/"):
            if_tag = None
        return super().put(key, value, if_absent=if_absent, if_tag=if_tag)


def test_the_model_notices_a_commit_without_its_condition() -> None:
    found = 0
    for seed in range(10):
        try:
            run(Unguarded({}), seed, 60)
        except AssertionError:
            found += 1
    assert found >= 5
