"""Records on disk are plain Zarr: zarr-python and TensorStore read every field, and write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import zarr

import tensorstash as stash
from tensorstash.errors import StashError, Unsupported
from tests.servers.http import Http
from tests.support.oracle import same
from tests.support.records_model import EVERY, Model, equal, flat, holds

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

UNKNOWN = ("next/half", "rec")
"""Of types that zarr-python does not know, or that it spells otherwise."""


def made(folder: Path, schema: Any = EVERY, rows: int = 11, **how: Any) -> tuple[str, Model]:
    url = str(folder / "r")
    how = {"rows_per_chunk": 4, "attributes": {"title": "run"}, **how}
    records, model = stash.create_records(url, schema, 2, **how), Model(schema, 2)
    rng = np.random.default_rng(0)
    for count in (rows - 3, 1):
        block = model.block(rng, count)
        records.extend(block)
        model.extend(block)
    row = model.row(rng)
    records[1] = row
    model.put([1], {p: [v] for p, v in row.items()})
    return url, model


def as_stored(model: Model, path: str, found: Any) -> None:
    """What zarr read of a field's own array."""
    field = model.fields[path]
    values = model.columns[path]
    if field.kind == "fixed":
        same(np.asarray(found), np.stack(values))
    elif field.kind == "json":
        assert [json.loads(text) if text else None for text in found.tolist()] == values
    else:
        assert found.tolist() == values


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_reads_every_field(tmp_path: Path, consolidated: bool) -> None:
    url, model = made(tmp_path)
    group = zarr.open_group(url, mode="r", use_consolidated=consolidated)
    assert group.attrs["title"] == "run"
    for path, field in model.fields.items():
        if path in UNKNOWN:
            continue
        if field.kind != "ragged":
            as_stored(model, path, group[path][...])
            as_stored(model, path, zarr.open_array(f"{url}/{path}", mode="r")[...])
            continue
        places, values = group[f"{path}/offsets"][...], group[f"{path}/values"][...]
        for row, place in zip(model.columns[path], places, strict=True):
            start, stop, *shape = place
            same(values[start:stop].reshape(shape or -1), row)


def test_consolidated_metadata_is_what_the_arrays_say(tmp_path: Path) -> None:
    url, _ = made(tmp_path)
    whole = zarr.open_group(url, mode="r", use_consolidated=True)
    apart = zarr.open_group(url, mode="r", use_consolidated=False)
    known = dict(whole.members(max_depth=None))
    for path in UNKNOWN:
        assert path not in known
    assert set(known) | set(UNKNOWN) == {
        str(p.parent.relative_to(url))
        for p in Path(url).rglob("zarr.json")
        if p.parent != Path(url)
    }
    for path, member in known.items():
        one = apart[path]
        assert type(one) is type(member)
        if isinstance(one, zarr.Array):
            assert one.metadata.to_dict() == member.metadata.to_dict()
    ours = stash.open_group(url)
    assert {path for path, _ in ours.walk()} == set(known)
    document = json.loads(Path(url, "zarr.json").read_text())
    mark = document["attributes"]["tensorstash"]
    for path, member in {
        **document["consolidated_metadata"]["metadata"],
        **mark["members"],
    }.items():
        assert json.loads(Path(url, path, "zarr.json").read_text()) == member
    assert set(mark["members"]) == set(UNKNOWN)


def test_tensorstore_reads_and_writes_fixed_fields(tmp_path: Path) -> None:
    url, model = made(tmp_path)
    for path in ("x", "n", "next/x", "next/half", "next/deep/flag", "tok/values", "tok/offsets"):
        spec = {"driver": "zarr3", "kvstore": f"file://{url}/{path}/"}
        array = ts.open(spec).result()
        found = array.read().result()
        if path in model.fields:
            same(np.asarray(found), np.stack(model.columns[path]))
            array[3].write(array[5].read().result()).result()
            model.columns[path][3] = model.columns[path][5]
        else:
            same(np.asarray(found), stash.open_group(url)[path][...])
    holds(stash.open_records(url), model)


def test_what_zarr_writes_we_read(tmp_path: Path) -> None:
    url, model = made(tmp_path)
    group = zarr.open_group(url, mode="r+", use_consolidated=False)
    rng = np.random.default_rng(5)
    block = model.block(rng, 4)
    for path in ("x", "n", "cap", "next/x", "when"):
        group[path][3:7] = block[path].astype(object) if path == "cap" else block[path]
        model.put(range(3, 7), {path: block[path]})
    holds(stash.open_records(url), model)


def test_zarr_may_change_attributes_and_add_members(tmp_path: Path) -> None:
    url, model = made(tmp_path)
    group = zarr.open_group(url, mode="r+")
    group.attrs["more"] = [1]
    zarr.open_group(url, mode="r+", use_consolidated=False).create_array(
        "mine", shape=(3,), dtype="i4"
    )[...] = 7
    zarr.open_array(f"{url}/x", mode="r+").attrs["unit"] = "K"
    records = stash.open_records(url, "r+")
    holds(records, model)
    assert dict(records.attrs) == {"title": "run", "more": [1]}
    block = model.block(np.random.default_rng(6), 3)
    records.extend(block)
    model.extend(block)
    holds(stash.open_records(url), model)
    again = zarr.open_group(url, mode="r", use_consolidated=False)
    assert dict(again["x"].attrs) == {"unit": "K"}
    assert again["mine"][...].tolist() == [7] * 3
    assert again["x"].shape == (14, 2)


