"""The main job, end to end, on real data: `make demo`.

Stores two photographs and 1,797 handwritten digits (they ship with scikit-learn) chunked and
compressed, slices the photographs along each axis and shows what each slice cost, trains a small
network on the digits through a plain DataLoader, and opens the result with zarr-python.

    python examples/demo.py [--out demo-data] [--epochs 12]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import tensorstash as stash
from tensorstash.torch import ArrayDataset


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}")


def stored_bytes(folder: Path) -> tuple[int, int]:
    """``(files, bytes)`` below a folder, metadata included."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def store(place: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write everything; answer the photographs and the held-out digits to compare with."""
    photos = np.stack(load_sample_images().images)  # (2, 427, 640, 3) uint8
    digits = load_digits()  # 8 x 8 images of 17 grey levels
    images, labels = digits.images.astype("uint8"), digits.target.astype("int64")
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[:1437], order[1437:]

    group = stash.open_group(place, mode="w")
    group.attrs["source"] = "scikit-learn: load_sample_images, load_digits"
    arrays = {
        "photos": (photos, (1, 64, 64, 3)),
        "train/images": (images[train], (64, 8, 8)),
        "train/labels": (labels[train], (512,)),
        "held-out/images": (images[held_out], (64, 8, 8)),
        "held-out/labels": (labels[held_out], (512,)),
    }
    print(
        f"{'array':<16} {'shape':<20} {'chunks':<16} {'files':>5} {'in memory':>10} {'on disk':>9}"
    )
    for path, (data, chunks) in arrays.items():
        array = group.create(path, shape=data.shape, dtype=data.dtype, chunks=chunks)
        array[...] = data
        files, size = stored_bytes(place / path)
        print(
            f"{path:<16} {data.shape!s:<20} {chunks!s:<16} {files:>5} {data.nbytes:>10,} {size:>9,}"
            f"   {data.nbytes / size:.1f}x smaller"
        )
    return photos, images[held_out]


def slice_every_axis(array: stash.Array, photos: np.ndarray) -> None:
    """Read one slice along each axis, say what it cost, and compare it with NumPy."""
    slices = {
        "one photograph": np.s_[0],
        "one row of both": np.s_[:, 200],
        "one column of both": np.s_[:, :, 320],
        "the red of both": np.s_[..., 0],
        "upside down, every 4th": np.s_[1, ::-4, ::4],
        "one pixel": np.s_[1, 200, 320],
    }
    print(
        f"{'slice':<24} {'shape':<16} {'chunks':>8} {'wanted':>10} {'decoded':>10}   equal to NumPy"
    )
    for name, selection in slices.items():
        cost = array.explain(selection)
        got = array[selection]
        equal = np.array_equal(got, photos[selection])
        print(
            f"{name:<24} {np.shape(got)!s:<16} {cost.chunks:>8} {cost.wanted_bytes:>10,} "
            f"{cost.decoded_bytes:>10,}   {equal}"
        )
        assert equal, name


def network() -> nn.Module:
    """A convolutional network of about 20,000 weights for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Grey levels 0 to 16 as one channel of floats."""
    return images.unsqueeze(1).float() / 16


