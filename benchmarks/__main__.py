"""``python -m benchmarks [--quick] [--only S1,S4] [--out docs]``; ``... codecs``, ``cloud``,
``redis``, ``train`` measure that part alone and keep the rest of the report."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from . import gathers, machine, report, shards, slices, startup, writes
from .cases import Workload
from .peers import everyone
from .setting import Setting
from .training import measure as training

WORKLOADS: dict[str, Callable[[Setting], Workload]] = {
    "S1": slices.full,
    "S2": slices.planes,
    "S3": slices.points,
    "S4": gathers.rows,
    "S5": shards.patches,
    "S6": shards.small,
    "S7": writes.writes,
    "S8": startup.startup,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("peers", "codecs", "cloud", "redis", "train"),
        default="peers",
    )
    parser.add_argument("--quick", action="store_true", help="small data, 3 rounds")
    parser.add_argument("--only", default="", help="some of S1 to S8, or W1 to W8")
    parser.add_argument("--by", default="", help="train: these libraries alone; commas between")
    parser.add_argument("--cores", default="", help="train: 2, or 1,2; unless given 1, then all")
    parser.add_argument("--rounds", type=int, help="at least; unless given 5 (3 with --quick)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument("--where", help="folder for the data; the system's for temporary files")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, write the report, say where it is."""
    chosen = parse(arguments)
    only = [name.strip().upper() for name in chosen.only.split(",") if name.strip()]
    known = training.WORKLOADS if chosen.what == "train" else WORKLOADS
    if unknown := set(only) - set(known):
        print(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    rounds = chosen.rounds or (3 if chosen.quick else 5)
    kept = report.load(chosen.out)
    if chosen.what == "codecs":
        from . import chains

        kept["codecs"] = chains.measure(rounds)
    elif chosen.what in ("cloud", "redis"):
        part = importlib.import_module(f".{chosen.what}", __package__)
        before = machine.load()
        with tempfile.TemporaryDirectory(dir=chosen.where) as folder:
            kept[chosen.what] = part.measure(chosen.quick, chosen.rounds, Path(folder))
        kept[chosen.what]["load"] = f"{before} before the run and {machine.load()} after it"
    elif chosen.what == "train":
        by = [name.strip() for name in chosen.by.split(",") if name.strip()]
        held = tuple(int(n) for n in chosen.cores.split(",") if n)
        training.measure(chosen.quick, chosen.rounds, chosen.out, chosen.where, only, by, held)
    else:
        begin, hardware = time.monotonic(), machine.hardware()
        with tempfile.TemporaryDirectory(dir=chosen.where) as folder:
            peers = [peer for peer in everyone() if not peer.missing()]
            setting = Setting(chosen.quick, rounds, Path(folder), peers)
            done = {}
            for name, run in WORKLOADS.items():
                if not only or name in only:
                    start = time.monotonic()
                    done[name] = report.as_json(run(setting))
                    setting.say(f"{name}: {time.monotonic() - start:.0f} s")
        kept["workloads"] = done
        kept["run"] = {
            "command": " ".join(["python -m benchmarks", *_shown(chosen)]),
            "rounds": rounds,
            "minutes": (time.monotonic() - begin) / 60,
            "hardware": hardware,
            "versions": machine.versions(everyone()),
        }
    report.write(chosen.out, kept, picture=chosen.what == "peers")
    print(f"written: {chosen.out / report.NAME}.md and what belongs to it")
    return 0


def _shown(chosen: argparse.Namespace) -> list[str]:
    """The options that shape the figures; folders are the reader's own."""
    words = ["--quick"] if chosen.quick else []
    words += ["--only", chosen.only] if chosen.only else []
    return [*words, "--rounds", str(chosen.rounds)] if chosen.rounds else words


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="zarr")
    sys.exit(main(sys.argv[1:]))
