"""Metadata documents to test with."""

from __future__ import annotations

import json
from typing import Any

from tensorstash import dtype as dtypes
from tensorstash import fill as fills
from tensorstash.indexing.grid import Grid
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.spec import ArraySpec
from tensorstash.registry import make_codec

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
V3: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [10, 20],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 7]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": "NaN",
    "codecs": [BYTES, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}],
    "attributes": {"unit": "K", "nested": {"a": [1, 2.5, None]}},
    "dimension_names": ["y", None],
    "storage_transformers": [],
}
V2: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [10, 20],
    "chunks": [5, 7],
    "dtype": "<f4",
    "compressor": {"id": "zstd", "level": 1},
    "fill_value": "NaN",
    "order": "C",
    "filters": None,
    "dimension_separator": ".",
}


def v3(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**V3, **changes}.items() if value is not ...}


def v2(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**V2, **changes}.items() if value is not ...}


def read3(document: Any) -> ArraySpec:
    kind, spec = zarr3.parse(json.dumps(document).encode())
    assert kind == "array"
    return spec


def read2(document: Any, attributes: Any = None, **options: Any) -> ArraySpec:
    attrs = None if attributes is None else json.dumps(attributes).encode()
    return zarr2.parse_array(json.dumps(document).encode(), attrs, **options)


def fresh(dtype: Any = "float32", **changes: Any) -> ArraySpec:
    made = dtypes.parse(dtype)
    serializer = {"T": "vlen-utf8", "O": "vlen-bytes"}.get(made.kind, "bytes")
    fields: dict[str, Any] = {
        "shape": (10, 20),
        "dtype": made,
        "grid": Grid.regular((5, 7)),
        "codecs": (make_codec(serializer), make_codec("zstd", {"level": 1}), make_codec("crc32c")),
        "fill": fills.default(made),
    }
    return ArraySpec(**{**fields, **changes})
