"""S8: import, open, and the memory that S1 takes; each import and S1 in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .cases import CEILING, Case, Check, Workload
from .peer import OURS, Peer
from .peers import everyone
from .setting import Setting, cores, race
from .slices import datasets
from .timing import Contestant, Result

ROOT = Path(__file__).parents[1]
IMPORT = """
import time, numpy
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""
SLACK = 8 << 20
"""Memory beside output and chunks: thread stacks, the allocator's arenas."""


def child(*arguments: str) -> str:
    """The last line that a new interpreter prints; the checkout is on its path."""
    # Whoever measures an import does not measure the compiling of it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip().splitlines()[-1]


def resident(kind: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM``. Not ``ru_maxrss``: that is inherited from the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {kind}")


def measure_memory(name: str, path: str) -> int:
    """In the child: peak memory of opening and reading everything, beyond the imports'."""
    peer = next(peer for peer in everyone() if peer.name == name)
    peer.missing()
    __import__(peer.module)
    if peer.format == "zarr" and name != OURS and peer.module != "tensorstore":
        import zarr  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    handle = peer.open(Path(path))
    out = peer.read(handle, (slice(None),) * 3)
    peak = resident("VmHWM") - before
    return peak if out.nbytes else 0


def imports(setting: Setting) -> Case:
    """Import time beyond NumPy's."""
    peers = [peer for peer in setting.peers if peer.name != CEILING]
    results = {peer.name: Result(peer.name) for peer in peers}
    for turn in range(setting.rounds + 1):
        for peer in peers:
            seconds = float(child("-c", IMPORT.format(module=peer.module)))
            if turn:
                results[peer.name].walls.append(seconds)
    return Case("S8", "import, beyond NumPy's", list(results.values()))


def opens(setting: Setting) -> Case:
    """Open an existing array."""
    data = datasets(setting)[0]
    count = 50
    field = []
    for peer in setting.peers:
        path = data.path(peer)

        def run(_: object, peer: Peer = peer, path: Path = path) -> None:
            for _ in range(count):
                peer.close(peer.open(path))

        field.append(Contestant(peer.name, run))
    return Case("S8", "open", race(setting, "S8 open", field), operations=count)


def memory(setting: Setting) -> tuple[list[Case], list[Check]]:
    """Peak memory of S1, by codec: cases whose "walls" are bytes, and their checks."""
    cases, checks = [], []
    for data in datasets(setting):
        results = []
        for peer in setting.peers:
            if not peer.handles(data.layout):
                continue
            arguments = ("-m", "benchmarks.startup", peer.name, str(data.path(peer)))
            result = Result(peer.name)
            try:
                result.walls = [float(child(*arguments)) for _ in range(1 if setting.quick else 3)]
            except RuntimeError as error:
                result.error = str(error)
            results.append(result)
        name = f"peak memory of S1, {data.layout.codec}"
        case = Case("S8", name, results, payload=data.values.nbytes, unit="MiB")
        cases.append(case)
        limit = data.values.nbytes + 2 * cores() * 64**3 * 2 + SLACK
        if case.ours:
            peak = case.ours.wall
            text = f"{data.layout.codec}: S1 in output + 2 chunks a worker (+ 8 MiB)"
            value = f"{peak / 2**20:.0f} of {limit / 2**20:.0f} MiB"
            checks.append(Check(text, value, peak <= limit))
    return cases, checks


def startup(setting: Setting) -> Workload:
    """S8."""
    work = Workload("S8", "import, open, peak memory of S1")
    imported, opened = imports(setting), opens(setting)
    peaks, checks = memory(setting)
    work.cases = [imported, opened, *peaks]
    if imported.ours:
        seconds = imported.ours.wall
        work.checks.append(Check("import ≤ 0.1 s", f"{seconds:.3f} s", seconds <= 0.1))
    if opened.ours:
        micro = opened.ours.wall / opened.operations * 1e6
        work.checks.append(Check("open ≤ 100 us", f"{micro:.0f} us", micro <= 100))
    work.checks += checks
    work.note = (
        "Import: in a new interpreter that has imported NumPy. Memory: peak resident size of a "
        "new process that opens the array and reads all of it, less its size after the imports."
    )
    return work


if __name__ == "__main__":
    print(measure_memory(sys.argv[1], sys.argv[2]))
