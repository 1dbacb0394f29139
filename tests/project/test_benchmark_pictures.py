"""Words in the pictures of the benchmarks lie neither over each other nor outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import expect, kept, labels, picture
from benchmarks.expect import Case, Row
from benchmarks.labels import plt
from benchmarks.training import picture as training_picture
from tests.support.project import ROOT


def shuffled(count: int) -> dict[str, Any]:
    """W1 with ``count`` contestants, all nearly as fast and as random."""
    lines = [
        {
            "library": "tensorstash" if n % 5 == 0 else "webdataset",
            "variant": f"a rather long way to go about it, {n}",
            "error": None,
            "packed": "no" if n % 2 else "lz4",
            "rate": 1000 + n,
            "quality": {"blocks": 62.0},
        }
        for n in range(count)
    ]
    part = {"data": "smooth", "cores": 2, "results": lines}
    return {
        "sets": [part],
        "batch": 64,
        "random": {"blocks": 62.1},
        "run": {"date": "2026-01-01"},
    }


def test_overlapping_words_are_found(tmp_path: Path) -> None:
    figure, axes = plt.subplots()
    axes.text(0.5, 0.5, "one word")
    axes.text(0.52, 0.51, "another")
    with pytest.raises(labels.Unreadable, match="lies over"):
        labels.save(figure, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_words_that_are_cut_off_are_found() -> None:
    figure, axes = plt.subplots()
    axes.text(0.9, 0.5, "a word that goes on for longer than the picture is wide")
    assert any("cut off" in fault for fault in labels.faults(figure))
    plt.close(figure)


@pytest.mark.parametrize("count", [1, 2, 38, 60])
def test_names_of_contestants_stand_apart(tmp_path: Path, count: int) -> None:
    training_picture.draw(shuffled(count), tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 2, 13, 40])
@pytest.mark.parametrize("spread", [1.0001, 3.0, 1e4])
def test_what_one_does_stands_apart(tmp_path: Path, count: int, spread: float) -> None:
    names = ("TensorStore", "zarrs", "zarr-python", "icechunk", "h5py", "PyTables", "Lance")
    others = {name: 1.0 + n for n, name in enumerate(names)}
    cases = (Case(1 / spread, others), Case(spread, others))
    rows = [
        Row(f"part {n // 10}", f"something that one does, number {n}", "S1", "", cases)
        for n in range(count)
    ]
    picture.draw(rows, tmp_path / "performance.png")
    assert (tmp_path / "performance.png").stat().st_size > 1000


def test_the_pictures_of_the_docs_can_be_read(tmp_path: Path) -> None:
    found = kept.load(ROOT / "docs")
    picture.draw(expect.rows(found), tmp_path / "performance.png")
    training_picture.draw(found["W1"], tmp_path / "training.png")
