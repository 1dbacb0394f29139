"""A replay buffer that one process fills, row by row, while another trains from it.

The actor pushes a cart about and appends a row for every step: what it saw, what it did, what it
saw next. The learner looks for new rows now and then, samples any that are there, and learns to
foretell the next observation. An append is one step for all fields, so the learner checks, for
every row it gets, that its fields belong together: no row is ever seen half-written.

    python examples/replay_buffer.py
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import warnings
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch

import tensorstash as stash

ROWS = 200
SCHEMA = {
    "obs": ((4,), "float32"),  # place and speed along two axes
    "action": ((2,), "float32"),  # how hard to push
    "step": "int64",
    "note": str,
    "next": {"obs": ((4,), "float32")},
}


def moved(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """What the world makes of an action: speed changes, then place."""
    speed = 0.9 * obs[..., 2:] + 0.1 * action
    return np.concatenate([obs[..., :2] + 0.1 * speed, speed], axis=-1).astype("float32")


def act(place: Path, begun: Event) -> None:
    """The actor: append a row for each step, the second half beside a learner that has begun."""
    random = np.random.default_rng(0)
    buffer = stash.open_records(place, mode="r+")
    # A writer would store rows faster, and show them later: here each is to be seen at once.
    warnings.simplefilter("ignore", stash.StashPerformanceWarning)
    obs = np.zeros(4, "float32")
    for step in range(ROWS):
        if step == ROWS // 2:
            begun.wait(60)
        action = random.normal(size=2).astype("float32")
        after = moved(obs, action)
        row = {"obs": obs, "action": action, "step": step, "note": f"step {step}"}
        buffer.append({**row, "next": {"obs": after}})
        obs = after


def check(batch: dict) -> None:
    """Every row is one that the actor wrote, whole."""
    assert np.array_equal(batch["next"]["obs"], moved(batch["obs"], batch["action"]))
    assert list(batch["note"]) == [f"step {step}" for step in batch["step"]]


def learn(place: Path, actor: multiprocessing.Process, begun: Event) -> None:
    """The learner: sample what is there, until the actor is done and the model is good."""
    buffer = stash.open_records(place)
    random = np.random.default_rng(1)
    model = torch.nn.Linear(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    lengths, losses = [], []
    while actor.is_alive() or len(losses) < 200:
        if len(losses) % 10 == 0:
            buffer.refresh()  # until then, the rows are those of the last time
        if len(buffer) < 8:
            time.sleep(0.01)
            continue
        lengths.append(len(buffer))
        begun.set()
        batch = buffer[random.integers(0, len(buffer), 64)]  # with repeats, in any order
        check(batch)
        given = torch.from_numpy(np.concatenate([batch["obs"], batch["action"]], axis=1))
        loss = torch.nn.functional.mse_loss(model(given), torch.from_numpy(batch["next"]["obs"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{len(losses)} batches from a buffer that had {lengths[0]} rows, then {lengths[-1]}")
    print(f"loss {losses[0]:.4f} at first, {losses[-1]:.6f} at last")
    assert lengths[0] < ROWS, "the learner began while the actor was at it"
    assert losses[-1] < losses[0] / 10


def main() -> None:
    """Fill and sample at the same time, then look at the whole."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "replay"  # or redis://..., s3://...: the same program
        stash.create_records(place, SCHEMA, rows_per_chunk=64)
        spawn = multiprocessing.get_context("spawn")
        begun = spawn.Event()
        actor = spawn.Process(target=act, args=(place, begun))
        actor.start()
        learn(place, actor, begun)
        actor.join()
        assert actor.exitcode == 0

        buffer = stash.open_records(place)
        check(buffer[:])
        assert np.array_equal(buffer["step"][...], np.arange(ROWS))
        print(f"all {len(buffer)} rows are there, in order, each of them whole")


if __name__ == "__main__":
    main()
