"""What is kept of runs: a file of results by name, each with the run that it came from.

A run replaces the results that it measured and no others. One that was narrowed (``--quick``, or
some libraries or cores alone: ``run["narrowed"]`` has these options) replaces only what was
narrowed alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]
"""By name: ``S1``, ``codecs``, ``W1``; what was measured, and under ``run`` how and when."""

NAME, TRAINING = "performance", "training"


def file(out: Path, name: str) -> Path:
    """Where the result of that name is kept."""
    return out / f"{TRAINING if name.startswith('W') else NAME}.json"


def load(out: Path) -> Results:
    """All that is kept in the folder."""
    return {**_read(out / f"{NAME}.json"), **_read(out / f"{TRAINING}.json")}


def store(out: Path, name: str, result: dict[str, Any]) -> None:
    """Put ``result`` in the place of the earlier one of its name."""
    out.mkdir(parents=True, exist_ok=True)
    path = file(out, name)
    # Read now, not before the measuring: another run may have ended in between.
    kept = {**_read(path), name: result}
    half = path.with_suffix(".half")
    half.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(half, path)


def barred(kept: Results, names: Iterable[str], narrowed: str) -> list[str]:
    """Those of ``names`` that a run with these narrowing options (none: empty) may not replace."""
    return [
        name
        for name in names
        if name in kept and narrowed and kept[name]["run"]["narrowed"] != narrowed
    ]


def _read(path: Path) -> Results:
    if not path.exists():
        return {}
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found
