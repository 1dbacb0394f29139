"""A real reanalysis cube, stored and read back along every axis by us and by the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

import tensorstash as stash
from tests.support.project import ROOT

PATH = ROOT.parent / "shared" / "data" / "eraint_uvz.nc"
LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3 shards": {"chunks": (1, 1, 61, 120), "shards": (1, 3, 244, 480)},
    "v2": {"zarr_format": 2, "chunks": (1, 2, 100, 100)},
}

if not PATH.exists():
    pytest.skip(f"{PATH.name} is not beside this checkout", allow_module_level=True)


def plain(value: Any) -> Any:
    """A number of an attribute, or several, as JSON has them."""
    found = np.asarray(value).tolist()
    return "NaN" if found != found else found


@pytest.fixture(scope="module")
def variables() -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]:
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    found = {}
    with netcdf_file(PATH, "r", mmap=False) as source:
        for name, variable in source.variables.items():
            attributes = {
                # JSON has no NaN: TensorStore opens no document that holds one.
                key: value.decode() if isinstance(value, bytes) else plain(value)
                for key, value in variable._attributes.items()
            }
            # NetCDF-3 is big-endian; scipy keeps it so.
            found[name] = variable.dimensions, np.array(variable.data), attributes
    assert {"u", "v", "z"} <= set(found)
    return found


def same(ours: Any, theirs: Any) -> bool:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    native = theirs.astype(theirs.dtype.newbyteorder("="), copy=False)
    return (ours.dtype, ours.shape, ours.tobytes()) == (
        native.dtype,
        native.shape,
        native.tobytes(),
    )


def by_tensorstore(path: Path, zarr_format: int) -> Any:
    spec = {
        "driver": "zarr3" if zarr_format == 3 else "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/"},
    }
    return tensorstore.open(spec).result()


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_axis_bit_for_bit(layout: str, variables: Any, tmp_path: Path) -> None:
    options = LAYOUTS[layout]
    zarr_format = options.get("zarr_format", 3)
    group = stash.create_group(tmp_path / "era", zarr_format=zarr_format)
    for name, (dimensions, data, attributes) in variables.items():
        assert data.dtype.byteorder in (">", "|"), name
        how = options if data.ndim == 4 else {}
        array = group.create(
            name,
            data.shape,
            data.dtype,
            dimension_names=dimensions,
            attributes=attributes,
            **how,
        )
        array[...] = data

    opened = stash.open_group(tmp_path / "era")
    assert sorted(opened) == sorted(variables)
    for name, (dimensions, data, attributes) in variables.items():
        ours = opened[name]
        zarrs = zarr.open_array(str(tmp_path / "era" / name), mode="r")
        tensors = by_tensorstore(tmp_path / "era" / name, zarr_format)
        assert ours.dimension_names == dimensions
        assert attributes == {key: ours.attrs[key] for key in attributes}
        assert same(ours[...], data)
        assert same(zarrs[...], ours[...])
        assert same(tensors.read().result(), ours[...])
        for axis in range(data.ndim):
            last = data.shape[axis] - 1
            for position in {0, last // 3, last}:
                here = (slice(None),) * axis + (position,)
                assert same(ours[here], data[here]), (name, here)
                assert same(zarrs[here], ours[here]), (name, here)
                assert same(tensors[here].read().result(), ours[here]), (name, here)
            backwards = (slice(None),) * axis + (slice(None, None, -7),)
            assert same(ours[backwards], data[backwards]), (name, backwards)


def test_statistics_of_the_stored_are_those_of_the_read(variables: Any, tmp_path: Path) -> None:
    _, data, attributes = variables["z"]
    stash.save(tmp_path / "z", data, attributes=attributes)
    z = stash.open(tmp_path / "z")
    assert z.dtype == data.dtype.newbyteorder("=")
    assert z.info().stored_bytes < data.nbytes
    blocks = list(z.iter_blocks())
    assert sum(block.size for _, block in blocks) == data.size
    assert sum(int(block.sum(dtype=np.int64)) for _, block in blocks) == int(
        data.sum(dtype=np.int64)
    )
    mask = data[0, 0] > data[0, 0].mean()
    assert same(z[0, 0][mask], data[0, 0][mask])
    assert same(z[0, :, mask], data[0, :, mask])
