"""Random arrays, ways to store them, and values for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings

import tensorstash as stash
from tests.support.far import FarDriver
from tests.support.oracle import shapes

EXAMPLES = settings.default.max_examples  # the "long" profile soaks
NUMBERS = ["b1", "u1", "i2", "i4", "u8", "f2", "f4", "f8", "c8", "c16"]
CODECS: list[Any] = ["auto", None, "zstd", "gzip", "lz4", "crc32c"]


@dataclass(frozen=True)
class Layout:
    """How a test's array is stored; what ``create`` and ``open`` take."""

    shape: tuple[int, ...]
    dtype: str
    how: dict[str, Any]
    opening: dict[str, Any]
    where: str
    """"memory", "files" or "far" away."""

    def place(self, folder: str) -> Any:
        """Where it is stored; in ``folder``, where it is in files."""
        return {"memory": {}, "files": folder, "far": FarDriver(seed=len(folder))}[self.where]

    def create(self, location: Any) -> stash.Array:
        return stash.create(location, self.shape, self.dtype, **self.how, **self.opening)

    def model(self) -> np.ndarray:
        return np.full(self.shape, self.how["fill_value"], self.dtype)


@st.composite
def layouts(draw: Any, dtypes: Any = NUMBERS, min_dims: int = 0) -> Layout:
    shape = draw(shapes(max_dims=3, max_side=8, min_dims=min_dims))
    dtype = draw(st.sampled_from(dtypes))
    chunks = tuple(draw(st.integers(1, 9)) for _ in shape)
    how: dict[str, Any] = {"chunks": chunks, "codecs": draw(st.sampled_from(CODECS))}
    how["fill_value"] = draw(st.sampled_from([0, 1]))
    if np.dtype(dtype).kind in "fc":
        how["fill_value"] = draw(st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf")]))
    if draw(st.booleans()):
        how["order"] = "F"
    kind = draw(st.sampled_from(["chunks", "chunks", "shards", "nested", "v2"]))
    if kind == "v2":
        how["zarr_format"] = 2
        if how["codecs"] == "crc32c":
            how["codecs"] = "auto"
    elif kind == "shards":
        how["shards"] = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    elif kind == "nested":
        middle = [n * draw(st.integers(1, 2)) for n in chunks]
        inner = {
            "chunk_shape": list(chunks),
            "codecs": [bytes_document(dtype), {"name": "gzip", "configuration": {"level": 1}}],
            "index_codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": draw(st.sampled_from(["start", "end"])),
        }
        how["chunks"] = tuple(middle)
        how["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
        how["shards"] = tuple(n * draw(st.integers(1, 2)) for n in middle)
        how.pop("order", None)
    opening = {
        "cache": draw(st.sampled_from([0, 0, 200, "1MiB"])),
        "threads": draw(st.sampled_from([1, 2, None])),
        "write_fill": draw(st.booleans()),
    }
    place = draw(st.sampled_from(["memory", "files", "far", "far"]))
    return Layout(shape, dtype, how, opening, place)


def bytes_document(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


@st.composite
def values(draw: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Something that can be assigned to a selection of ``shape``: broadcast, cast, strided."""
    kind = np.dtype(dtype).kind
    wide = shape
    if shape and draw(st.booleans()):
        wide = tuple(draw(st.sampled_from([n, 1])) for n in shape)[draw(st.integers(0, 1)) :]
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([0, 1, True])) if kind in "bui" else draw(st.floats(-9, 9))
    sources = {"b": ["b1"], "u": ["u1", "b1", "f4"], "i": ["i1", "i8", "f8"]}
    source = draw(st.sampled_from([dtype, *sources.get(kind, ["f4", ">f8", "i2", "u1"])]))
    seed = draw(st.integers(0, 2**32))
    made = np.random.default_rng(seed).integers(0, 100, wide).astype(source)
    form = draw(st.sampled_from(["plain", "F", "strided", "swapped", "backwards", "list", "fill"]))
    if form == "F":
        return np.asarray(made, order="F")
    if form == "strided":
        return np.repeat(made, 2, axis=-1)[..., ::2] if made.ndim else made
    if form == "swapped":
        return made.astype(made.dtype.newbyteorder())
    if form == "backwards":
        return np.flip(made)
    if form == "list" and made.size:
        return made.astype(dtype).tolist()
    return np.zeros_like(made) if form == "fill" else made


def where(selection: Any, rule: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The flat positions that ``rule`` selects of an array of ``shape``."""
    return np.asarray(rule(np.arange(math.prod(shape)).reshape(shape), selection))


def plain(array: np.ndarray, selection: Any) -> np.ndarray:
    return array[selection]
