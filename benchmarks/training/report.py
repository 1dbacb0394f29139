"""The figures of the training workloads."""

from __future__ import annotations

from typing import Any

from .. import runs
from ..kept import Results
from ..tables import met, table
from . import reach
from .quality import as_text
from .words import Line, cores, count, name, rate, ratio, seconds, shuffle, size

PREAMBLE = (
    "Each library runs in a process of its own, held to as many cores as a table says (thread "
    "pools of torch, BLOSC and OpenMP likewise); the processes take turns, and figures are medians "
    "over the rounds that count, with the least and the most behind them. All store the same data, "
    "made from seeds; files are in the page cache. Every epoch is checked: each row once, and "
    "samples of it against the source. An epoch that takes too long is broken off, and then no row "
    "may have come twice. Bytes read are what read system calls answered (`/proc/self/io`): mapped "
    "files are read by page faults and count nothing, but their pages count as memory. Peak memory "
    "is beyond what was resident before the epoch. First batch: opening included. *defaults* is "
    "what a library's first example does, *fast* what its documents recommend for speed."
)
CEILING = (
    "An uncompressed memory-mapped file is faster for random rows on a local disk whose pages are "
    "in memory than anything that decompresses, and nothing here claims otherwise: those rows are "
    "shown as the ceiling. What is compared is the class of compressed stores, at equal shuffle "
    "quality."
)


def title(name: str) -> str:
    """Of the heading above a workload."""
    return f"{name}: {SECTIONS[name][0]}"


def section(kept: Results) -> list[str]:
    """Everything about them, as Markdown."""
    lines = [PREAMBLE, "", CEILING, ""]
    if "W1" in kept:
        lines += ["![Records a second, and how random the batches are](training.png)", ""]
    head = ["", "reach", "ours", "met"]
    rows = [[w, goal, value, met(done)] for w, goal, value, done in reach.rows(kept)]
    lines += ["## Reach", "", *table(head, rows)] if rows else []
    for key, (_, show) in SECTIONS.items():
        if key in kept:
            work = kept[key]
            small = "Sizes are shrunk: `--quick`. " if work["quick"] else ""
            lines += [f"## {title(key)}", "", small + runs.words(work["run"]), "", *show(work)]
    return lines


def _images(work: Line) -> list[str]:
    random = as_text(work["random"])
    words = (
        f"{work['rows']:,} images of 3x64x64 uint8 with an int64 label ({size(work['bytes'])}), "
        f"batches of {work['batch']}. Chunks of {work['chunk']} rows; pools draw from "
        f"{work['pool']} chunks, so that batch means vary at most 1.12 times as much as random "
        "ones. Shuffle: distinct runs of 64 stored rows in a batch / spread of batch means over "
        f"random ones / share of neighbours less than 64 rows apart; true random gives {random}."
    )
    lines = [words, ""]
    head = ["contestant", "how", "records/s", "shuffle", "CPU us/record", "read ÷ delivered"]
    head += ["peak memory", "first batch", "stored", "compressed"]
    for part in work["sets"]:
        rows = []
        for line in _sorted(part["results"]):
            if line["error"]:
                rows.append([name(line), line["how"], line["error"], *[""] * 7])
                continue
            share = line["stored"] / work["bytes"]
            rows.append(
                [
                    name(line),
                    line["how"],
                    rate(line) + (" *" if line["cut"] else ""),
                    shuffle(line),
                    f"{line['cpu_us']:.3g}",
                    ratio(line["amplification"]),
                    size(line["peak"]),
                    seconds(line["first"]),
                    f"{share:.0%}",
                    line["packed"],
                ]
            )
        kind = "a disc of noise (compresses to about 45 %)"
        kind = "noise (95 %)" if part["data"] == "noisy" else kind
        lines += [f"{kind}, {cores(part)}:", "", *table(head, rows)]
    return [*lines, "`*`: epochs were broken off.", ""]


def _vectors(work: Line) -> list[str]:
    words = (
        f"{work['rows']:,} rows of {work['width']} float32, a slow walk in each column. Batches of "
        f"{work['batch']} random rows, and single columns. Chunks: decoded a batch, where it can "
        "be told, beside the distinct chunks that the rows lie in."
    )
    lines = [words, ""]
    for part in work["sets"]:
        head = ["contestant", "how", "values/s" if part["verb"] == "column" else "rows/s"]
        head += ["CPU us", "read ÷ delivered", "chunks", "distinct", "peak memory", "stored"]
        rows = [
            [
                name(line),
                line["how"],
                line["error"] or rate(line),
                _figure(line, "cpu_us"),
                ratio(line["amplification"]),
                _figure(line, "chunks"),
                _figure(line, "distinct") if line["chunks"] is not None else "",
                size(line["peak"]),
                size(line["stored"]),
            ]
            for line in _sorted(part["results"])
        ]
        lines += [f"{part['verb']}, {cores(part)}:", "", *table(head, rows)]
    return lines + _absent(work)


