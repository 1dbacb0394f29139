"""Which chunk shape? Slice a real volume along each axis and compare what it costs.

The volume is a stack of views that slides across a photograph which ships with scikit-learn,
so that all three axes carry real structure. It is stored three times, with the same data and
different chunks. `explain` says what a plane along each axis would read, before reading it.

    python examples/slicing_any_axis.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_image

import tensorstash as stash

LAYOUTS = {
    "one chunk per frame": (1, 256, 256),
    "one chunk per line": (128, 16, 16),
    "cubes": (32, 32, 32),
}
PLANES = {"axis 0": np.s_[64], "axis 1": np.s_[:, 100], "axis 2": np.s_[:, :, 100]}


def volume() -> np.ndarray:
    """(128, 256, 256) uint8: a window that slides over a grey photograph, a pixel per frame."""
    grey = load_sample_image("china.jpg").mean(axis=2).astype("uint8")
    windows = np.lib.stride_tricks.sliding_window_view(grey, (256, 256))
    return np.stack([windows[i, i] for i in range(128)])


def main() -> None:
    """Store, explain, read, compare."""
    data = volume()
    print(
        f"volume {data.shape} {data.dtype}, {data.nbytes / 1e6:.1f} MB; one plane of each axis:\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        worst: dict[str, int] = {}
        for name, chunks in LAYOUTS.items():
            place = Path(folder) / f"{name}.zarr"
            array = stash.create(place, shape=data.shape, dtype=data.dtype, chunks=chunks)
            array[...] = data
            print(f"{name}, chunks {chunks}")
            for axis, selection in PLANES.items():
                cost = array.explain(selection)
                plane = array[selection]
                assert np.array_equal(plane, data[selection])
                print(
                    f"  {axis}: {cost.chunks:>4} chunks, {cost.decoded_bytes:>9,} bytes decoded "
                    f"for {plane.nbytes:,} wanted ({cost.amplification:.0f}x)"
                )
                worst[name] = max(worst.get(name, 0), cost.decoded_bytes)
        # A view composes without reading: this is one plan and one row of chunks.
        lazy = array.lazy[:, 100][::-1, 50:60]
        assert np.array_equal(np.asarray(lazy), data[::-1, 100, 50:60])
    best = min(worst, key=lambda name: worst[name])
    print(f"\nsmallest worst case: {best}. Every slice was equal to NumPy's.")
    assert best == "cubes"


if __name__ == "__main__":
    main()
