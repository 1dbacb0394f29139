"""Kill a training in the middle of an epoch; go on with another number of ranks.

Two processes train one model on halves of every batch, and average their gradients. Now and then
they save a checkpoint: the model, and the loader's state, some 150 bytes. In the middle of an epoch
both are killed. Three processes, with other batches and threads, take up the checkpoint. At the end
each row of the epoch must have been trained on exactly once: before the checkpoint, or after it.

    python examples/resume_training.py
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import tensorstash as stash
from tensorstash.torch import Loader

ROWS = 1794  # so that neither two nor three ranks need rows twice to have as many
EPOCHS = 3


def make_model() -> torch.nn.Module:
    """A small network for digits of 8 x 8 pixels."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


def average(model: torch.nn.Module, rank: int, shared: torch.Tensor, barrier: Any) -> None:
    """Make the gradients of all ranks their mean: what an all-reduce does."""
    parts = [parameter.grad for parameter in model.parameters()]
    shared[rank] = torch.cat([part.flatten() for part in parts])
    barrier.wait()
    flat = shared.mean(dim=0)
    barrier.wait()
    for part, values in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(values.view_as(part))


def train(folder: Path, rank: int, threads: int, shared: torch.Tensor, barrier: Any) -> None:
    """One rank. Notes the rows of every batch, and how far the epoch was after it."""
    torch.set_num_threads(1)
    world = len(shared)
    loader = Loader(
        stash.open_records(folder / "digits"),
        batch_size=48 // world,
        shuffle=True,
        rank=rank,
        world_size=world,
        threads=threads,
    )
    model, checkpoint = make_model(), folder / "checkpoint"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
    with open(folder / f"rows-{world}-{rank}", "w", buffering=1) as notes:
        for epoch in range(loader.epoch, EPOCHS):
            loader.set_epoch(epoch)  # the one that was loaded goes on where it was
            for number, batch in enumerate(loader):
                logits = model(batch["image"] / 16)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, batch["label"]).backward()
                average(model, rank, shared, barrier)
                optimizer.step()
                state = loader.state_dict()
                notes.write(f"{json.dumps([epoch, state['position'], batch['row'].tolist()])}\n")
                if rank == 0 and number % 5 == 4:
                    torch.save({"model": model.state_dict(), "loader": state}, f"{checkpoint}.new")
                    os.replace(f"{checkpoint}.new", checkpoint)  # whole, or not at all


class Ranks:
    """The processes of a training, and what they share."""

    def __init__(self, folder: Path, world: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        size = sum(parameter.numel() for parameter in make_model().parameters())
        self.shared, self.barrier = torch.zeros(world, size).share_memory_(), context.Barrier(world)
        self.processes = []
        for rank in range(world):
            arguments = (folder, rank, threads, self.shared, self.barrier)
            self.processes.append(context.Process(target=train, args=arguments))
            self.processes[-1].start()


def noted(folder: Path, world: int, epoch: int) -> list[tuple[int, int]]:
    """``(position, row)`` for each row of an epoch that any of ``world`` ranks noted."""
    lines = [line for p in folder.glob(f"rows-{world}-*") for line in p.read_text().splitlines()]
    return [(at, row) for e, at, rows in map(json.loads, lines) if e == epoch for row in rows]


def main() -> None:
    """Train, kill, go on, and count."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    every = list(range(ROWS))
    images, labels = digits.images[:ROWS].astype("float32"), digits.target[:ROWS]
    columns = {"image": images, "label": labels, "row": torch.tensor(every)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stash.save_records(folder / "digits", columns, rows_per_chunk=32, codecs="zstd")
        two, notes = Ranks(folder, world=2, threads=1), folder / "rows-2-0"
        while not notes.exists() or notes.read_text().count("\n") < 55:  # in the second epoch
            assert all(process.is_alive() for process in two.processes)
            time.sleep(0.01)
        for process in two.processes:
            process.kill()
            process.join()
        saved = torch.load(folder / "checkpoint", weights_only=True)["loader"]
        print(f"two ranks, killed; their checkpoint: {json.dumps(saved)}")

        three = Ranks(folder, world=3, threads=2)
        for process in three.processes:
            process.join()
            assert process.exitcode == 0
        epoch, position = saved["epoch"], saved["position"]
        before = [row for at, row in noted(folder, 2, epoch) if at <= position]
        after = [row for _, row in noted(folder, 3, epoch)]
        assert 0 < len(before) == position < len(every), "in the middle of an epoch"
        assert sorted(before + after) == every
        print(f"epoch {epoch}: {len(before)} rows by two ranks, the other {len(after)} by three")
        assert sorted(row for _, row in noted(folder, 3, epoch + 1)) == every

        model = make_model()
        model.load_state_dict(torch.load(folder / "checkpoint", weights_only=True)["model"])
        found = model(torch.from_numpy(images) / 16).argmax(dim=1)
        right = float((found.numpy() == labels).mean())
        print(f"after {EPOCHS} epochs {right:.1%} of the digits are told apart")
        assert right > 0.8


if __name__ == "__main__":
    main()
