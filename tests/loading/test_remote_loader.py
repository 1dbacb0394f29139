"""A plain DataLoader over arrays on S3 and Redis, under every start method, the parent having read
before or not: every row arrives once, and no secret travels with the dataset."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.errors import Denied
from tensorstash.torch import ArrayDataset
from tests.servers.redis import Redis
from tests.servers.valkey import valkey
from tests.support.remote import KINDS, Remote, on_redis, on_s3

ROWS = 60
PASSWORD = "a-password-that-must-not-travel"


@pytest.fixture(scope="module")
def locked() -> Iterator[Redis]:
    with closing(valkey(password=PASSWORD)) as server:
        yield server


@pytest.fixture(params=KINDS)
def stored(request: pytest.FixtureRequest) -> tuple[Remote, str]:
    """A server that asks who is there, and the URL of images and labels on it."""
    fixture = request.getfixturevalue
    place = (
        on_redis(fixture("locked"))
        if request.param == "redis"
        else on_s3(fixture("s3"), request.param)
    )
    url = place.fresh()
    group = stash.create_group(url, options=place.options)
    images = np.random.default_rng(0).integers(0, 99, (ROWS, 8, 8), "uint16")
    images[:, 0, 0] = np.arange(ROWS)
    layout: dict[str, Any] = {"chunks": (4, 8, 8), "shards": (16, 8, 8)}
    group.create("images", images.shape, images.dtype, **layout)[...] = images
    group.create("labels", (ROWS,), "int64", chunks=20)[...] = np.arange(ROWS)
    return place, url


def dataset_of(place: Remote, url: str, **how: Any) -> ArrayDataset:
    return ArrayDataset(*(place.open(f"{url}/{name}", **how) for name in ("images", "labels")))


def epoch(dataset: ArrayDataset, method: str | None) -> None:
    """Every row once, with its own label; the workers end."""
    before = multiprocessing.active_children()
    batches = DataLoader(
        dataset,
        batch_size=17,
        shuffle=True,
        num_workers=2 if method else 0,
        multiprocessing_context=method,
        timeout=60 if method else 0,
    )
    labels = []
    for images, found in batches:
        assert torch.equal(images[:, 0, 0].long(), found)
        labels += found.tolist()
    assert sorted(labels) == list(range(ROWS))
    del batches
    assert not {*multiprocessing.active_children()} - {*before}


@pytest.mark.parametrize(
    ("method", "used"),
    [("fork", False), ("fork", True), ("forkserver", True), ("spawn", False)],
)
def test_workers_get_their_keys_from_a_connection_factory(
    stored: tuple[Remote, str], tmp_path: Path, method: str, used: bool
) -> None:
    place, url = stored[0].secretly(tmp_path), stored[1]
    dataset = dataset_of(place, url)
    if used:
        epoch(dataset, None)
    epoch(dataset, method)
    epoch(dataset, None)  # nor did the workers' end disturb the parent
    travels = pickle.dumps(dataset.arrays)
    assert len(travels) < 2048
    for secret in (PASSWORD, stored[0].given.get("secret"), stored[0].given.get("key")):
        assert secret is None or secret.encode() not in travels


@pytest.mark.parametrize(
    ("stored", "method"),
    [*((kind, "fork") for kind in KINDS), ("obstore", "spawn")],
    indirect=["stored"],
)
def test_workers_get_their_keys_from_the_environment(
    stored: tuple[Remote, str], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, url = stored
    names = {
        "key": "AWS_ACCESS_KEY_ID",
        "secret": "AWS_SECRET_ACCESS_KEY",
        "password": "REDISCLI_AUTH",
    }
    plain = {name: value for name, value in place.given.items() if name not in names}
    for name, variable in names.items():
        if name in place.given:
            monkeypatch.setenv(variable, place.given[name])
    dataset = dataset_of(replace(place, given=plain), url)
    epoch(dataset, method)


def test_workers_without_keys_say_so(
    stored: tuple[Remote, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keys that were given in the program stay in it: elsewhere there are none."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    place, url = stored
    dataset = dataset_of(place, url)
    copy = pickle.loads(pickle.dumps(dataset.arrays[1]))
    with pytest.raises(Denied) as caught:
        copy[...]
    assert str(caught.value).count("credentials") + str(caught.value).count("password")


def test_workers_share_a_cache_on_disk(stored: tuple[Remote, str], tmp_path: Path) -> None:
    place, url = stored[0].secretly(tmp_path), stored[1]
    dataset = dataset_of(place, url, cache_dir=tmp_path / "cache")
    for _ in range(2):
        epoch(dataset, "fork")
    again = dataset_of(place, url, cache_dir=tmp_path / "cache")
    epoch(again, None)
    stats = again.arrays[0].stats
    assert stats.disk_hits > 0
    assert stats.bytes_read < 8192  # what was fetched by workers is not fetched again
