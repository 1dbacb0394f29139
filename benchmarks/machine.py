"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from .peer import Peer
from .setting import cores


def hardware() -> dict[str, str]:
    """CPU, cores, memory, kernel, Python."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "CPU": f"{model}, {cores()} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": sys.version.split()[0],
    }


def load() -> str:
    """How many processes want to run, over the last minute; ours are among them."""
    return f"{os.getloadavg()[0]:.1f}"


def commit() -> str:
    """What is measured: the commit of this folder, and whether files differ from it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--exclude", "*", "--dirty=, changed"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def versions(peers: list[Peer]) -> dict[str, str]:
    """Of every contestant; why where one is missing."""
    import numcodecs

    found = {peer.name: peer.missing() or peer.version() for peer in peers}
    return {**found, "numcodecs": numcodecs.__version__}
