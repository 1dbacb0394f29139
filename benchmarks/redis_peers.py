"""Who keeps a table in Redis: ours, TensorDict's store, and plain loops over redis-py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .installed import Installed
from .layout import Layout
from .peer import OURS
from .samples import Array
from .zarr_peers import Tensorstash as Local

HOST = "127.0.0.1"
KINDS = ("raw", "lz4", "in place")
"""``in place``: raw, and rows are written within what is stored."""


class RedisPeer(Installed, ABC):
    """One way to keep a table of rows. A handle is whatever ``connect`` answers."""

    name: ClassVar[str]
    how: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("redis",)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    """Of which kinds of tables it has one."""

    @abstractmethod
    def create(self, port: int, name: str, layout: Layout) -> Any:
        """A new table."""

    @abstractmethod
    def connect(self, port: int, name: str, layout: Layout) -> Any:
        """The table ``name``, by another connection."""

    @abstractmethod
    def read(self, handle: Any) -> Array:
        """All of it."""

    @abstractmethod
    def take(self, handle: Any, rows: Array) -> Array:
        """Rows, in the order asked for."""

    @abstractmethod
    def put(self, handle: Any, rows: Array, values: Array) -> None:
        """Write rows."""

    @abstractmethod
    def write(self, handle: Any, values: Array) -> None:
        """Write all of it."""


class Tensorstash(RedisPeer):
    """This package."""

    name = OURS
    how = (
        "defaults; writes of a part of a chunk are safe among writers (*in place*: "
        "`in_place=True`, where of writers of one row parts of each may remain)"
    )
    kinds = ("raw", "lz4")
    in_place = False

    @property
    def version(self) -> str:
        """The package may run from a checkout."""
        return Local.version()

    def create(self, port: int, name: str, layout: Layout) -> Any:
        import tensorstash as stash

        return stash.create(
            f"redis://{HOST}:{port}/0/{name}",
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=layout.chunks,
            codecs=layout.inner,
            in_place=self.in_place,
        )

    def connect(self, port: int, name: str, layout: Layout) -> Any:
        import tensorstash as stash

        return stash.open(f"redis://{HOST}:{port}/0/{name}", "r+")

    def read(self, handle: Any) -> Array:
        values: Array = handle[...]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle[rows]
        return values

    def put(self, handle: Any, rows: Array, values: Array) -> None:
        handle[rows] = values

    def write(self, handle: Any, values: Array) -> None:
        handle[...] = values


class InPlace(Tensorstash):
    """This package, with rows in place."""

    kinds = ("in place",)
    in_place = True


class TensorDict(RedisPeer):
    """TensorDict's store: the table is one string of raw bytes."""

    name = "TensorDictStore"
    how = "defaults; one string, up to 512 MB, uncompressed; rows by a script"
    packages = ("tensordict", "torch")
    kinds = ("raw", "in place")

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def create(self, port: int, name: str, layout: Layout) -> Any:
        from tensordict.store import TensorDictStore

        store = TensorDictStore(host=HOST, port=port, batch_size=[layout.shape[0]])
        self._ids[name] = store._td_id
        return store

    def connect(self, port: int, name: str, layout: Layout) -> Any:
        from tensordict.store import TensorDictStore

        return TensorDictStore.from_store(td_id=self._ids[name], host=HOST, port=port)

    def read(self, handle: Any) -> Array:
        values: Array = handle["table"].numpy()
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        import torch

        values: Array = handle.get_at("table", torch.from_numpy(rows)).numpy()
        return values

    def put(self, handle: Any, rows: Array, values: Array) -> None:
        import torch

        handle.set_at_("table", torch.from_numpy(values), torch.from_numpy(rows))

    def write(self, handle: Any, values: Array) -> None:
        import torch

        handle["table"] = torch.from_numpy(values)


