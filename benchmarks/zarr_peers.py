"""The readers of Zarr v3: ours, TensorStore, zarr-python and its pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .layout import Layout
from .peer import CACHE, OURS, Peer
from .samples import Array


class Tensorstash(Peer):
    """This package."""

    name = OURS
    format = "zarr"
    module = "tensorstash"
    package = "tensorstash"
    caches = True

    @classmethod
    def version(cls) -> str:
        """From the package itself: it may run from a checkout."""
        import tensorstash

        return str(getattr(tensorstash, "__version__", "checkout"))

    def create(self, path: Path, layout: Layout) -> Any:
        import tensorstash as stash

        return stash.create(
            str(path),
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=layout.chunks,
            shards=layout.shards,
            codecs=layout.inner,
        )

    def open(self, path: Path, cached: bool = False) -> Any:
        import tensorstash as stash

        how: dict[str, Any] = {"cache": CACHE, "immutable": True} if cached else {}
        return stash.open(str(path), **how)

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle[rows]
        return values

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where] = values

    def append(self, handle: Any, rows: Array) -> Any:
        handle.append(rows)
        return handle


class Looking(Tensorstash):
    """Ours, whose kept chunks are looked at before each read: files may be replaced."""

    name = f"{OURS}, with a look"

    def open(self, path: Path, cached: bool = False) -> Any:
        import tensorstash as stash

        return stash.open(str(path), **({"cache": CACHE} if cached else {}))


class TensorStore(Peer):
    """google/tensorstore. Files are not synced on write (``file_io_sync``): nobody else does."""

    name = "TensorStore"
    format = "zarr"
    module = "tensorstore"
    package = "tensorstore"
    caches = True

    def _spec(self, path: Path) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}

    def create(self, path: Path, layout: Layout) -> Any:
        import tensorstore as ts

        metadata = {
            "shape": list(layout.shape),
            "data_type": np.dtype(layout.dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": layout.outer}},
            "codecs": layout.documents,
            "fill_value": 0,
        }
        spec = {**self._spec(path), "metadata": metadata}
        context = ts.Context({"file_io_sync": False})
        return ts.open(spec, create=True, delete_existing=True, context=context).result()

    def open(self, path: Path, cached: bool = False) -> Any:
        import tensorstore as ts

        if not cached:
            return ts.open(self._spec(path), open=True, read=True).result()
        context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE}})
        return ts.open(
            self._spec(path),
            open=True,
            read=True,
            context=context,
            recheck_cached_data=False,
            recheck_cached_metadata=False,
        ).result()

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where].read().result()
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle[rows].read().result()
        return values

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where].write(values).result()

    def append(self, handle: Any, rows: Array) -> Any:
        start = handle.shape[0]
        stop = start + len(rows)
        handle = handle.resize(exclusive_max=[stop, *handle.shape[1:]]).result()
        handle[start:stop].write(rows).result()
        return handle


class TensorStoreBatch(TensorStore):
    """TensorStore with all small reads of one call issued at once, inside a ``Batch``."""

    name = "TensorStore, one batch"

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        import tensorstore as ts

        with ts.Batch() as batch:
            futures = [handle[box].read(batch=batch) for box in boxes]
        return [future.result() for future in futures]


class ZarrPython(Peer):
    """zarr-python with its default pipeline."""

    name = "zarr-python"
    format = "zarr"
    module = "zarr"
    package = "zarr"
    pipeline: ClassVar[str] = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def _config(self) -> Any:
        import zarr

        # an array keeps the pipeline that was configured when it was opened
        return zarr.config.set({"codec_pipeline.path": self.pipeline})

    def create(self, path: Path, layout: Layout) -> Any:
        import zarr

        with self._config():
            return zarr.create(
                store=str(path),
                shape=layout.shape,
                dtype=layout.dtype,
                chunks=layout.outer,
                codecs=layout.documents,
                zarr_format=3,
                fill_value=0,
                overwrite=True,
            )

    def open(self, path: Path, cached: bool = False) -> Any:
        import zarr

        with self._config():
            return zarr.open_array(str(path), mode="r")

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle.oindex[rows]
        return values

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where] = values

    def append(self, handle: Any, rows: Array) -> Any:
        handle.append(rows)
        return handle


class ZarrFused(ZarrPython):
    """zarr-python with the fused pipeline of 3.3 (Python 3.12 and newer)."""

    name = "zarr-python, fused"
    pipeline = "zarr.core.codec_pipeline.FusedCodecPipeline"

    @classmethod
    def missing(cls) -> str:
        """Where this zarr has no such pipeline."""
        if why := super().missing():
            return why
        import zarr.core.codec_pipeline as pipelines

        if hasattr(pipelines, "FusedCodecPipeline"):
            return ""
        return f"zarr {cls.version()} has no fused pipeline (3.3 has, on Python 3.12 or newer)"


class Zarrs(ZarrPython):
    """zarr-python with the Rust pipeline of zarrs."""

    name = "zarrs"
    module = "zarrs"
    package = "zarrs"
    pipeline = "zarrs.ZarrsCodecPipeline"
