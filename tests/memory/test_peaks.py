"""The most memory that a process holds beyond its results: the limit, and one chunk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.memory.workloads import MIB, WORKS
from tests.support.project import ROOT
from tests.support.remote import remote

LOCAL = [*WORKS]
REMOTE = ["read", "read_shards", "gather", "read_cached", "write", "write_shards", "merge", "copy"]
SLACK = 2 * MIB
"""What the interpreter, libraries and stacks of threads come to hold meanwhile."""


def run(**asked: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory.workloads"],
        input=json.dumps(asked),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout) if done.stdout else {}


def check(work: str, place: str, options: Any, limit: float, mib: int, chunk: float) -> None:
    asked = {"work": work, "place": place, "options": options, "mib": mib, "chunk": chunk}
    run(**asked, limit=None, filling=True)
    found = run(**asked, limit=int(limit * MIB), filling=False)
    whole = chunk * (8 if work.endswith("shards") else 1)
    assert found["peak"] <= 1.1 * (limit + whole) * MIB + SLACK, found
    assert found["use"]["total"] <= limit * MIB


def there(kind: str, request: pytest.FixtureRequest) -> tuple[str, Any]:
    place = remote(kind, request.getfixturevalue)
    return place.base, dict(place.options)


def test_a_gather_beside_a_cache(tmp_path: Path) -> None:
    check("gather_cached", str(tmp_path), None, limit=16, mib=40, chunk=1)


@pytest.mark.long
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("work", LOCAL)
def test_every_work_on_files(work: str, chunk: int, tmp_path: Path) -> None:
    check(work, str(tmp_path), None, limit=64, mib=160, chunk=chunk)


@pytest.mark.long
def test_large_chunks(tmp_path: Path) -> None:
    check("read", str(tmp_path), None, limit=300, mib=512, chunk=256)


@pytest.mark.long
@pytest.mark.parametrize("work", ["gather", "gather_cached"])
@pytest.mark.parametrize(("mib", "chunk"), [(640, 1 / 16), (64, 1 / 256)])
def test_a_gather_over_ten_thousand_chunks(
    work: str, mib: int, chunk: float, tmp_path: Path
) -> None:
    check(work, str(tmp_path), None, limit=32, mib=mib, chunk=chunk)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3fs", "obstore", "redis"])
@pytest.mark.parametrize("work", REMOTE)
def test_every_work_on_servers(work: str, kind: str, request: pytest.FixtureRequest) -> None:
    check(work, *there(kind, request), limit=24, mib=96, chunk=1)
