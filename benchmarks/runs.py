"""Runs in words: when, of which commit, by which command, on what, with which versions."""

from __future__ import annotations

from typing import Any

from .kept import Results
from .tables import table


def words(run: dict[str, Any]) -> str:
    """A sentence on one run."""
    narrowed = f" **Not all of it: `{run['narrowed']}`.**" if run["narrowed"] else ""
    return (
        f"Measured {run['date']} at commit `{run['commit']}`: `{run['command']}`, at least "
        f"{run['rounds']} rounds, load {run['load']}.{narrowed}"
    )


def provenance(kept: Results) -> list[str]:
    """A table of the runs, each with what it measured."""
    rows: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    for name, result in kept.items():
        run = result["run"]
        command, rounds = f"`{run['command']}`", f"{run['rounds']}"
        key = (run["date"], run["commit"], command, rounds, hardware(run))
        names, loads = rows.setdefault(key, ([], []))
        names.append(name)
        loads.append(run["load"])
    head = ["measured", "date", "commit", "command", "rounds", "on", "load"]
    return table(
        head,
        (
            [", ".join(names), *key, "; ".join(dict.fromkeys(loads))]
            for key, (names, loads) in rows.items()
        ),
    )


def hardware(run: dict[str, Any]) -> str:
    """The machine in a few words."""
    return ", ".join(
        f"{key} {value}" if key == "Python" else value for key, value in run["hardware"].items()
    )


def versions(kept: Results) -> list[str]:
    """A line for each set of versions, with what was measured with them."""
    found: dict[str, list[str]] = {}
    for name, result in kept.items():
        text = "; ".join(f"{who} {which}" for who, which in result["run"]["versions"].items())
        found.setdefault(text, []).append(name)
    return [*(f"- {', '.join(names)}: {text}" for text, names in found.items()), ""]
