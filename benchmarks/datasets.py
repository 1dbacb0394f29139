"""Each dataset is written once per file format and read by every peer of that format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .layout import Layout
from .peer import Peer
from .samples import Array
from .zarr_peers import ZarrPython


class Dataset:
    """One array in one layout, in a folder, in as many file formats as the peers want."""

    def __init__(self, folder: Path, values: Array, layout: Layout) -> None:
        self.folder = folder / layout.words()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.values, self.layout = values, layout

    def path(self, peer: Peer) -> Path:
        """Where this peer's file lies; written if it is not there yet.

        zarr-python writes for all readers of Zarr, so that they read the same bytes.
        """
        path = self.folder / f"array.{peer.format}"
        if not path.exists():
            writer = ZarrPython() if peer.format == "zarr" else peer
            handle = writer.create(path, self.layout)
            fill(writer, handle, self.values, self.layout)
            writer.close(handle)
        return path

    @property
    def zarr(self) -> Path:
        """The Zarr array."""
        return self.path(ZarrPython())


def fill(writer: Peer, handle: Any, values: Array, layout: Layout) -> None:
    """Write ``values`` in whole chunks, at least 64 MiB at a time."""
    height = layout.outer[0]
    row = max(1, values[:1].nbytes)
    step = height * max(1, math.ceil((64 << 20) / (row * height)))
    for start in range(0, len(values), step):
        where = (slice(start, min(start + step, len(values))),)
        writer.write(handle, where, values[where])
