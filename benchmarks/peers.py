"""Who the contestants are."""

from __future__ import annotations

from .flat_peers import H5py, Memmap, PyTables
from .peer import Peer
from .zarr_peers import Tensorstash, TensorStore, ZarrFused, ZarrPython, Zarrs


def everyone() -> list[Peer]:
    """All contestants, ours first, whether installed or not."""
    return [
        Tensorstash(),
        TensorStore(),
        ZarrPython(),
        ZarrFused(),
        Zarrs(),
        H5py(),
        PyTables(),
        Memmap(),
    ]