class _Plain:
    """A client, the layout, and one key a chunk."""

    def __init__(self, port: int, name: str, layout: Layout) -> None:
        import redis
        from numcodecs import Blosc

        self.client = redis.Redis(HOST, port)
        self.layout = layout
        self.height = layout.chunks[0]
        self.shape = (self.height, *layout.shape[1:])
        self.keys = [f"{name}/c/{i}/0" for i in range(-(-layout.shape[0] // self.height))]
        self._blosc = Blosc("lz4", 5, Blosc.SHUFFLE) if layout.codec == "lz4" else None

    def decode(self, data: bytes) -> Array:
        """A chunk, which may not be written to where it is stored raw."""
        raw = data if self._blosc is None else self._blosc.decode(data)
        return np.frombuffer(raw, self.layout.dtype).reshape(self.shape)

    def encode(self, chunk: Array) -> bytes:
        """Its bytes, filled up to a whole chunk at the end of the table."""
        whole = np.zeros(self.shape, self.layout.dtype)
        whole[: len(chunk)] = chunk
        return whole.tobytes() if self._blosc is None else bytes(self._blosc.encode(whole))


class PlainLoop(RedisPeer):
    """What one writes without a library: GET and SET, a chunk at a time."""

    name = "redis-py, GET"
    how = "a loop of GET and SET; rows are read, changed and stored with no care for others"

    def create(self, port: int, name: str, layout: Layout) -> Any:
        return _Plain(port, name, layout)

    def connect(self, port: int, name: str, layout: Layout) -> Any:
        return _Plain(port, name, layout)

    def get(self, handle: _Plain, numbers: Sequence[int]) -> list[bytes]:
        """The values of these chunks."""
        values: list[Any] = [handle.client.get(handle.keys[i]) for i in numbers]
        return values

    def set(self, handle: _Plain, values: dict[int, bytes]) -> None:
        """Store these chunks."""
        for i, value in values.items():
            handle.client.set(handle.keys[i], value)

    def read(self, handle: _Plain) -> Array:
        out = np.empty(handle.layout.shape, handle.layout.dtype)
        height = handle.height
        for i, data in enumerate(self.get(handle, range(len(handle.keys)))):
            part = out[i * height : (i + 1) * height]
            part[...] = handle.decode(data)[: len(part)]
        return out

    def take(self, handle: _Plain, rows: Array) -> Array:
        chunks, inside = np.divmod(rows, handle.height)
        out = np.empty((len(rows), *handle.shape[1:]), handle.layout.dtype)
        numbers = np.unique(chunks).tolist()
        for i, data in zip(numbers, self.get(handle, numbers), strict=True):
            mine = chunks == i
            out[mine] = handle.decode(data)[inside[mine]]
        return out

    def put(self, handle: _Plain, rows: Array, values: Array) -> None:
        chunks, inside = np.divmod(rows, handle.height)
        numbers = np.unique(chunks).tolist()
        changed = {}
        for i, data in zip(numbers, self.get(handle, numbers), strict=True):
            chunk, mine = handle.decode(data).copy(), chunks == i
            chunk[inside[mine]] = values[mine]
            changed[i] = handle.encode(chunk)
        self.set(handle, changed)

    def write(self, handle: _Plain, values: Array) -> None:
        height = handle.height
        encoded = {
            i: handle.encode(values[i * height : (i + 1) * height]) for i in range(len(handle.keys))
        }
        self.set(handle, encoded)


class PlainBatch(PlainLoop):
    """The same with one command for all chunks."""

    name = "redis-py, MGET"
    how = "one MGET and one MSET of all chunks; rows with no care for others"

    def get(self, handle: _Plain, numbers: Sequence[int]) -> list[bytes]:
        values: list[Any] = handle.client.mget([handle.keys[i] for i in numbers])
        return values

    def set(self, handle: _Plain, values: dict[int, bytes]) -> None:
        handle.client.mset({handle.keys[i]: value for i, value in values.items()})


def everyone() -> list[RedisPeer]:
    """All contestants, ours first, whether installed or not."""
    return [Tensorstash(), InPlace(), TensorDict(), PlainLoop(), PlainBatch()]
