"""Copies of metadata that other programs make and read, and those of records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.errors import Invalid
from tests.support.copied import CHANGES, OLD, array, check, copied, made

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


# -- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["zarr", "xarray", "stash"])
@pytest.mark.parametrize("change", ["append", "replace", "delete", "attribute", "new array"])
def test_peers_read_what_there_is(tmp_path: Path, zarr_format: Any, who: str, change: str) -> None:
    url = str(tmp_path / "g")
    if who == "xarray":
        xarray = pytest.importorskip("xarray")
        data = xarray.Dataset({"x": ("t", OLD), "y": ("t", OLD)})
        data.to_zarr(url, zarr_format=zarr_format, consolidated=True)
        data.to_zarr(url, group="a", zarr_format=zarr_format, mode="w", consolidated=True)
        zarr.consolidate_metadata(url, zarr_format=zarr_format)
    else:
        group = made(url, zarr_format)
        if who == "zarr":
            zarr.consolidate_metadata(url, zarr_format=zarr_format)
        else:
            group.consolidate()
    assert copied(url)
    CHANGES[change](stash.open_group(url, "r+"), "a/x")
    ours = check(url)
    theirs = zarr.open_group(url, mode="r", zarr_format=zarr_format)
    found = {
        f"/{name}": (member.dtype, member.shape, member[...].tolist())
        for name, member in theirs.members(max_depth=None)
        if isinstance(member, zarr.Array)
    }
    assert found == {
        path: (value[0], value[1], value[3])
        for path, value in ours.items()
        if isinstance(value, tuple)
    }
    if who == "xarray" and change in ("append", "attribute", "delete"):
        if change == "append":  # along the dimension, which is that of both
            array(stash.open_group(url, "r+"), "a/y").append(OLD)
        with pytest.warns(RuntimeWarning, match="consolidated"):
            seen = xarray.open_zarr(url, group="a", zarr_format=zarr_format, chunks=None)
        if change == "delete":
            assert [*seen.variables] == ["y"]
        elif change == "attribute":
            assert seen["x"].attrs["unit"] == "K"
        else:
            assert seen["x"].values.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    if change != "delete":
        tensorstore = pytest.importorskip("tensorstore")
        where = {"driver": "file", "path": f"{url}/a/x"}
        driver = "zarr3" if zarr_format == 3 else "zarr"
        spec = {"driver": driver, "kvstore": where}
        stored = tensorstore.open(spec, open=True).result()
        assert stored.read().result().tolist() == found["/a/x"][2]


def test_after_another_consolidates_again(tmp_path: Path, zarr_format: Any) -> None:
    url = str(tmp_path / "g")
    group = made(url, zarr_format)
    one = array(group, "a/x")
    for _ in range(3):
        zarr.consolidate_metadata(url, zarr_format=zarr_format)
        one.append(OLD)
        check(url)
        assert zarr.open_group(url, mode="r")["a/x"].shape == one.shape


# -- records -----------------------------------------------------------------------------------


def records_below(path: Path) -> stash.Records:
    group = stash.create_group(path)
    group.create("x", (4,), "i4")[:] = OLD
    fields = {"id": "int64", "meta/score": "float32", "meta/words": stash.ragged("int32")}
    records = stash.create_records(path / "r", fields)
    more(records)
    return records


def more(records: stash.Records) -> None:
    n = len(records)
    rows = {
        "id": np.arange(n, n + 3),
        "meta/score": np.arange(3),
        "meta/words": [np.arange(k) for k in range(3)],
    }
    records.extend({name: rows[name] for name in records.fields})


def test_records_keep_what_publishes_them(tmp_path: Path) -> None:
    """A member of records may be changed alone; their document stays, and one above goes."""
    records = records_below(tmp_path / "g")
    group = stash.open_group(tmp_path / "g", "r+")
    group.consolidate()
    array(group, "r/id").attrs["unit"] = "1"
    group.create("r/beside", (2,), "i4")
    assert not copied(tmp_path / "g")
    assert records.refresh()["id"][...].tolist() == [0, 1, 2]
    more(records)
    group.create("r/beside", (3,), "i4", overwrite=True)
    del group["r/beside"]
    assert stash.open_records(tmp_path / "g" / "r")["id"][...].tolist() == [0, 1, 2, 0 + 3, 4, 5]


def test_a_copy_within_records_goes_as_they_change(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    inner = tmp_path / "g" / "r" / "meta"
    changes: list[Callable[[], Any]] = [
        lambda: more(records),
        lambda: records.add_field("meta/late", "int8", np.zeros(6, "i1")),
        lambda: records.rename_field("meta/late", "meta/later"),
        lambda: records.drop_field("meta/later"),
    ]
    for change in changes:
        zarr.consolidate_metadata(str(inner))
        assert copied(inner)
        change()
        records = stash.open_records(tmp_path / "g" / "r", "r+")
        plain = zarr.open_group(str(inner), mode="r", use_consolidated=False)
        whole = zarr.open_group(str(inner), mode="r")
        assert sorted(whole.keys()) == sorted(plain.keys())
        assert whole["score"].shape == plain["score"].shape == (len(records),)


def test_a_field_of_records_is_not_deleted_by_a_group(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    for at, prefix in ((tmp_path / "g", "r/"), (tmp_path / "g" / "r", "")):
        group = stash.open_group(at, "r+")
        for name in ("id", "meta", "meta/score", "meta/words", "meta/words/offsets"):
            with pytest.raises(Invalid, match="drop_field"):
                del group[prefix + name]
            with pytest.raises(Invalid, match="drop_field"):
                group.create(prefix + name, (2,), "i4", overwrite=True)
            with pytest.raises(Invalid, match="drop_field"):
                group.create_group(prefix + name, overwrite=True)
    assert records.refresh()["id"][...].tolist() == [0, 1, 2]
    del stash.open_group(tmp_path / "g", "r+")["r"]


def test_records_whose_fields_lag_are_read_as_a_group(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    for path in (tmp_path / "g" / "r").rglob("zarr.json"):
        if path.parent.name != "r":
            path.unlink()
    group = stash.open_group(tmp_path / "g" / "r")
    assert array(group, "id")[...].tolist() == [0, 1, 2]
    assert array(group, "meta/score")[...].tolist() == [0, 1, 2]
    meta = group["meta"]
    assert isinstance(meta, stash.Group)
    assert array(meta, "score")[...].tolist() == [0, 1, 2]
    assert len(records) == 3
