"""What records say of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Closed, Unsupported


def test_info_counts_what_is_stored(tmp_path: Path) -> None:
    schema = {
        "obs": ((8, 8), "uint8"),
        "n": "int64",
        "toks": stash.ragged("int32"),
        "text": str,
        "next": {"obs": ((4,), "float32")},
    }
    records = stash.create_records(tmp_path / "r", schema, rows_per_chunk=16)
    assert records.info().stored_bytes == 0
    records.extend(
        {
            "obs": np.ones((40, 8, 8), "uint8"),
            "n": np.arange(40) + 1,
            "toks": [np.arange(i + 1) for i in range(40)],
            "text": ["hello"] * 40,
            "next": {"obs": np.ones((40, 4), "f4")},
        }
    )
    found = records.info()
    assert found.rows == 40
    assert [one.name for one in found.fields] == list(records.names)
    for one in found.fields:
        files = [p for p in (tmp_path / "r" / one.name).rglob("*") if p.is_file()]
        chunks = [p.stat().st_size for p in files if p.name != "zarr.json"]
        assert (one.stored_chunks, one.stored_bytes) == (len(chunks), sum(chunks)) != (0, 0)
    by_name = {one.name: one for one in found.fields}
    assert by_name["obs"].nbytes == 40 * 64
    assert by_name["toks"].nbytes == sum(range(1, 41)) * 4 + 40 * 16
    assert by_name["text"].nbytes == 0
    told = str(found).splitlines()
    assert told[0].endswith(f": 40 rows, {found.stored_bytes / 1024:.1f} KiB stored")
    assert len(told) == 2 + 5
    assert told[1].split("  ")[0] == "field"
    assert [line.split()[0] for line in told[2:]] == list(records.names)
    assert [one.name for one in records.select("n").info().fields] == ["n"]
    records.close()
    with pytest.raises(Closed):
        records.info()


def test_records_are_no_array() -> None:
    records = stash.save_records("memory://no-array", {"x": np.arange(3), "y": np.arange(3)})
    with pytest.raises(Unsupported, match=r"np.asarray\(r\['x'\]\)"):
        np.asarray(records)
    np.testing.assert_array_equal(np.asarray(records["x"]), [0, 1, 2])