def train(place: Path, epochs: int) -> tuple[nn.Module, np.ndarray]:
    """Train from the stored arrays; answer the network and its guesses for the held-out digits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is small, and two workers read beside it
    group = stash.open_group(place)
    dataset = ArrayDataset(group["train/images"], group["train/labels"])
    loader = DataLoader(
        dataset, batch_size=64, shuffle=True, num_workers=2, persistent_workers=True
    )
    test_images = prepared(group["held-out/images"].torch[...])
    test_labels = group["held-out/labels"].torch[...]

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    started, rows = time.perf_counter(), 0
    # disable=None: a bar on a terminal, none in a pipe; the lines below appear in both.
    with tqdm(total=epochs * len(loader), unit="batch", disable=None) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            losses = []
            for images, labels in loader:
                loss = nn.functional.cross_entropy(model(prepared(images)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                rows += len(labels)
                bar.update()
            model.eval()
            with torch.no_grad():
                guesses = model(test_images).argmax(1)
            right = (guesses == test_labels).float().mean().item()
            tqdm.write(
                f"epoch {epoch:>2} of {epochs}   loss {np.mean(losses):.3f}   "
                f"held-out digits right: {right:.1%}"
            )
    seconds = time.perf_counter() - started
    print(f"{rows:,} rows through the DataLoader in {seconds:.1f} s, training included")
    assert rows == epochs * len(dataset), "every row once per epoch"
    return model, guesses.numpy()


def report(labels: np.ndarray, guesses: np.ndarray) -> None:
    """Say what the network learned, and what it still gets wrong."""
    table = np.zeros((10, 10), int)
    np.add.at(table, (labels, guesses), 1)
    right = int(np.trace(table))
    print(
        f"\nIt reads {right} of {len(labels)} digits it never saw ({right / len(labels):.1%}); "
        "guessing would give 10 %."
    )
    print("digit   " + " ".join(f"{digit:>4}" for digit in range(10)))
    print("right   " + " ".join(f"{table[d, d]:>4}" for d in range(10)))
    print("of      " + " ".join(f"{table[d].sum():>4}" for d in range(10)))
    mistakes = table - np.diag(np.diag(table))
    if mistakes.any():
        true, said = np.unravel_index(mistakes.argmax(), mistakes.shape)
        count, total = mistakes.max(), table[true].sum()
        print(f"Most frequent mistake: {true} read as {said}, {count} of {total}.")


def picture(
    path: Path, array: stash.Array, digits: np.ndarray, labels: np.ndarray, guesses: np.ndarray
) -> None:
    """Draw the slices and some guesses, mistakes first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 1.6))
    panels = {
        "photos[0]": array[0],
        "photos[1, ::-4, ::4]": array[1, ::-4, ::4],
        "photos[0, ..., 0]": array[0, ..., 0],
        "photos[0, 120:280, 240:480]": array[0, 120:280, 240:480],
    }
    above.suptitle("slices of one stored array")
    for axes, (name, image) in zip(above.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image, cmap="Reds_r" if image.ndim == 2 else None)
        axes.set_title(name, fontsize=9, family="monospace")
        axes.axis("off")
    below.suptitle("held-out digits and what the network reads (mistakes first, in red)")
    chosen = np.argsort(labels == guesses, kind="stable")[:24]
    for axes, i in zip(below.subplots(2, 12).flat, chosen, strict=True):
        axes.imshow(digits[i], cmap="gray_r")
        axes.set_title(guesses[i], color="black" if labels[i] == guesses[i] else "red", fontsize=10)
        axes.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def reopen_with_zarr(place: Path, photos: np.ndarray) -> None:
    """Read what we wrote with the reference implementation."""
    if importlib.util.find_spec("zarr") is None:
        print("zarr-python is not installed: skipped (pip install zarr)")
        return
    import zarr

    group = zarr.open_group(place, mode="r")
    assert np.array_equal(group["photos"][...], photos)
    print(f"zarr-python {zarr.__version__} reads the same photographs from {place / 'photos'}")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Store, slice and train on real data.")
    parser.add_argument("--out", type=Path, default=Path("demo-data"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / "demo.zarr"

    title("1. Store: chunked, compressed, checksummed")
    photos, digits = store(place)

    title("2. Slice along each axis: only the chunks that a slice touches are read")
    array = stash.open(place / "photos")
    slice_every_axis(array, photos)

    title("3. Train: a plain DataLoader, shuffled, two worker processes")
    _, guesses = train(place, options.epochs)
    labels = stash.load(place / "held-out/labels")
    report(labels, guesses)

    title("4. Open: plain Zarr, no format of our own")
    reopen_with_zarr(place, photos)

    drawing = options.out / "demo.png"
    picture(drawing, array, digits, labels, guesses)
    print(f"\nThe data: {place}\nA picture: {drawing}")
    print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
