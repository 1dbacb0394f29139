"""Benchmarks keep each result with its run, and replace no other; the pages lead to the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept, report
from benchmarks.tables import anchor
from tests.support.project import ROOT


def result(date: str, narrowed: str = "") -> dict[str, Any]:
    return {"run": {"date": date, "narrowed": narrowed}}


def test_a_run_replaces_its_own_result_and_no_other(tmp_path: Path) -> None:
    for name in ("S1", "S3", "cloud", "W1", "W2"):
        kept.store(tmp_path, name, result("2026-01-01"))
    kept.store(tmp_path, "S3", result("2026-02-02"))
    kept.store(tmp_path, "W2", result("2026-03-03"))
    dates = {name: found["run"]["date"] for name, found in kept.load(tmp_path).items()}
    assert dates == {
        "S1": "2026-01-01",
        "S3": "2026-02-02",
        "cloud": "2026-01-01",
        "W1": "2026-01-01",
        "W2": "2026-03-03",
    }


def test_what_another_run_left_meanwhile_stays(tmp_path: Path) -> None:
    before = kept.load(tmp_path)
    kept.store(tmp_path, "redis", result("2026-01-01"))
    kept.store(tmp_path, "cloud", result("2026-01-02"))
    assert before == {}
    assert set(kept.load(tmp_path)) == {"redis", "cloud"}


@pytest.mark.parametrize(
    ("earlier", "now", "allowed"),
    [
        ("", "", True),
        ("", "--quick", False),
        ("", "--by h5py", False),
        ("", "--cores 2", False),
        ("--quick", "", True),
        ("--quick", "--quick", True),
        ("--cores 2", "--quick", False),
        ("--by h5py", "--by Lance", False),
    ],
)
def test_a_narrowed_run_replaces_only_one_narrowed_alike(
    earlier: str, now: str, allowed: bool
) -> None:
    found = {"S1": result("2026-01-01", earlier), "S2": result("2026-01-01", "")}
    assert kept.barred(found, ["S1", "S9"], now) == ([] if allowed else ["S1"])


def test_every_kept_result_has_its_run() -> None:
    found = kept.load(ROOT / "docs")
    assert {f"S{n}" for n in range(1, 9)} | {"codecs", "cloud", "redis", "W1"} <= set(found)
    for name, one in found.items():
        run = one["run"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"]), name
        assert run["commit"] and run["command"].startswith("python -m benchmarks"), name
        assert run["hardware"] and run["versions"] and run["rounds"], name


def test_the_pages_are_those_of_what_is_kept(tmp_path: Path) -> None:
    for name in ("performance.json", "training.json"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    report.write(tmp_path, pictures=False)
    pages = sorted(tmp_path.glob("*.md"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text == (ROOT / "docs" / page.name).read_text(encoding="utf-8"), (
            f"docs/{page.name}: run python -m benchmarks page"
        )
        for target, title in re.findall(r"\]\(([\w-]*(?:\.md)?)#([^)]+)\)", text):
            other = (tmp_path / target).read_text(encoding="utf-8") if target else text
            titles = re.findall(r"^#+ (.+)$", other, flags=re.MULTILINE)
            assert title in [anchor(one) for one in titles]


def test_pages_of_a_partial_run_are_whole_pages(tmp_path: Path) -> None:
    report.write(tmp_path, pictures=False)
    assert "make bench-quick" in (tmp_path / "performance.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    kept.store(tmp_path, "S8", found["S8"])
    report.write(tmp_path, pictures=False)
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "Open an array" in text
    assert "Read a whole array" not in text
