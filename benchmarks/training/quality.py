"""How random an order is: three numbers, each beside what true random gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..samples import Array

BLOCK = 64
"""Rows that lie together in storage, and so are likely to be alike."""


def quality(order: Array, batch: int, rows: int) -> dict[str, float]:
    """Of the rows of an epoch (or the first part of one), in the order in which they came.

    ``blocks``: distinct runs of 64 stored rows in a batch, on average; ``spread``: how much more
    the batches' mean positions vary than those of random batches; ``near``: the share of
    neighbours that lie less than 64 rows apart.
    """
    whole = order[: len(order) // batch * batch].reshape(-1, batch)
    if not len(whole):
        return {"blocks": 0.0, "spread": 0.0, "near": 0.0}
    blocks = np.mean([len(np.unique(part // BLOCK)) for part in whole])
    return {
        "blocks": float(blocks),
        "spread": _spread(whole, rows),
        "near": float(np.mean(np.abs(np.diff(order)) < BLOCK)),
    }


def _spread(batches: Array, rows: int) -> float:
    """Root mean square of the batches' mean positions, over that of random batches without
    replacement."""
    batch = batches.shape[1]
    found = batches.mean(axis=1) - (rows - 1) / 2
    variance = (rows**2 - 1) / 12 / batch * (rows - batch) / (rows - 1)
    return float(np.sqrt(np.mean(found**2) / variance))


def of_random(batch: int, rows: int) -> dict[str, float]:
    """What true random gives."""
    count = rows / BLOCK
    missed = np.prod([(rows - BLOCK - i) / (rows - i) for i in range(batch)])
    return {
        "blocks": float(count * (1 - missed)),
        "spread": 1.0,
        "near": float(2 * (BLOCK - 1) / rows),
    }


def check(order: Array, rows: int, complete: bool) -> str:
    """Whether every row came once: empty, or what is wrong."""
    seen = np.bincount(order, minlength=rows)
    if (repeated := int(np.sum(seen > 1))) or (len(seen) > rows):
        return f"{repeated} rows came more than once"
    missing = int(np.sum(seen == 0))
    return f"{missing} of {rows} rows never came" if complete and missing else ""


def as_text(found: dict[str, Any]) -> str:
    """The three numbers in a few characters."""
    return f"{found['blocks']:.1f} / {found['spread']:.2f} / {found['near']:.1%}"
