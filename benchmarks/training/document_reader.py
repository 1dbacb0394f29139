"""The contract of whoever reads documents, and what batches of them look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import Array
from .contestant import Contestant

Batches = Iterator[tuple[Any, Array]]
"""What a training loop gets, and the numbers of its documents."""


class DocumentReader(Contestant):
    """A library, used in one way."""

    tells = True
    """Whether it has documents at all: else ``block`` tokens at a time."""
    block = 0
    fills = False
    """Whether it reads much before the first batch, and is given more time."""

    def __init__(self, variant: str, how: str, order: str, store: str) -> None:
        self.variant, self.how, self.order, self.store = variant, how, order, store

    @property
    def word(self) -> str:
        """A name for what is stored."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.library}-{self.store}")

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        """Store all documents: document ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``."""
        raise NotImplementedError

    def open(self, path: Path, offsets: Array) -> Any:
        """A handle for any number of epochs; ``offsets`` are for checks alone."""
        raise NotImplementedError

    def count(self, handle: Any) -> int:
        """How many documents there are."""
        raise NotImplementedError

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        """These documents, in this order."""
        raise NotImplementedError

    def batches(self, handle: Any, form: str, batch: int, seed: int) -> Batches:
        """Random batches of one epoch."""
        order = np.random.default_rng(seed).permutation(self.count(handle))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            yield shaped(self.documents(handle, rows), form), rows


def shaped(documents: Sequence[Array], form: str) -> Any:
    """Documents as a training loop wants them: a list of tensors, one padded with zeros, or a
    jagged nested tensor."""
    import torch

    if form == "jagged":
        ends = np.cumsum([0, *map(len, documents)])
        values = torch.from_numpy(np.concatenate(documents))
        return torch.nested.nested_tensor_from_jagged(values, torch.from_numpy(ends))
    tensors = [torch.from_numpy(document) for document in documents]
    if form == "padded":
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    return tensors
