"""The section on Redis in the figures."""

from __future__ import annotations

from typing import Any

from . import runs
from .cloud_report import MARGIN
from .peer import OURS
from .tables import met, table


def section(redis: dict[str, Any]) -> list[str]:
    """Everything about it, as Markdown."""
    words = (
        f"{runs.words(redis['run'])} {redis['server']} over loopback TCP; {redis['rows']} rows of "
        "512 float32, a key for every 64 rows (128 KiB raw), raw and blosc-lz4. Seconds are "
        "medians of interleaved rounds on one machine, which the server shares. Round trips and "
        "bytes are counted by a proxy in a call of its own, on open connections: what is sent "
        "before an answer is waited for is one. Commands are the server's count."
    )
    lines = ["## Redis", "", words, ""]
    rows = [[name, how, redis["run"]["versions"][name]] for name, how in redis["peers"].items()]
    lines += table(["contestant", "how", "version"], rows)
    return [*lines, *_verdict(redis["cases"]), *_figures(redis["cases"])]


def _peers(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in case["results"] if not r["error"] and r["name"] != OURS]


def _verdict(cases: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(r["name"] for case in cases for r in case["results"]))
    head = ["case", *names, "÷ fastest peer", "not slower", "round trips", "fewest peer"]
    rows, held = [], 0
    for case in cases:
        results = {r["name"]: r for r in case["results"]}
        ours, peers = results.get(OURS), _peers(case)
        if ours is None or ours["error"] or not peers:
            continue
        quick = min(peers, key=lambda r: float(r["wall"]))
        few = min(peers, key=lambda r: int(r["trips"]))
        ratio = ours["wall"] / quick["wall"]
        held += ratio <= MARGIN
        rows.append(
            [
                case["name"],
                *(_ms(results[name]) if name in results else "" for name in names),
                f"{ratio:.2f} ({quick['name']})",
                met(ratio <= MARGIN),
                str(ours["trips"]),
                f"{few['trips']} ({few['name']})",
            ]
        )
    words = (
        f"No slower than the fastest of the others in {held} of {len(rows)} cases (medians within "
        f"{MARGIN - 1:.0%} count as equal). The plain loops keep no versions, so that two writers "
        "of one chunk lose rows and readers that keep chunks cannot tell. TensorDict's store "
        "compresses nothing and ends at 512 MB; it reads and writes the wanted rows alone, where "
        "ours reads chunks (parts of uncompressed ones, where the wanted rows lie close together) "
        "and stores whole ones, so that scattered rows of raw data are faster there."
    )
    return [words, "", *table(head, rows)]


def _figures(cases: list[dict[str, Any]]) -> list[str]:
    head = ["case", "contestant", "round trips", "commands", "MB in", "MB out", "wall", "CPU"]
    rows = []
    for case in cases:
        for r in case["results"]:
            if r["error"]:
                rows.append([case["name"], r["name"], r["error"], *[""] * 5])
                continue
            rows.append(
                [
                    case["name"],
                    r["name"],
                    str(r["trips"]),
                    ", ".join(f"{count} {name}" for name, count in r["commands"].items()),
                    f"{r['received'] / 1e6:.3f}",
                    f"{r['sent'] / 1e6:.3f}",
                    _ms(r),
                    f"{r['cpu'] * 1e3:.4g} ms",
                ]
            )
    return ["### Redis: all figures", "", *table(head, rows)]


def _ms(result: dict[str, Any]) -> str:
    return result["error"] or f"{result['wall'] * 1e3:.4g} ms"
