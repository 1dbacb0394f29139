"""What a file is that was taken for a folder of arrays: for messages that lead somewhere."""

from __future__ import annotations

import os

from .urls import file_path

_KINDS = (
    (b"PK\x03\x04", "a zip file; open what is in it as zip://{path}"),
    (b"PK\x05\x06", "an empty zip file; open it as zip://{path}"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, which h5py reads: save(target, h5py.File(...)[name][...])",
    ),
    (b"CDF", "a NetCDF file, which xarray reads: xarray.open_dataset(...).to_zarr(target)"),
    (b"\x93NUMPY", "a file of NumPy's: save(target, numpy.load(...))"),
    (b"II*\0", "a TIFF file, which tifffile reads: save(target, tifffile.imread(...))"),
    (b"MM\0*", "a TIFF file, which tifffile reads: save(target, tifffile.imread(...))"),
    (b"PAR1", "a Parquet file: save_records(target, pyarrow.parquet.read_table(...))"),
)


def told(url: str) -> str | None:
    """What the file at ``url`` is and what to do; ``None`` where there is none."""
    if not url.startswith("file://"):
        return None
    path = file_path(url.removeprefix("file://"))
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        head = b""
    for mark, words in _KINDS:
        if head.startswith(mark):
            return f"{url} is {words.format(path=path)}"
    return f"{url} is a file, and an array or group is a folder; check the path"