def test_zarr_may_consolidate_again(tmp_path: Path) -> None:
    schema = {name: field for name, field in EVERY.items() if name not in ("next", "rec")}
    url, model = made(tmp_path, schema)
    zarr.consolidate_metadata(url)
    records = stash.open_records(url, "r+")
    holds(records, model)
    block = model.block(np.random.default_rng(6), 3)
    records.extend(block)
    model.extend(block)
    records.add_field("late", "int8", np.arange(14))
    model.fields["late"] = records.fields["late"]
    model.columns["late"] = list(np.arange(14, dtype="i1"))
    stash.open_group(url, "r+").consolidate()
    holds(stash.open_records(url), model)
    assert zarr.open_group(url, mode="r")["late"][...].tolist() == list(range(14))


def test_shards_and_codecs_for_others(tmp_path: Path) -> None:
    schema = {"a": ((3,), "int32"), "b": "float32", "t": stash.ragged("int16")}
    url, model = made(tmp_path, schema, rows_per_shard=8, codecs="zstd")
    group = zarr.open_group(url, mode="r")
    assert group["a"].shards == (8, 3) or group["a"].shards[0] % 4 == 0
    for path in ("a", "b"):
        as_stored(model, path, group[path][...])
        spec = {"driver": "zarr3", "kvstore": f"file://{url}/{path}/"}
        same(np.asarray(ts.open(spec).result().read().result()), np.stack(model.columns[path]))


def test_a_field_is_an_array_of_ours(tmp_path: Path) -> None:
    url, model = made(tmp_path)
    array = stash.open(f"{url}/x")
    same(array[...], np.stack(model.columns["x"]))
    copied = stash.copy(array, {})
    same(copied[...], array[...])
    records = stash.open_records(url, "r+")
    assert isinstance(records["x"], stash.Array)
    for call in (
        lambda: records["x"].append(np.zeros((1, 2))),
        lambda: records["x"].resize((3, 2)),
        lambda: records["cap"].append(["x"]),
    ):
        with pytest.raises(Unsupported, match=r"extend\(\) of the records"):
            call()
    same(records["x"].lazy[2:5, 1].read(), array[2:5, 1])
    records["x"][2:4, 0] = [5, 6]
    assert records[[2, 3]]["x"][:, 0].tolist() == [5, 6]


# -- drivers that offer less -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory://records", "zarr"])
def test_drivers_without_locks_say_so(place: str) -> None:
    location: Any = zarr.storage.MemoryStore() if place == "zarr" else _fsspec(place)
    records = stash.create_records(location, EVERY, 5, rows_per_chunk=2)
    model = Model(EVERY, 5)
    assert not records.driver.capabilities.locks
    rng = np.random.default_rng(0)
    plain = [name for name in model.fields if name not in ("tok", "img", "vol")]
    view = records.select(*plain)
    block = model.block(rng, 3)
    view[1:4] = {name: block[name] for name in plain}
    model.put(range(1, 4), {name: block[name] for name in plain})
    holds(records, model)
    keys = sorted(records.driver.list())
    row = model.row(rng)
    for call in (
        lambda: records.append(row),
        lambda: records.extend(block),
        lambda: records.__setitem__(2, {**row, "tok": [1, 2, 3]}),
        lambda: records.add_field("q", "i4"),
        lambda: records.drop_field("x"),
        lambda: records.rename_field("x", "y"),
    ):
        with pytest.raises(Unsupported, match=r"offers no lock.*append") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert sorted(records.driver.list()) == keys
    assert len(stash.open_records(records.driver)) == 5
    with pytest.raises(Unsupported), records.writer() as writer:
        writer.append(row)
    equal(flat(records[0], model.fields), {p: c[0] for p, c in model.columns.items()})


def _fsspec(url: str) -> Any:
    import fsspec

    return fsspec.filesystem("memory", skip_instance_cache=True).get_mapper(url)


def test_records_in_a_zip_and_over_http(tmp_path: Path, http_server: Http) -> None:
    url, model = made(tmp_path)
    inside = f"zip://{tmp_path}/r.zip"
    stash.create_records(inside, EVERY, rows_per_chunk=4).extend(model.taken(slice(None)))
    holds(stash.open_records(inside), model)
    http_server.files.update(
        {f"r/{p.relative_to(url)}": p.read_bytes() for p in Path(url).rglob("*") if p.is_file()}
    )
    records = stash.open_records(f"{http_server.url}/r")
    assert len(http_server.requests) == 1
    holds(records, model)
    with pytest.raises(StashError):
        stash.open_records(f"{http_server.url}/r", "r+").append(model.row(np.random.default_rng(0)))
