"""Array libraries as the training workloads use them: those of the other benchmarks, with a cache
of a given size and a count of decoded chunks where they tell it, and two more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import flat_peers, zarr_peers
from ..layout import Layout
from ..peer import OURS, Peer
from ..samples import Array


class _Kept:
    """What these contestants can beside what :class:`~benchmarks.peer.Peer` asks for."""

    def open_kept(self: Any, path: Path, nbytes: int) -> Any:
        """Opened for reading, keeping up to ``nbytes`` of decoded chunks."""
        del nbytes
        return self.open(path)

    def decoded(self, handle: Any) -> int | None:
        """Chunks that were decoded so far, where it can be told."""
        del handle
        return None

    def height(self, handle: Any) -> int | None:
        """Rows of a chunk, where it chose them itself."""
        del handle
        return None


class Tensorstash(_Kept, zarr_peers.Tensorstash):
    """This package: an array."""

    def open_kept(self, path: Path, nbytes: int) -> Any:
        import tensorstash as stash

        return stash.open(str(path), cache=nbytes, immutable=bool(nbytes))

    def decoded(self, handle: Any) -> int | None:
        return int(handle.stats.chunks)


class TensorStore(_Kept, zarr_peers.TensorStore):
    """As many threads as there are cores."""

    def open_kept(self, path: Path, nbytes: int) -> Any:
        import tensorstore as ts

        context = ts.Context({"cache_pool": {"total_bytes_limit": nbytes}})
        how: dict[str, Any] = {"recheck_cached_data": False} if nbytes else {}
        return ts.open(self._spec(path), open=True, read=True, context=context, **how).result()


class ZarrPython(_Kept, zarr_peers.ZarrPython):
    """With its default pipeline."""


class H5py(_Kept, flat_peers.H5py):
    """Its cache is 1 MiB unless told otherwise."""

    def open_kept(self, path: Path, nbytes: int) -> Any:
        import h5py

        how = {"rdcc_nbytes": nbytes, "rdcc_nslots": 100_003} if nbytes else {}
        return h5py.File(path, "r", **how)["a"]


class PyTables(_Kept, flat_peers.PyTables):
    """A ``CArray``."""


class Memmap(_Kept, flat_peers.Memmap):
    """The ceiling, uncompressed."""


class Records(_Kept, Peer):
    """This package: a field of records, with all defaults."""

    name = f"{OURS} records"
    format = "records"
    module = "tensorstash"
    package = "tensorstash"

    def create(self, path: Path, layout: Layout) -> Any:
        import tensorstash as stash

        schema = {"a": (layout.shape[1:], layout.dtype)}
        return stash.create_records(str(path), schema, layout.shape[0])

    def open(self, path: Path, cached: bool = False) -> Any:
        import tensorstash as stash

        return stash.open_records(str(path))

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle["a"][where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle[rows]["a"]
        return values

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle["a"][where] = values

    def append(self, handle: Any, rows: Array) -> Any:
        handle.extend({"a": rows})
        return handle

    def decoded(self, handle: Any) -> int | None:
        return int(handle["a"].stats.chunks)

    def height(self, handle: Any) -> int | None:
        return int(handle["a"].chunks[0])


class Lance(_Kept, Peer):
    """A column of fixed-size lists, through ``lance``."""

    name = "Lance"
    format = "lance"
    module = "lance"
    package = "pylance"

    def create(self, path: Path, layout: Layout) -> Any:
        return {"path": path, "width": layout.shape[1], "parts": []}

    def open(self, path: Path, cached: bool = False) -> Any:
        import lance

        return lance.dataset(str(path))

    def _array(self, table: Any) -> Array:
        column = table.column("a").combine_chunks()
        flat: Array = column.flatten().to_numpy()
        return flat.reshape(len(column), -1)

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        return self._array(handle.to_table(columns=["a"]))[where]

    def take(self, handle: Any, rows: Array) -> Array:
        # It answers each row once for repeated numbers, in the order of the numbers.
        return self._array(handle.take(rows, columns=["a"]))

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        import lance
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        table = pa.table({"a": pa.FixedSizeListArray.from_arrays(flat, handle["width"])})
        mode = "append" if handle["parts"] else "create"
        handle["parts"].append(len(values))
        lance.write_dataset(table, str(handle["path"]), mode=mode)

    def append(self, handle: Any, rows: Array) -> Any:
        self.write(handle, (), rows)
        return handle


PEERS: dict[str, Any] = {
    OURS: Tensorstash,
    f"{OURS} records": Records,
    "TensorStore": TensorStore,
    "zarr-python": ZarrPython,
    "h5py": H5py,
    "PyTables": PyTables,
    "Lance": Lance,
    "np.memmap": Memmap,
}
