"""The section on the cloud in the figures."""

from __future__ import annotations

from typing import Any

from . import runs
from .peer import OURS
from .tables import met, table

MARGIN = 1.1
"""Medians within this factor are called equal: so far apart are those of two runs of one peer."""


def title(cloud: dict[str, Any]) -> str:
    """Of the heading above it."""
    ms, rate = cloud["latency"] * 1e3, cloud["bandwidth"] / 1e6
    return f"Cloud: {ms:.0f} ms a request, {rate:.0f} MB/s"


def section(cloud: dict[str, Any]) -> list[str]:
    """Everything about it, as Markdown."""
    lines = [f"## {title(cloud)}", "", *_preamble(cloud), *_verdict(cloud["cases"])]
    lines += _gaps(cloud["gaps"])
    lines += ["### Cloud: all figures", "", *_figures(cloud["cases"])]
    return lines


def _preamble(cloud: dict[str, Any]) -> list[str]:
    ms, rate = cloud["latency"] * 1e3, cloud["bandwidth"] / 1e6
    words = (
        f"{runs.words(cloud['run'])} {cloud['server']} on loopback, behind a proxy in a process of "
        f"its own (`cloud_link.py`) that delays every answer by {ms:.0f} ms, lets {rate:.0f} MB/s "
        "through for all connections together, and counts. Requests and bytes (with HTTP headers) "
        "are exact and the main result. Server, proxy and contestant share the machine's cores: "
        "seconds are medians of interleaved rounds. Every timed read is by a handle that was just "
        "opened, on connections that are open; blosc-lz4; all readers of Zarr read the same "
        "objects; results are compared with NumPy's before the clock runs. Patches are wanted by "
        "16 threads at once (TensorStore: futures, all at once)."
    )
    least = (
        "Least: a request for each chunk; for a shard one for its index and one for every run of "
        f"chunks, gaps of up to {cloud['least_gap'] >> 10} KiB read over; one in all where no more "
        "than that is unwanted (`cloud_minimum.py`); ours reads over gaps of "
        f"{cloud['gap'] >> 10} KiB. Link alone: what the delay of requests that must follow each "
        "other and the wanted bytes take by themselves."
    )
    lines = [words, "", least, ""]
    rows = [[name, how, cloud["run"]["versions"][name]] for name, how in cloud["peers"].items()]
    lines += table(["contestant", "configured", "version"], rows)
    rows = [
        [f"{name}: {kind}", words]
        for name, caches in cloud["caches"].items()
        for kind, words in caches.items()
    ]
    return [*lines, *table(["cache", "by"], rows)]


def _peers(case: dict[str, Any]) -> list[dict[str, Any]]:
    out = set(case["aside"])
    return [
        r
        for r in case["results"]
        if not r["error"] and not r["name"].startswith(OURS) and r["name"] not in out
    ]


def _verdict(cases: list[dict[str, Any]]) -> list[str]:
    head = ["case", "least", OURS, "fewest peer", "fewest requests", "link alone", OURS]
    head += ["fastest peer", "÷ fastest peer", "not slower"]
    rows, fewest, fast = [], 0, 0
    for case in cases:
        results = {r["name"]: r for r in case["results"] if not r["error"]}
        ours, peers, least = results.get(OURS), _peers(case), case["minimum"]
        if ours is None or not peers:
            continue
        few = min(peers, key=lambda r: int(r["requests"]))
        quick = min(peers, key=lambda r: float(r["wall"]))
        is_fewest = ours["requests"] <= few["requests"]
        ratio = ours["wall"] / quick["wall"]
        fewest += is_fewest
        fast += ratio <= MARGIN
        rows.append(
            [
                case["name"],
                str(least["requests"]),
                str(ours["requests"]),
                f"{few['requests']} ({few['name']})",
                met(is_fewest),
                f"{least['seconds']:.3f} s",
                f"{ours['wall']:.3f} s",
                f"{quick['wall']:.3f} s ({quick['name']})",
                f"{ratio:.2f}",
                met(ratio <= MARGIN),
            ]
        )
    words = (
        f"Reach: fewest requests (held in {fewest} of {len(rows)} cases), and no slower than the "
        f"fastest peer in any configuration (held in {fast} of {len(rows)}; medians within "
        f"{MARGIN - 1:.0%} count as equal). {OURS} is judged as it comes, with obstore."
    )
    return [words, "", *table(head, rows)]


def _gaps(cases: list[dict[str, Any]]) -> list[str]:
    names = [r["name"] for r in cases[0]["results"]] if cases else []
    rows = [
        [
            case["name"],
            *(
                r["error"] or f"{r['requests']} / {r['received'] / 1e6:.1f} / {r['wall']:.3f} s"
                for r in case["results"]
            ),
        ]
        for case in cases
    ]
    words = "What ours costs by the gap that it reads over: requests / MB / wall."
    return [words, "", *table(["case", *names], rows)] if cases else []


def _figures(cases: list[dict[str, Any]]) -> list[str]:
    head = ["case", "contestant", "requests", "÷ least", "by method", "MB", "÷ needed"]
    head += ["wall", "best", "÷ fastest peer", "CPU"]
    rows = []
    for case in cases:
        best = min((r["wall"] for r in _peers(case)), default=None)
        least = case["minimum"]
        for r in case["results"]:
            if r["error"]:
                rows.append([case["name"], r["name"], r["error"], *[""] * 8])
                continue
            low, high = r["requests_range"]
            moved = max(r["received"], r["sent"]) if "write" in case["name"] else r["received"]
            rows.append(
                [
                    case["name"],
                    r["name"],
                    str(low) if low == high else f"{r['requests']} ({low} to {high})",
                    _ratio(r["requests"], least["requests"]),
                    ", ".join(f"{count} {verb}" for verb, count in r["verbs"].items()),
                    f"{moved / 1e6:.3f}",
                    _ratio(moved, least["nbytes"]),
                    f"{r['wall']:.3f} s",
                    f"{min(r['walls']):.3f} s",
                    _ratio(r["wall"], best),
                    f"{r['cpu']:.3f} s",
                ]
            )
    return table(head, rows)


def _ratio(value: float, least: float | None) -> str:
    return f"{value / least:.2f}" if least else ""
