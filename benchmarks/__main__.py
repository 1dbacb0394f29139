"""``python -m benchmarks [--quick] [--only S1,S4]`` measures beside the peers, and writes the
pages; ``... codecs``, ``cloud``, ``redis`` and ``train`` measure that part, ``... page`` nothing:
it writes the pages anew from what is kept. A result stays until a run of the same replaces it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from . import arrays_report, gathers, kept, machine, report, shards, slices, startup, writes
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
DOCS, ASIDE = Path("docs"), Path("bench-out")
"""Where whole runs are kept, and where narrowed ones, unless ``--out`` says."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("peers", "codecs", "cloud", "redis", "train", "page"),
        default="peers",
    )
    parser.add_argument("--quick", action="store_true", help="small data, 3 rounds")
    parser.add_argument("--only", default="", help="some of S1 to S8, or W1 to W8")
    parser.add_argument("--by", default="", help="train: these libraries alone; commas between")
    parser.add_argument(
        "--cores",
        default="",
        help="held to so many; train: 2, or 1,2 in turn, unless given 1, then all",
    )
    parser.add_argument("--rounds", type=int, help="at least; unless given 5 (fewer with --quick)")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder of results and pages; unless given {DOCS}, or {ASIDE} with --quick, --by "
        "or --cores",
    )
    parser.add_argument("--where", help="folder for the data; the system's for temporary files")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure, keep what came of it, write the pages."""
    chosen = parse(arguments)
    if chosen.cores and chosen.what != "train":  # threads of libraries are counted at import
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(chosen.cores)])
    only = _words(chosen.only.upper())
    known = _known(chosen.what)
    if unknown := set(only) - set(known):
        print(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    names = [name for name in known if not only or name in only]
    narrowed = _options(chosen, "quick", "by", "cores")
    out = chosen.out or (ASIDE if narrowed else DOCS)
    if barred := kept.barred(kept.load(out), names, narrowed):
        print(f"{out} has fuller results of {', '.join(barred)}: choose another --out")
        return 2
    with tempfile.TemporaryDirectory(dir=chosen.where) as folder:
        measures = _measures(chosen, names, Path(folder)) if names else {}
        for name, measure in measures.items():
            kept.store(out, name, _run(chosen, narrowed, measure))
            print(f"{name}: kept in {kept.file(out, name)}", flush=True)
    report.write(out)
    print(f"written: {out / kept.NAME}.md and what belongs to it")
    return 0


def _known(what: str) -> list[str]:
    """What there is to measure."""
    parts = {"peers": list(WORKLOADS), "train": list(training.WORKLOADS), "page": []}
    return parts.get(what, [what])


def _measures(
    chosen: argparse.Namespace, names: list[str], folder: Path
) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """How each is measured."""
    rounds = chosen.rounds or (3 if chosen.quick else 5)
    if chosen.what == "codecs":
        from . import chains

        return {"codecs": partial(chains.measure, rounds)}
    if chosen.what in ("cloud", "redis"):
        part = importlib.import_module(f".{chosen.what}", __package__)
        return {chosen.what: partial(part.measure, chosen.quick, chosen.rounds, folder)}
    if chosen.what == "train":
        rounds = chosen.rounds or (1 if chosen.quick else 5)
        by, held = frozenset(_words(chosen.by)), tuple(int(n) for n in _words(chosen.cores))
        return {
            name: partial(training.measure, name, chosen.quick, rounds, chosen.where, by, held)
            for name in names
        }
    peers = [peer for peer in everyone() if not peer.missing()]
    setting = Setting(chosen.quick, rounds, folder, peers)

    def measure(name: str) -> dict[str, Any]:
        return {**arrays_report.as_json(WORKLOADS[name](setting)), "rounds": rounds}

    return {name: partial(measure, name) for name in names}


def _run(
    chosen: argparse.Namespace, narrowed: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What is measured, with when and how."""
    before, begin = machine.load(), time.monotonic()
    date, commit = datetime.now(UTC).date().isoformat(), machine.commit()
    result = measure()
    words = ["python -m benchmarks", *([chosen.what] if chosen.what != "peers" else [])]
    words.append(_options(chosen, "quick", "only", "by", "cores", "rounds"))
    versions = machine.versions(everyone()) if chosen.what != "train" else training.versions()
    run = {
        "date": date,
        "commit": commit,
        "command": " ".join(words).strip(),
        "narrowed": narrowed,
        "rounds": result.pop("rounds"),
        "minutes": (time.monotonic() - begin) / 60,
        "load": f"{before} before, {machine.load()} after",
        "hardware": machine.hardware(),
        "versions": result.pop("versions", versions),
    }
    return {**result, "run": run}


def _options(chosen: argparse.Namespace, *names: str) -> str:
    """Those that were given, as they were; folders are the reader's own."""
    given = {name: getattr(chosen, name) for name in names}
    return " ".join(
        f"--{name}" if value is True else f"--{name} {value}"
        for name, value in given.items()
        if value
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="zarr")
    sys.exit(main(sys.argv[1:]))
