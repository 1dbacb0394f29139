"""What single rows cost on files, beside the bare system calls of the same protocol.

``python -m benchmarks.rows.appends [folder] [--beside tree] [--rounds 12]``: one row of three
fields (84x84 uint8, float32, int64) appended and replaced, and rows of an array, with default
chunks and with chunks of a few rows. The floor makes the system calls of such a call and nothing
else, with as many bytes; ``tree`` is another checkout, an older one say. Each has a process, and
they take turns."""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_CALLS = 16
_KEPT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_SCHEMA = {"obs": ((84, 84), "uint8"), "reward": "float32", "action": "int64"}

Call = Callable[[], object]


# -- the floor -------------------------------------------------------------------------------------


class Floor:
    """The system calls of one append or assignment, on the files below ``root`` as they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._number = itertools.count()
        self._bytes = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        documents = [path for path in self._bytes if path.name == "zarr.json"]
        self.documents = [path for path in documents if path.parent != root]  # of the fields
        last: dict[str, Path] = {}  # the last chunk of every array
        for path in sorted(self._bytes.keys() - {*documents}, key=lambda p: (len(str(p)), p)):
            last[path.relative_to(root).parts[0]] = path
        self.chunks = [*last.values()]

    def put(self, path: Path, *, looks: int) -> None:
        """A conditional put: ``looks`` before it, a new file, and a rename under a lock."""
        for _ in range(looks):
            os.stat(path)
        home = os.open(path.parent, _KEPT)
        temporary = f".{path.name}.00000000-{os.getpid()}-{next(self._number):016x}.partial"
        file = os.open(temporary, _NEW, 0o666, dir_fd=home)
        os.write(file, self._bytes[path])
        now = time.time_ns()
        os.utime(file, ns=(now, now))
        os.fstat(file)
        os.close(os.dup(file))
        os.close(file)
        fcntl.flock(home, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path.name, dir_fd=home)
        os.rename(temporary, path.name, src_dir_fd=home, dst_dir_fd=home)
        fcntl.flock(home, fcntl.LOCK_UN)
        os.close(home)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock file of an append."""
        path = self.root / ".zarr.json.lock"
        file = os.open(path, _LOCK, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fstat(file)
        os.lstat(path)
        os.utime(file)
        yield
        os.fstat(file)
        os.lstat(path)
        os.unlink(path)
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)

    def append(self) -> None:
        """A lock, a look, the last chunk of every field, the document, those of the fields."""
        with self.lock():
            os.lstat(self.root / "zarr.json")
            for chunk in self.chunks:
                self.put(chunk, looks=2)
            self.put(self.root / "zarr.json", looks=1)
            for document in self.documents:
                self.put(document, looks=1)

    def replace(self) -> None:
        """A look, and a chunk of every field."""
        os.lstat(self.root / "zarr.json")
        for chunk in self.chunks:
            self.put(chunk, looks=2)


def floor_calls(folder: Path) -> dict[str, Call]:
    """The floor of what :func:`our_calls` does, on what that has stored."""
    floors = {name: Floor(folder / name) for name in our_calls(folder)}
    return {
        name: floor.replace if name.startswith("r[i]") else floor.append
        for name, floor in floors.items()
    }


# -- ours ------------------------------------------------------------------------------------------


def our_calls(folder: Path) -> dict[str, Call]:
    """Each call once, on records and arrays of which the last chunk is half full."""
    import numpy as np

    import tensorstash as stash

    warnings.simplefilter("ignore")
    images = np.random.default_rng(0).integers(0, 256, (64, 84, 84), "u1")
    rows = [{"obs": o, "reward": np.float32(i), "action": i} for i, o in enumerate(images)]
    columns = {"obs": images, "reward": np.arange(64, dtype="f4"), "action": np.arange(64)}
    made: dict[str, Call] = {}
    for few, more in (({}, ""), ({"rows_per_chunk": 4}, ", few rows a chunk")):
        grows = stash.create_records(str(folder / f"append{more}"), _SCHEMA, **few)
        grows.extend({name: column[: 34 if more else 32] for name, column in columns.items()})
        stays = stash.create_records(str(folder / f"r[i] = row{more}"), _SCHEMA, 64, **few)
        stays[:] = columns
        chunks = (4 if more else 64, 84, 84)
        array = stash.create(str(folder / f"a.append{more}"), (0, 84, 84), "u1", chunks=chunks)
        array.append(images[: 34 if more else 32])

        def append(records: Any = grows, number: Any = itertools.count(1)) -> None:  # noqa: B008
            records.append(rows[next(number) % 64])

        def replace(records: Any = stays, number: Any = itertools.count(1)) -> None:  # noqa: B008
            at = next(number) % 64
            records[at] = rows[-at]

        def extend(array: Any = array, number: Any = itertools.count(1)) -> None:  # noqa: B008
            array.append(images[next(number) % 64][None])

        made |= {f"append{more}": append, f"r[i] = row{more}": replace, f"a.append{more}": extend}
    return made


# -- turns -----------------------------------------------------------------------------------------


def child(kind: str, folder: Path) -> None:
    """Measure what standard input names, ``_CALLS`` times, and write the median."""
    calls = (floor_calls if kind == "floor" else our_calls)(folder)
    for call in calls.values():
        for _ in range(40):
            call()
    print(json.dumps([*calls]), flush=True)
    for line in sys.stdin:
        call, times = calls[line.strip()], []
        begun = time.process_time()
        for _ in range(_CALLS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        spent = (time.process_time() - begun) / _CALLS
        print(json.dumps([statistics.median(times), spent]), flush=True)


def main() -> None:
    """Take turns, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows.appends")
    parser.add_argument("folder", nargs="?", help="on the file system that is to be measured")
    parser.add_argument("--beside", help="another checkout to measure beside this one")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, Path(asked.folder))
        return
    trees = {"floor": str(_ROOT), "this": str(_ROOT)}
    if asked.beside:
        trees["other"] = os.path.abspath(asked.beside)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        begun: dict[str, Any] = {}
        for kind, tree in trees.items():
            home = Path(folder, kind)
            home.mkdir()
            begun[kind] = subprocess.Popen(
                [sys.executable, "-P", __file__, str(home), "--child", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": tree},
            )
        found: dict[str, dict[str, list[list[float]]]] = {}
        names = [json.loads(process.stdout.readline()) for process in begun.values()][-1]
        for _, name, (kind, process) in itertools.product(
            range(asked.rounds), names, begun.items()
        ):
            process.stdin.write(name + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            found.setdefault(name, {}).setdefault(kind, []).append(answer)
        for process in begun.values():
            process.stdin.close()
            process.wait()
        shutil.rmtree(folder)
        os.mkdir(folder)
    print(f"microseconds a call (processor time): the quarter of {asked.rounds} rounds, for others")
    print("may use the machine, of medians of", _CALLS)
    for name, kinds in found.items():
        low = {
            kind: [sorted(each)[len(each) // 4] * 1e6 for each in zip(*rounds, strict=True)]
            for kind, rounds in kinds.items()
        }
        text = "   ".join(f"{kind} {wall:6.0f} ({cpu:5.0f})" for kind, (wall, cpu) in low.items())
        floors = " ({:.2f})".format(low["this"][1] / low["floor"][1])
        print(f"{name:28} {text}   {low['this'][0] / low['floor'][0]:.2f}{floors} floors", end="")
        if "other" in low:
            gains = [was / now for was, now in zip(low["other"], low["this"], strict=True)]
            print(", {:.2f} ({:.2f}) times the rate".format(*gains), end="")
        print()


if __name__ == "__main__":
    main()
