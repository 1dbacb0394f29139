"""``python -m benchmarks cloud``: arrays in a bucket behind 20 ms and 100 MB/s."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import cloud_minimum, samples
from .cloud_bucket import BANDWIDTH, LATENCY, Bucket, buckets
from .cloud_gaps import GAPS, WithGap
from .cloud_link import Link, Passed
from .cloud_minimum import Minimum
from .cloud_peer import CloudPeer
from .cloud_peers import Icechunk, Tensorstash, TensorStore, TensorStoreBatch, everyone
from .datasets import Dataset
from .layout import Layout
from .peer import OURS
from .samples import Array
from .setting import same
from .timing import Contestant, Result, interleave

CODEC = "lz4"
WIDTH = 512
BATCH = 256
EDGE = 8
ALL = slice(None)


class Bench:
    """One run: where, who and how often, and the cases so far."""

    def __init__(
        self, quick: bool, rounds: int, folder: Path, direct: Bucket, slow: Bucket, link: Link
    ) -> None:
        self.quick, self.rounds, self.folder = quick, rounds, folder
        self.direct, self.slow, self.link = direct, slow, link
        self.peers = [p for p in everyone() if not p.missing and not (quick and p.default)]
        self.cases: list[dict[str, Any]] = []
        self.gaps: list[dict[str, Any]] = []

    # -- the data -----------------------------------------------------------------

    def store(self, name: str, values: Array, layout: Layout) -> Dataset:
        """A dataset, written by zarr-python for all who read Zarr, and by icechunk for itself;
        both past the link."""
        data = Dataset(self.folder / name, values, layout)
        self.direct.upload(data.zarr, self.path(data))
        peer = Icechunk(True)
        if not peer.missing:
            peer.write(peer.create(self.direct, self.path(data, peer), layout), (...,), values)
        return data

    def path(self, data: Dataset, peer: CloudPeer | None = None) -> str:
        """Where a dataset lies in the bucket."""
        family = "zarr" if peer is None else peer.family
        return f"{data.folder.parent.name}/{data.folder.name}/{family}"

    # -- the cases ----------------------------------------------------------------

    def read(self, title: str, data: Dataset, verb: str, what: Any, minimum: Minimum) -> None:
        """A selection, by every peer, each time by a handle that was just opened."""
        peers: list[CloudPeer] = [*self.peers]
        if verb == "reads" and any(peer.name == "TensorStore" for peer in peers):
            peers.append(TensorStoreBatch())
        aside = ["TensorStore, one batch"] if verb == "reads" else []
        entries = [self._reader(peer, data, verb, what) for peer in peers]
        self.cases.append(self._race(title, minimum, entries, aside))

    def gap(self, title: str, data: Dataset, verb: str, what: Any, minimum: Minimum) -> None:
        """The same selection by ours alone, reading over gaps of several sizes."""
        entries = [self._reader(WithGap(gap), data, verb, what) for gap in GAPS]
        self.gaps.append(self._race(f"{title}, by gap", minimum, entries, []) | {"name": title})

    def _reader(self, peer: CloudPeer, data: Dataset, verb: str, what: Any) -> _Entry:
        values = data.values
        return _Entry(
            peer.name,
            lambda: peer.open(self.slow, self.path(data, peer)),
            lambda handle: getattr(peer, verb)(handle, what),
            same([values[box] for box in what] if verb == "reads" else values[what]),
        )

    def cached(self, title: str, data: Dataset, verb: str, what: Any, minimum: Minimum) -> None:
        """The same selection once more, by those who keep what they read."""
        for kinds in (("memory", "disk"), ("memory, immutable", "disk, immutable")):
            entries = []
            for peer in self.peers:
                if peer.name not in (OURS, "TensorStore"):
                    continue
                entries += [
                    self._cached(peer, kind, data, verb, what)
                    for kind in kinds
                    if kind in peer.caches
                ]
            checked = kinds[0] == "memory"
            words = "again, kept and compared" if checked else "again, kept, immutable"
            least = Minimum(minimum.requests if checked else 0, 0, int(checked))
            self.cases.append(self._race(f"{title}, {words}", least, entries, []))

    def _cached(self, peer: CloudPeer, kind: str, data: Dataset, verb: str, what: Any) -> _Entry:
        folder = Path(tempfile.mkdtemp(dir=self.folder)) if "disk" in kind else None
        place = self.path(data, peer)
        kept: list[Any] = []

        def handle() -> Any:
            if folder is not None or not kept:
                kept[:] = [peer.open(self.slow, place, kind, folder)]
            return kept[0]

        name = peer.name if kind.startswith("memory") else f"{peer.name}, on disk"
        check = same(data.values[what])
        return _Entry(name, handle, lambda array: getattr(peer, verb)(array, what), check)

    def write(self, title: str, data: Dataset) -> None:
        """All of an array that was just created."""

        def entry(peer: CloudPeer) -> _Entry:
            word = "".join(c if c.isalnum() else "-" for c in peer.name)
            place = f"w/{data.folder.name}/{word}"

            def verify(_: object) -> None:
                same(data.values)(peer.read(peer.open(self.direct, place), (ALL,) * 3))

            return _Entry(
                peer.name,
                lambda: peer.create(self.slow, place, data.layout),
                lambda handle: peer.write(handle, (ALL,) * 3, data.values),
                verify,
            )

        entries = [entry(peer) for peer in self.peers]
        self.cases.append(self._race(title, cloud_minimum.written(data.zarr), entries, []))

    def open(self, data: Dataset) -> None:
        """Opening an existing array."""
        document = (data.zarr / "zarr.json").stat().st_size

        def entry(peer: CloudPeer) -> _Entry:
            place = self.path(data, peer)
            return _Entry(
                peer.name, lambda: None, lambda _: peer.open(self.slow, place), lambda _: None
            )

        least = Minimum(1, document, 1)
        self.cases.append(self._race("open", least, [entry(peer) for peer in self.peers], []))

    # -- within -------------------------------------------------------------------

    def _race(
        self, title: str, minimum: Minimum, entries: Sequence[_Entry], aside: list[str]
    ) -> dict[str, Any]:
        counts: dict[str, list[Passed]] = {entry.name: [] for entry in entries}
        field = [entry.counted(self.link, counts[entry.name]) for entry in entries]
        results = interleave(field, self.rounds, 0 if self.quick else 6)
        least = {
            "requests": minimum.requests,
            "nbytes": minimum.nbytes,
            "seconds": minimum.seconds(LATENCY, BANDWIDTH),
        }
        found = [_result(result, counts[result.name]) for result in results]
        words = ", ".join(
            f"{r['name']} {r['error'] or '{requests} in {wall:.3f} ({cpu:.3f} CPU)'.format(**r)}"
            for r in found
        )
        print(f"{title} [least {minimum.requests}, {least['seconds']:.3f} s]: {words}", flush=True)
        return {"name": title, "minimum": least, "aside": aside, "results": found}


class _Entry:
    """A contestant of one case."""

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Any],
        run: Callable[[Any], Any],
        check: Callable[[Any], None],
    ) -> None:
        self.name, self._prepare, self._run, self._check = name, prepare, run, check

    def counted(self, link: Link, counts: list[Passed]) -> Contestant:
        """With what went through the link in each call; untimed, the link is told and asked."""

        def prepare() -> Any:
            handle = self._prepare()
            link.forget()
            return handle

        def finish(_: object) -> None:
            counts.append(link.passed)

        return Contestant(self.name, self._run, prepare, finish, self._check, warm=False)


def _result(result: Result, counts: list[Passed]) -> dict[str, Any]:
    timed = counts[1:]  # the first call is not timed
    if result.error or not timed:
        return {"name": result.name, "error": result.error or "no round"}
    requests = [passed.requests for passed in timed]
    return {
        "name": result.name,
        "error": "",
        "requests": int(statistics.median(requests)),
        "requests_range": [min(requests), max(requests)],
        "verbs": timed[-1].verbs,
        "received": int(statistics.median([passed.received for passed in timed])),
        "sent": int(statistics.median([passed.sent for passed in timed])),
        "wall": result.wall,
        "walls": result.walls,
        "cpu": result.cpu,
    }


def measure(quick: bool, rounds: int | None, folder: Path) -> dict[str, Any]:
    """All cases, in ``rounds`` or more: 3 unless given, 1 where it is to be quick."""
    rounds = rounds or (1 if quick else 3)
    with buckets() as (direct, slow, link):
        bench = Bench(quick, rounds, folder, direct, slow, link)
        _volumes(bench)
        _table(bench)
        _patches(bench)
        server, gap = direct.server, _gap()
    return {
        "server": server,
        "latency": LATENCY,
        "bandwidth": BANDWIDTH,
        "rounds": rounds,
        "quick": quick,
        "peers": {peer.name: peer.how for peer in everyone()},
        "versions": {peer.name: peer.missing or peer.version for peer in everyone()},
        "caches": {
            OURS: Tensorstash("obstore").caches,
            "TensorStore": TensorStore().caches,
        },
        "gap": gap,
        "least_gap": cloud_minimum.GAP,
        "cases": bench.cases,
        "gaps": bench.gaps,
    }


def _volumes(bench: Bench) -> None:
    edge = 128 if bench.quick else 256
    values = samples.volume(edge)
    shape = values.shape
    part = edge // 4
    chunked = bench.store("volume", values, Layout(shape, "u2", (part,) * 3, CODEC))
    shards = Layout(shape, "u2", (part // 2,) * 3, CODEC, (part * 2,) * 3)
    sharded = bench.store("volume", values, shards)
    bench.open(chunked)
    for data, words in (
        (chunked, f"{part}^3 chunks"),
        (sharded, f"{part // 2}^3 in {part * 2}^3 shards"),
    ):
        whole = (ALL,) * 3
        minimum = _least(data, [whole])
        bench.read(f"{edge}^3, {words}: full read", data, "read", whole, minimum)
        for axis in range(3):
            at = edge // 2 - 3
            box = tuple(slice(at, at + 1) if k == axis else ALL for k in range(3))
            title = f"{edge}^3, {words}: plane, axis {axis}"
            bench.read(title, data, "read", box, _least(data, [box]))
            if data is sharded and axis == 0 and not bench.quick:
                bench.gap(title, data, "read", box, _least(data, [box]))
        bench.write(f"{edge}^3, {words}: full write", data)


def _table(bench: Bench) -> None:
    count = 10_000 if bench.quick else 100_000
    values = samples.rows(count, WIDTH)
    shape = (count, WIDTH)
    rows = np.random.default_rng(6).choice(count, BATCH, replace=False)
    for layout, words in (
        (Layout(shape, "f4", (64, WIDTH), CODEC), "64-row chunks"),
        (Layout(shape, "f4", (16, WIDTH), CODEC, (1024, WIDTH)), "16 rows in 1024-row shards"),
    ):
        data = bench.store("table", values, layout)
        cells = cloud_minimum.row_cells(rows, layout)
        minimum = cloud_minimum.cost(data.zarr, layout, [cells])
        title = f"{BATCH} random rows of {count}, {words}"
        bench.read(title, data, "take", rows, minimum)
        if layout.shards is None:
            bench.cached(title, data, "take", rows, minimum)
        else:
            bench.gap(title, data, "take", rows, minimum)


def _patches(bench: Bench) -> None:
    edge, count = (128, 60) if bench.quick else (256, 200)
    values = samples.volume(edge)
    layout = Layout(values.shape, "u2", (16,) * 3, CODEC, (64 if bench.quick else 128,) * 3)
    data = bench.store("patches", values, layout)
    corners = np.random.default_rng(7).integers(0, edge - EDGE, (count, 3)).tolist()
    boxes = [tuple(slice(i, i + EDGE) for i in corner) for corner in corners]
    title = f"{count} random {EDGE}^3 patches, 16^3 in {layout.outer[0]}^3 shards"
    bench.read(title, data, "reads", boxes, _least(data, boxes))
    if not bench.quick:
        bench.gap(title, data, "reads", boxes, _least(data, boxes))


def _gap() -> int:
    """Which gaps ours reads over."""
    from tensorstash.registry import connect

    return connect("s3://any", {}).capabilities.gap_bytes


def _least(data: Dataset, boxes: list[tuple[slice, ...]]) -> Minimum:
    calls = [cloud_minimum.box_cells(box, data.layout) for box in boxes]
    return cloud_minimum.cost(data.zarr, data.layout, calls)
