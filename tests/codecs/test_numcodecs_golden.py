"""The golden files of numcodecs: chunks that its releases have stored, each as a Zarr v2 array.

They lie in numcodecs' source distribution, which pip fetches; without a registry to ask, the test
is skipped, and says so.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import tensorstash as stash
from tensorstash.errors import StashError, Unsupported

pytestmark = pytest.mark.filterwarnings("ignore")

OBJECTS = ("categorize", "json2", "msgpack2", "pickle", "vlen-array", "vlen-bytes", "vlen-utf8")
FILTERS = ("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", *OBJECTS)
KNOWN = frozenset((*numcodecs.registry.codec_registry, *numcodecs.registry.entries))


def fetched(folder: Path) -> Path:
    """The archive, fetched once for all runs of a checkout."""
    name = f"numcodecs-{version('numcodecs')}.tar.gz"
    kept = folder / name
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        wanted = ["--no-deps", "--no-binary", "numcodecs", f"numcodecs=={version('numcodecs')}"]
        try:
            done = subprocess.run(
                [*pip, *wanted, "-q", "-d", fresh], capture_output=True, text=True, timeout=240
            )
            said = done.stderr.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            said = "pip took longer than 240 s"
        made = Path(fresh, name)
        if not made.exists():
            pytest.skip(f"NOT RUN: the golden files of numcodecs could not be fetched: {said}")
        os.replace(made, kept)
    return kept


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, bytes]:
    archive = fetched(Path(request.config.cache.mkdir("numcodecs")))
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/fixture/")
            file = tar.extractfile(member) if name and member.isfile() else None
            if file is not None:
                found[name] = file.read()
    assert len(found) > 1000
    return found


def cases(golden: dict[str, bytes]) -> Iterator[tuple[str, np.ndarray, dict[str, Any], bytes]]:
    for name in sorted(golden):
        folder, _, file = name.rpartition("/")
        if not file.startswith("encoded."):
            continue
        array = golden[f"{folder.rpartition('/')[0]}/array.{file.split('.')[1]}.npy"]
        data = np.load(io.BytesIO(array), allow_pickle=True)
        yield name, data, json.loads(golden[f"{folder}/config.json"]), golden[name]


def stored(data: np.ndarray, config: dict[str, Any], chunk: bytes) -> dict[str, bytes]:
    """The chunk as the only one of a Zarr v2 array."""
    within = config["id"] in FILTERS
    fortran = data.flags.f_contiguous and not data.flags.c_contiguous
    document = {
        "zarr_format": 2,
        "shape": data.shape,
        "chunks": data.shape,
        "dtype": "|O" if data.dtype == object else data.dtype.str,
        "order": "F" if fortran else "C",
        "filters": [config] if within else None,
        "compressor": None if within else config,
        "fill_value": None,
    }
    key = ".".join(["0"] * data.ndim) or "0"
    return {".zarray": json.dumps(document).encode(), key: chunk}


def in_zarr(place: dict[str, bytes]) -> np.ndarray:
    buffer = default_buffer_prototype().buffer
    kept = {key: buffer.from_bytes(value) for key, value in place.items()}
    return np.asarray(zarr.open_array(MemoryStore(kept), mode="r")[...])


def bits(values: np.ndarray) -> Any:
    if values.dtype.kind in "OT":
        return repr(values.astype(object).tolist()), values.shape
    return values.dtype.str, values.shape, values.tobytes()


def test_every_golden_file_that_zarr_reads_is_read(golden: dict[str, bytes]) -> None:
    wrong: list[str] = []
    read = same = 0
    for name, data, config, chunk in cases(golden):
        place = stored(data, config, chunk)
        try:
            theirs = in_zarr(place)
        except Exception:  # whatever the reason: we may do better, and may not
            theirs = None
        try:
            ours = stash.open(dict(place), allow_pickle=True)[...]
        except StashError as error:
            if theirs is not None:
                wrong.append(f"{name} {config}: {error}")
            elif config["id"] not in KNOWN and not isinstance(error, Unsupported):
                wrong.append(f"{name}: {error}")
            continue
        read += 1
        if theirs is not None:
            same += 1
            native = theirs if theirs.dtype.kind in "OT" else theirs.astype(ours.dtype)
            if bits(native) != bits(ours):
                wrong.append(f"{name} {config}: {ours.ravel()[:3]}, not {native.ravel()[:3]}")
    print(f"read {read}, as zarr {same}")
    assert not wrong, f"{len(wrong)} of {read} are wrong: " + "; ".join(wrong[:5])
    assert same > 700
