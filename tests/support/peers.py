"""Arrays to exchange with zarr-python and TensorStore, and how to open them there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from packaging.version import Version

import tensorstash as stash

ZARR = Version(zarr.__version__)


def since(version: str) -> str:
    """``Z`` where the zarr-python of this run is of ``version`` or newer."""
    return "Z" if Version(version) <= ZARR else ""


SHAPE, CHUNKS = (9, 10), (4, 6)
N = SHAPE[0] * SHAPE[1]


@dataclass(frozen=True)
class Case:
    """One way to store an array, and who reads it."""

    name: str
    readers: str
    dtype: Any = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    fill: Any = None

    def data(self) -> np.ndarray:
        return sample(self.dtype)


def sample(dtype: Any) -> np.ndarray:
    """Values of every kind ``dtype`` has, with a whole chunk of the fill value."""
    plain = np.arange(N).reshape(SHAPE)
    if dtype in (str, "string"):
        data = np.array(["", "añ", "longer text", "𝄞"], object)[plain % 4]
        data = data.astype(np.dtypes.StringDType())
        data[:4, :6] = ""
        return data
    if dtype in (bytes, "bytes"):
        items = np.empty(3, object)
        items[:] = [b"", b"a\0b", b"\xff" * 9]
        data = items[plain % 3]
        data[:4, :6] = b""
        return data
    made = np.dtype(dtype)
    if made.names is not None:
        data = np.zeros(SHAPE, made)
        for name in made.names:
            part = made[name]
            base = part.subdtype[0] if part.subdtype else part
            values = plain.reshape(SHAPE + (1,) * (data[name].ndim - 2))
            data[name] = (values % 100).astype(base)
        data[:4, :6] = 0
        return data
    if made.kind == "V" and made.type is np.void:
        raw = np.random.default_rng(0).bytes(N * made.itemsize)
        return np.frombuffer(raw, made).reshape(SHAPE).copy()
    if made.kind in "US":
        data = (plain % 1000).astype(made)
        data[:4, :6] = ""
        return data
    data = (plain - 1j * plain if made.kind == "c" else plain % 120).astype(made)
    data[:4, :6] = np.zeros((), made)
    if made.kind in "fc":
        data[8, 9], data[8, 8], data[0, 9] = np.nan, -np.inf, -0.0
    return data


def equal(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "OT" or b.dtype.kind in "OT":
        return a.tolist() == b.tolist()
    a = a.astype(a.dtype.newbyteorder("="), copy=False) if a.dtype.names is None else a
    return bool(a.itemsize == b.itemsize and a.tobytes() == b.astype(a.dtype).tobytes())


def store(path: Path, case: Case, data: np.ndarray | None = None) -> Any:
    dtype = case.data().dtype if case.dtype not in (str, bytes) else case.dtype
    options = {"chunks": CHUNKS, "fill_value": case.fill, **case.options}
    array = stash.create(str(path), shape=SHAPE, dtype=dtype, **options)
    if data is not None:
        array[...] = data
    return array


def document(path: Path, key: str = "zarr.json") -> dict[str, Any]:
    return json.loads((path / key).read_bytes())


def rewrite(path: Path, key: str = "zarr.json", **changes: Any) -> None:
    made = {**document(path, key), **changes}
    (path / key).write_text(json.dumps(made))


def in_zarr(path: Path, mode: str = "r") -> Any:
    return zarr.open_array(str(path), mode=mode)


def in_tensorstore(path: Path, version: int = 3, name: str | None = None) -> Any:
    spec = {
        "driver": "zarr3" if version == 3 else "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        **({} if name is None else {"field": name}),
    }
    return tensorstore.open(spec).result()


def refused(read: Any) -> bool:
    try:
        read()
    except Exception:  # peers fail in many ways
        return True
    return False


RECORD = np.dtype([("a", "<i4"), ("b", "<f8"), ("c", "u1")])
DEEP = np.dtype([("a", "<i4"), ("b", [("x", "<f4"), ("y", "<i2")])])


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
CRC = {"name": "crc32c"}
FLIP = {"name": "transpose", "configuration": {"order": [1, 0]}}


def named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def shard(inner: tuple[int, int], *chain: Any, location: str = "end", index: Any = None) -> Any:
    return named(
        "sharding_indexed",
        chunk_shape=list(inner),
        codecs=list(chain),
        index_codecs=index or [LITTLE, CRC],
        index_location=location,
    )
