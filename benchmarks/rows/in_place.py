"""``python -m benchmarks.rows.in_place [--quick] [--where FOLDER]``: rows written in place, and
read at random, beside TensorDict's memory map and one ``np.memmap`` a field, which does nothing
else.

Prints rows a second: medians of interleaved rounds over the same values, and ours over each of the
others, round by round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tensorstash as stash

from ..timing import Contestant, Result, interleave

DATA: dict[str, tuple[int, dict[str, tuple[tuple[int, ...], str]]]] = {
    "84x84": (
        20_000,
        {"obs": ((84, 84), "uint8"), "action": ((), "int64"), "reward": ((), "float32")},
    ),
    "512": (50_000, {"x": ((512,), "float32")}),
}
WRITES, READS = 2_000, (256, 4096)

Put = Callable[[int, Any], Any]
Take = Callable[[Any], Any]


def rows(fields: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Rows of noise, each a dict of arrays."""
    rng = np.random.default_rng(0)
    return [
        {n: rng.integers(0, 256, shape).astype(dtype) for n, (shape, dtype) in fields.items()}
        for _ in range(count)
    ]


def ours(folder: Path, fields: dict[str, Any], count: int) -> tuple[Put, Put, Take]:
    """Records of ours: a setter, assignment, and reading."""
    made = stash.create_records(folder, fields, count, in_place=True)
    return made.setter(), made.__setitem__, lambda at: made[at]


def mapped(folder: Path, fields: dict[str, Any], count: int) -> tuple[Put, Take]:
    """An ``np.memmap`` a field."""
    folder.mkdir()
    maps = {
        n: np.memmap(folder / n, dtype, "w+", shape=(count, *shape))
        for n, (shape, dtype) in fields.items()
    }

    def put(i: int, row: Any) -> None:
        for name, value in row.items():
            maps[name][i] = value

    return put, lambda at: {name: each[at] for name, each in maps.items()}


def tensordict(folder: Path, fields: dict[str, Any], count: int) -> tuple[Put, Take, Any]:
    """TensorDict's memory map, as in its documents; the last makes rows of its own kind."""
    import torch
    from tensordict import TensorDict

    kinds = {name: getattr(torch, name) for name in ("uint8", "int64", "float32")}
    schema = {name: (list(shape), kinds[dtype]) for name, (shape, dtype) in fields.items()}
    buffer = TensorDict.from_schema(
        schema, batch_size=[count], storage="memmap", prefix=str(folder)
    )

    def made(row: Any) -> Any:
        return TensorDict({n: torch.as_tensor(v) for n, v in row.items()}, batch_size=[])

    return buffer.__setitem__, lambda at: buffer[torch.from_numpy(at)], made


def race(name: str, folder: Path, rounds: int) -> None:
    """All of one set of data."""
    count, fields = DATA[name]
    values = rows(fields, 16)
    put, assign, take = ours(folder / "ours", fields, count)
    floor_put, floor_take = mapped(folder / "map", fields, count)
    writers: dict[str, tuple[Put, list[Any]]] = {
        "ours, put(i, row)": (put, values),
        "ours, r[i] = row": (assign, values),
        "np.memmap": (floor_put, values),
    }
    readers: dict[str, Take] = {"ours, r[rows]": take, "np.memmap": floor_take}
    try:
        their_put, their_take, made = tensordict(folder / "td", fields, count)
    except ImportError:
        pass
    else:
        writers["TensorDict memmap"] = their_put, [made(row) for row in values]
        readers["TensorDict memmap"] = their_take
    for each, some in writers.values():
        for i in range(count):
            each(i, some[i % 16])
    rng = np.random.default_rng(1)
    orders = {
        "rows in order": np.arange(WRITES),
        "rows at random": rng.choice(count, WRITES, replace=False),
    }
    for what, order in orders.items():
        at = order.tolist()

        def write(one: tuple[Put, list[Any]], at: list[int] = at) -> None:
            each, some = one
            for k, i in enumerate(at):
                each(i, some[k % 16])

        field = [
            Contestant(who, lambda _, one=one, write=write: write(one))
            for who, one in writers.items()
        ]
        show(f"{name}, {what}", WRITES, interleave(field, rounds))
    for many in READS:
        again = max(1, 4096 // many)
        ats = [rng.choice(count, many, replace=False) for _ in range(again)]
        wanted = floor_take(ats[-1])

        def check(found: Any, wanted: Any = wanted) -> None:
            for field in wanted:
                if not np.array_equal(np.asarray(found[field]), wanted[field]):
                    raise ValueError(f"{field} is not what was written")

        field = [
            Contestant(
                who,
                lambda _, each=each, ats=ats: take_each(each, ats),
                check=lambda found, check=check: None if found is None else check(found),
            )
            for who, each in readers.items()
        ]
        if any(len(np.unique(v)) < 2 for v in wanted.values()):
            raise ValueError("nothing was written")
        show(f"{name}, {many} random rows", many * again, interleave(field, rounds))


def take_each(take: Take, ats: list[Any]) -> Any:
    """What ``take`` gives for the last."""
    found = None
    for at in ats:
        found = take(at)
    return found


def show(what: str, count: int, results: list[Result]) -> None:
    """Rows a second, and the first over the others."""
    print(what)
    for result in results:
        if result.error:
            print(f"  {result.name:<20} {result.error}")
            continue
        ratios = [w / m for m, w in zip(results[0].walls, result.walls, strict=False)]
        cpus = [w / m for m, w in zip(results[0].cpus, result.cpus, strict=False)]
        print(
            f"  {result.name:<20} {count / result.wall:>10,.0f} rows/s"
            f" {result.wall / count * 1e6:>8.2f} us, {result.cpu / count * 1e6:>7.2f} us CPU"
            f"; the first has {statistics.median(ratios):.2f} of its rate,"
            f" {statistics.median(cpus):.2f} by CPU",
            flush=True,
        )


def main() -> None:
    """All sets of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--where", help="folder for the data")
    chosen = parser.parse_args()
    for name in DATA:
        with tempfile.TemporaryDirectory(dir=chosen.where) as folder:
            race(name, Path(folder), 3 if chosen.quick else 15)


if __name__ == "__main__":
    main()
