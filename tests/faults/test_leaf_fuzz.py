"""Every codec, document and stored chunk, damaged at random: nothing but our errors leaves, and
little memory is taken."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.hostile import in_little_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on memory")

CASES = {"made": 600, "filtered": 800, "decoded": 1500, "documents": 700, "chunks": 400}
"""How many of each campaign in the usual run."""


def fuzz(campaign: str, seed: int, cases: int) -> dict[str, int]:
    code = f"""
        from tests.support import leaf_fuzz
        leaf_fuzz.places()
        small(500)
        leaf_fuzz.run({campaign!r}, {seed}, {cases})
    """
    seen: dict[str, int] = json.loads(in_little_memory(code, 500))
    return seen


@pytest.mark.parametrize("campaign", CASES)
def test_nothing_but_our_errors_leaves(campaign: str) -> None:
    seen = fuzz(campaign, 1, CASES[campaign])
    assert seen["fine"] > 20, seen
    assert seen.get("Corrupt", 0) + seen.get("Invalid", 0) > 20, seen


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("campaign", CASES)
def test_nothing_but_our_errors_leaves_in_long_runs(campaign: str, seed: int) -> None:
    fuzz(campaign, seed, 10 * CASES[campaign])
