"""Train from random patches of a stored volume, without ever reading the volume.

A microscope's volume and its labels are stored in chunks. Patches are cut at random places of both,
others in each epoch; those of a batch that share a chunk have it decoded once. Each patch is
compared with what NumPy cuts out of the same volume in memory. Then a small network learns to find
the cells, and is run over the whole volume on a grid of patches.

    python examples/volume_patches.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import tensorstash as stash
from tensorstash.torch import Loader, Patches

SIZE = 96
PATCH = 24
CHUNK = 16


def make_volume(cells: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume with bright balls in it, and which of its elements are in a ball."""
    random = np.random.default_rng(0)
    axes = np.indices((SIZE, SIZE, SIZE))
    inside = np.zeros((SIZE, SIZE, SIZE), bool)
    for _ in range(cells):
        middle, radius = random.integers(0, SIZE, 3), random.integers(4, 9)
        near = tuple(slice(max(0, m - radius), m + radius + 1) for m in middle)
        away = axes[(slice(None), *near)] - middle[:, None, None, None]
        inside[near] |= (away**2).sum(axis=0) <= radius**2
    values = 1000 + 600 * inside + random.normal(0, 250, inside.shape)
    return values.clip(0, 65535).astype("uint16"), inside.astype("uint8")


def cut(values: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The patches at ``corners``, cut by NumPy."""
    return np.stack([values[tuple(slice(c, c + PATCH) for c in corner)] for corner in corners])


def network() -> torch.nn.Module:
    """Three small convolutions: a logit for each element."""
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(8, 1, 1),
    )


def scaled(image: torch.Tensor) -> torch.Tensor:
    """A batch of patches as the network takes them: one channel, near zero."""
    return ((image.float() - 1000) / 500)[:, None]


def train(patches: Patches, model: torch.nn.Module) -> list[float]:
    """A few epochs, each of other patches."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    loader = Loader(patches, batch_size=8, shuffle=True, seed=0)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            logits = model(scaled(batch["image"]))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, batch["label"].float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def main() -> None:
    """Store, compare, train, and find the cells."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image, label = make_volume()
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("image", image), ("label", label)):
            stash.save(Path(folder) / name, values, chunks=(CHUNK, CHUNK, CHUNK))
        stored = {name: stash.open(Path(folder) / name) for name in ("image", "label")}

        patches = Patches(stored, (PATCH, PATCH, PATCH), count=64, seed=0)
        corners, columns = patches.corners(), patches[:]
        assert np.array_equal(columns["image"], cut(image, corners))
        assert np.array_equal(columns["label"], cut(label, corners))
        again = patches.at_epoch(1).corners()
        assert not np.array_equal(corners, again), "each epoch has patches of its own"
        print(f"{len(patches)} random patches of {image.shape} are what NumPy cuts out")

        model = network()
        losses = train(patches, model)
        first, last = np.mean(losses[:4]), np.mean(losses[-4:])
        print(f"loss {first:.3f} at first, {last:.3f} after {len(losses)} batches")
        assert last < first / 2

        grid = Patches(stored, (PATCH, PATCH, PATCH), stride=PATCH)
        found = np.zeros(image.shape, bool)
        for first in range(0, len(grid), 8):
            some = range(first, min(first + 8, len(grid)))
            with torch.no_grad():
                logits = model(scaled(torch.from_numpy(grid[list(some)]["image"])))[:, 0]
            for corner, patch in zip(grid.corners(some), (logits > 0).numpy(), strict=True):
                found[tuple(slice(c, c + PATCH) for c in corner)] = patch
        right = float((found == (label > 0)).mean())
        print(f"over the whole volume, on a grid of {grid.grid}: {right:.1%} of elements are right")
        assert right > 0.9


if __name__ == "__main__":
    main()
