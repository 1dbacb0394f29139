"""Feed a DataLoader from stored arrays, under every start method.

Shows that a dataset over stored arrays needs nothing special for workers. The parent reads from the
array first, which is what breaks other stores under fork. Then the same dataset is iterated with no
workers, and with two workers started by fork, forkserver and spawn. Each time every row must
arrive exactly once. Then a linear classifier is trained for a moment.

    python examples/train_dataloader.py
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.torch import ArrayDataset


def scaled(image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey levels 0 to 16 as floats 0 to 1. A module-level function, so that spawn can find it."""
    return image.float() / 16, label


def every_start_method(dataset: ArrayDataset, wanted: torch.Tensor) -> None:
    """Iterate with each kind of worker; compare the labels, sorted, with what was stored."""
    for method in (None, *multiprocessing.get_all_start_methods()):
        started = time.perf_counter()
        loader = DataLoader(
            dataset,
            batch_size=128,
            shuffle=True,
            num_workers=2 if method else 0,
            multiprocessing_context=method,
        )
        labels = torch.cat([labels for _, labels in loader])
        assert torch.equal(labels.sort().values, wanted.sort().values)
        seconds = time.perf_counter() - started
        print(f"  {method or 'no workers':<11} {len(labels):,} rows in {seconds:.2f} s")


def main() -> None:
    """Store, iterate, train."""
    # Imported here: workers started by spawn import this file, and need only the dataset.
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)  # workers read beside it
    digits = load_digits()
    with tempfile.TemporaryDirectory() as folder:
        group = stash.create_group(Path(folder) / "digits.zarr")
        for name, data, chunks in (
            ("images", digits.images.astype("uint8"), (64, 8, 8)),
            ("labels", digits.target.astype("int64"), (512,)),
        ):
            group.create(name, shape=data.shape, dtype=data.dtype, chunks=chunks)[...] = data
        images, labels = group["images"], group["labels"]
        wanted = labels.torch[...]  # the parent has read before any worker starts

        print("two arrays, one dataset, every kind of worker:")
        dataset = ArrayDataset(images, labels, transform=scaled)
        every_start_method(dataset, wanted)

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loader = DataLoader(dataset, batch_size=64, shuffle=True)
        losses = []
        for _ in range(10):
            for batch, target in loader:
                loss = torch.nn.functional.cross_entropy(model(batch), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        print(f"loss of a linear classifier: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
        assert losses[-1] < losses[0] / 2


if __name__ == "__main__":
    main()