def _windows(work: Line) -> list[str]:
    words = (
        f"{work['steps']:,} steps of {work['width']} float32 in chunks of {work['chunk']} steps; "
        f"batches of {work['batch']} windows of {work['length']} steps: from random starts, and "
        f"all that begin {work['stride']} steps apart, in order. A cache of a quarter holds a "
        "quarter of the data. Chunks: decoded a batch beside those that were not there before."
    )
    lines = [words, ""]
    head = ["contestant", "how", "windows/s", "spread", "CPU us", "read ÷ delivered", "chunks"]
    head += ["new", "peak memory", "first batch", "stored"]
    for part in work["sets"]:
        rows = [
            [
                name(line),
                line["how"],
                line["error"] or rate(line),
                ratio(line["quality"]["spread"]) if line["quality"] else "",
                _figure(line, "cpu_us"),
                ratio(line["amplification"]),
                _figure(line, "chunks"),
                _figure(line, "distinct"),
                size(line["peak"]),
                seconds(line["first"]),
                size(line["stored"]),
            ]
            for line in _sorted(part["results"])
        ]
        lines += [f"{part['verb']}, {cores(part)}:", "", *table(head, rows)]
    return lines + _absent(work)


def _documents(work: Line) -> list[str]:
    words = (
        f"{work['documents']:,} documents of lognormal lengths, {work['tokens']:,} int32 tokens "
        f"({size(work['bytes'])}), batches of {work['batch']} as a list of tensors, one padded "
        "tensor, or a jagged nested tensor. LitData's `TokensLoader` has no documents, but blocks "
        "of their average length. Shuffle as in W1."
    )
    lines = [words, ""]
    head = ["contestant", "how", "documents/s", "tokens/s", "shuffle", "CPU us"]
    head += ["read ÷ delivered", "peak memory", "first batch", "stored"]
    for part in work["sets"]:
        rows = [
            [
                name(line),
                line["how"],
                line["error"] or rate(line),
                count(line["tokens"]),
                shuffle(line),
                _figure(line, "cpu_us"),
                ratio(line["amplification"]),
                size(line["peak"]),
                seconds(line["first"]),
                f"{line['stored'] / work['bytes']:.0%}" if line["stored"] else "",
            ]
            for line in _sorted(part["results"])
        ]
        lines += [f"{part['verb']}, {cores(part)}:", "", *table(head, rows)]
    return lines + _absent(work)


def _workers(work: Line) -> list[str]:
    words = (
        f"A handle opened in the parent, read there before or not, then a `DataLoader` of "
        f"{work['workers']} worker(s): four batches, {work['repeats']} times. Memory is what a "
        "worker has for itself. Pickle: of the dataset."
    )
    lines = [words, ""]
    head = ["contestant", "start", "read before", "outcome", "first batch", "memory a worker"]
    rows = []
    for line in work["lines"]:
        if line.get("error"):
            rows.append([name(line), "", "", line["error"], *[""] * 3])
        for cell in line["cells"]:
            told = ", ".join(f"{n} {word}" for word, n in cell["outcomes"].items())
            pickled = cell["pickle"]
            rows.append(
                [
                    name(line),
                    cell["method"],
                    "yes" if cell["touched"] else "no",
                    told,
                    seconds(cell["first"]),
                    size(cell["resident"]),
                    pickled if isinstance(pickled, str) else size(pickled),
                ]
            )
    return [*lines, *table([*head, "pickle"], rows)]


def _resume(work: Line) -> list[str]:
    words = (
        f"An epoch of {work['rows']:,} rows in global batches of {work['batch']} is broken off "
        "after 37 % and 60 %, each time to go on from its saved state: with 2, 1 and 3 workers, "
        "then with 1, 2 and 4 ranks. Exact: all rows came, each once. Seconds are from nothing to "
        "the first batch after a state; bytes those of the pickled state."
    )
    lines = [words, ""]
    head = ["contestant", "workers 2, 1, 3", "seconds", "state", "ranks 1, 2, 4", "seconds"]
    rows = []
    for line in work["lines"]:
        row = [name(line)]
        for way in ("workers", "worlds"):
            cell = line.get(way)
            if cell is None or cell["error"]:
                row += [line.get("error") or (cell["error"] if cell else ""), "", ""]
                continue
            row += [cell["words"], seconds(cell["seconds"]), size(cell["state"])]
        rows.append(row)
    return [*lines, *table([*head, "state"], rows)]


def _filling(work: Line) -> list[str]:
    words = (
        f"Rows of {size(work['row_bytes'])} (an observation, an action, a reward): `r[i] = row` at "
        f"random places of eight chunks, and batches of {work['batch']} rows appended. "
        "Milliseconds and bytes (read and written; of Redis, by the server's count) a row."
    )
    lines = [words, ""]
    sizes = [str(n) for n in work["sizes"]]
    head = ["contestant", *(f"row of {int(n):,}" for n in sizes), "appended"]
    rows = []
    for line in work["lines"]:
        cells = [line["rows"].get(n) for n in sizes] + [next(iter(line["batches"].values()), None)]
        texts = [line["error"] or _cell(cell) for cell in cells]
        rows.append([f"{name(line)}{' (Redis)' if line['redis'] else ''}", *texts])
    return [*lines, *table(head, rows)]


def _cell(cell: Line | None) -> str:
    if cell is None:
        return ""
    return cell["error"] or f"{cell['ms']:.3g} ms, {size(cell['touched'])}"


def _sorted(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: -(line.get("rate") or 0))


def _figure(line: Line, key: str) -> str:
    return count(line[key]) if line[key] is not None else ""


def _absent(work: Line) -> list[str]:
    return [f"- {who}: {why}" for who, why in work["absent"].items()] + (
        [""] * bool(work["absent"])
    )


SECTIONS: dict[str, Any] = {
    "W1": ("shuffled images", _images),
    "W2": ("rows and columns of a matrix", _vectors),
    "W3": ("windows of a series", _windows),
    "W4": ("documents", _documents),
    "W5": ("worker processes", _workers),
    "W6": ("resuming", _resume),
    "W8": ("filling", _filling),
}
