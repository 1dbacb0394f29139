"""The contract of whoever feeds images and labels to a training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..samples import Array
from .contestant import Contestant

Batch = tuple[Any, Any]
"""Images, uint8 of (batch, 3, 64, 64), and labels, int64: torch tensors, but for loaders whose
documented batches are something else."""


@dataclass(frozen=True, slots=True)
class Images:
    """The data set, and how it is to be served."""

    rows: int
    batch: int
    chunk: int
    """Rows of a chunk, where there are chunks."""
    pool: int
    """Chunks that a shuffle draws from at once."""


class ImageLoader(Contestant, ABC):
    """One library, used in one way, with ``num_workers=0`` unless asked for more."""

    packed: str = "no"
    """How it compresses what it stores."""

    def __init__(self, variant: str, how: str, order: str, store: str) -> None:
        """``how``: ``defaults``, ``fast`` or ``other``; ``order``: what shuffle it asks for,
        ``exact``, ``pool`` or ``own``; ``store``: a word for what is stored, which variants may
        share."""
        self.variant, self.how, self.order, self.store = variant, how, order, store

    @abstractmethod
    def write(self, path: Path, images: Array, spec: Images) -> None:
        """Store the images, each with its number as label."""

    @abstractmethod
    def open(self, path: Path, spec: Images) -> Any:
        """A handle for any number of epochs."""

    @abstractmethod
    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        """All rows, shuffled anew for each number."""

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        """A ``DataLoader`` with that many worker processes; ``None`` where there is none."""
        del handle, spec, workers, context
        return None

    def touch(self, handle: Any) -> None:
        """Read something in the process that has opened the handle."""
        for _ in self.epoch(handle, 0):
            break


def served(data: Any, spec: Images, workers: int, context: Any, **how: Any) -> Any:
    """torch's ``DataLoader`` over a map-style dataset, shuffled."""
    import torch

    return torch.utils.data.DataLoader(
        data,
        batch_size=spec.batch,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=context,
        **how,
    )


class Mapped(ImageLoader):
    """A loader whose handle begins with a map-style dataset."""

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        return served(handle[0], spec, workers, context)

    def touch(self, handle: Any) -> None:
        handle[0][0]
