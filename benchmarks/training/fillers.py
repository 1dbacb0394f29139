"""Who is filled row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..layout import Layout
from ..peer import OURS
from ..redis_peers import HOST
from .filler import CHUNK, Filler
from .row_peers import PEERS


def fields(side: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Of a row."""
    return {
        "obs": ((side, side, 3), "uint8"),
        "action": ((4,), "float32"),
        "reward": ((), "float32"),
    }


class OurFiller(Filler):
    """Records of ours, in files or in Redis."""

    library = OURS
    modules = ("tensorstash",)
    large = True

    def _where(self, place: str) -> str:
        if not self.redis:
            return place
        port, name = place.split("/")
        return f"redis://{HOST}:{port}/0/{name}"

    def create(self, place: str, size: int, side: int) -> Any:
        import tensorstash as stash

        how: dict[str, Any] = {} if self.how == "defaults" else {"rows_per_chunk": CHUNK}
        return stash.create_records(self._where(place), fields(side), size, **how)

    def put(self, handle: Any, i: int, row: Any) -> None:
        handle[i] = row

    def get(self, handle: Any, i: int) -> dict[str, Any]:
        found: dict[str, Any] = handle[i]
        return found

    def append(self, handle: Any, columns: Any) -> Any:
        handle.extend(columns)
        return handle


class ArrayFiller(Filler):
    """An array for every field."""

    def __init__(self, library: str) -> None:
        super().__init__("an array a field", "fast")
        self.peer = PEERS[library]()
        self.library, self.modules = library, (self.peer.module,)

    def _create(self, place: str, size: int, side: int) -> dict[str, Any]:
        Path(place).mkdir(parents=True, exist_ok=True)
        made = {}
        for name, (shape, dtype) in fields(side).items():
            layout = Layout((size, *shape), dtype, (CHUNK, *shape), "lz4")
            made[name] = self.peer.create(Path(place) / name, layout)
        return made

    def create(self, place: str, size: int, side: int) -> Any:
        return self._create(place, size, side)

    def create_growing(self, place: str, size: int, side: int) -> Any:
        # HDF5 grows only what was made to grow.
        single = self.library in ("h5py", "PyTables")
        handle = self._create(place, 0 if single else size, side)
        return self.append(handle, None) if single else handle

    def put(self, handle: Any, i: int, row: Any) -> None:
        for name, value in row.items():
            self.peer.write(handle[name], (slice(i, i + 1),), np.asarray(value)[None])

    def get(self, handle: Any, i: int) -> dict[str, Any]:
        return {name: self.peer.read(array, (slice(i, i + 1),)) for name, array in handle.items()}

    def append(self, handle: Any, columns: Any) -> Any:
        if columns is None:
            return handle
        return {name: self.peer.append(handle[name], values) for name, values in columns.items()}


class TensorDictFiller(Filler):
    """TensorDict's storages, as in its documents: ``from_schema``, then ``td[i] = row``."""

    library = "TensorDict"
    modules = ("tensordict", "torch")
    verbs = ("rows",)  # none of them grows

    def __init__(self, storage: str, how: str, **options: Any) -> None:
        super().__init__("chunks of 64" if options else "as it comes", how)
        self.storage, self.options = storage, options
        self.redis, self.whole = storage == "redis", storage in ("h5", "zarr")
        self.library = f"TensorDict {storage}"

    def create(self, place: str, size: int, side: int) -> Any:
        import torch
        from tensordict import TensorDict

        how: dict[str, Any] = dict(self.options)
        if self.storage == "memmap":
            how["prefix"] = place
        elif self.redis:
            how |= {"host": HOST, "port": int(place.split("/")[0])}
        else:
            how["filename"] = f"{place}.{self.storage}"
        kinds = {"uint8": torch.uint8, "float32": torch.float32}
        schema = {k: (list(shape), kinds[dtype]) for k, (shape, dtype) in fields(side).items()}
        return TensorDict.from_schema(schema, batch_size=[size], storage=self.storage, **how)

    def row(self, values: dict[str, Any]) -> Any:
        import torch
        from tensordict import TensorDict

        return TensorDict({k: torch.as_tensor(v) for k, v in values.items()}, batch_size=[])

    def put(self, handle: Any, i: int, row: Any) -> None:
        handle[i] = row

    def get(self, handle: Any, i: int) -> dict[str, Any]:
        found = handle[i]
        return {name: np.asarray(found[name]) for name in ("obs", "action", "reward")}


def everyone() -> list[Filler]:
    """All contestants, ours first, whether installed or not."""
    redis = OurFiller("records, Redis", "defaults")
    redis.redis = True
    return [
        OurFiller("records", "defaults"),
        OurFiller("records, chunks of 64", "fast"),
        redis,
        TensorDictFiller("memmap", "defaults"),
        TensorDictFiller("h5", "defaults"),
        TensorDictFiller("zarr", "defaults"),
        TensorDictFiller("zarr", "fast", chunks=(CHUNK,)),
        TensorDictFiller("redis", "defaults"),
        *(ArrayFiller(name) for name in ("zarr-python", "TensorStore", "h5py", "PyTables")),
    ]


def by_name(name: str) -> Filler:
    """The contestant of that name."""
    return next(one for one in everyone() if one.name == name)
