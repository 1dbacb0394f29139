"""Who reads documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import fill
from ..flat_peers import H5py
from ..layout import Layout
from ..peer import OURS
from ..samples import Array
from .document_reader import Batches, DocumentReader, shaped
from .row_peers import PEERS

POOL, RUN = 128, 256
"""Runs of documents that a pool draws from, and documents of a run."""


def _chunk(total: int) -> int:
    """Tokens of a chunk: 256 KiB, of small sets less."""
    return 1 << (16 if total > 1 << 25 else 14)


class OurDocuments(DocumentReader):
    """A ragged field of records, by our loader."""

    library = OURS
    modules = ("tensorstash", "torch")
    fills = True

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import tensorstash as stash

        schema = {"tokens": stash.ragged("int32"), "id": ((), "int64")}
        records = stash.create_records(str(path / "records"), schema, 0)
        step = 8192
        for start in range(0, len(offsets) - 1, step):
            ends = offsets[start : start + step + 1]
            values = np.asarray(tokens[ends[0] : ends[-1]])
            ragged = stash.Ragged(values, ends - ends[0])
            records.extend({"tokens": ragged, "id": np.arange(start, start + len(ragged))})

    def open(self, path: Path, offsets: Array) -> Any:
        import tensorstash as stash

        return stash.open_records(str(path / "records")), {}

    def batches(self, handle: Any, form: str, batch: int, seed: int) -> Batches:
        from tensorstash.torch import Loader

        records, loaders = handle
        if form not in loaders:
            shuffle = "exact" if self.order == "exact" else True
            ahead = 0 if "ahead" in self.variant else 4
            view = records.ragged_as(form)
            loaders[form] = Loader(view, batch, shuffle=shuffle, prefetch=ahead)
        loaders[form].set_epoch(seed)
        for loaded in loaders[form]:
            yield loaded["tokens"], np.asarray(loaded["id"])


class ArrayDocuments(DocumentReader):
    """One long array and the documents' offsets: a read a document, or runs of documents drawn
    from a pool, written by hand."""

    def __init__(self, library: str, variant: str, how: str, order: str) -> None:
        self.peer = PEERS[library]()
        super().__init__(variant, how, order, "flat")
        self.library, self.modules = library, (self.peer.module,)
        self.fills = order == "pool"

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        codec = "raw" if self.peer.codecs == ("raw",) else "lz4"
        layout = Layout(tokens.shape, "i4", (_chunk(len(tokens)),), codec)
        handle = self.peer.create(path / "tokens", layout)
        fill(self.peer, handle, tokens, layout)
        self.peer.close(handle)
        np.save(path / "offsets.npy", offsets)

    def open(self, path: Path, offsets: Array) -> Any:
        return self.peer.open(path / "tokens"), np.load(path / "offsets.npy")

    def count(self, handle: Any) -> int:
        return len(handle[1]) - 1

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        array, offsets = handle
        return self.peer.reads(
            array, [(slice(int(offsets[i]), int(offsets[i + 1])),) for i in rows.tolist()]
        )

    def batches(self, handle: Any, form: str, batch: int, seed: int) -> Batches:
        if self.order != "pool":
            yield from super().batches(handle, form, batch, seed)
            return
        array, offsets = handle
        random = np.random.default_rng(seed)
        count = len(offsets) - 1
        run = RUN if count > 100_000 else RUN // 4
        runs = random.permutation(-(-count // run)) * run
        for first in range(0, len(runs), POOL):
            documents: list[Array] = []
            numbers: list[int] = []
            for start in runs[first : first + POOL].tolist():
                ends = offsets[start : start + run + 1]
                values = self.peer.read(array, (slice(int(ends[0]), int(ends[-1])),))
                documents += np.split(values, ends[1:-1] - ends[0])
                numbers += range(start, start + len(ends) - 1)
            order = random.permutation(len(numbers))
            rows = np.array(numbers)[order]
            for at in range(0, len(order) - batch + 1, batch):
                part = order[at : at + batch].tolist()
                yield shaped([documents[i] for i in part], form), rows[at : at + batch]


class VlenDocuments(DocumentReader):
    """HDF5's rows of variable length."""

    library = "h5py"
    modules = ("h5py",)

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import h5py

        kind = h5py.vlen_dtype(np.int32)
        with h5py.File(path / "documents.h5", "w", libver="latest") as file:
            made = file.create_dataset("a", shape=(len(offsets) - 1,), dtype=kind, chunks=(256,))
            parts = np.split(np.asarray(tokens), offsets[1:-1])
            for start in range(0, len(parts), 4096):
                part = np.empty(len(parts[start : start + 4096]), object)
                part[:] = parts[start : start + 4096]
                made[start : start + len(part)] = part

    def open(self, path: Path, offsets: Array) -> Any:
        return H5py().open(path / "documents.h5")

    def count(self, handle: Any) -> int:
        return len(handle)

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        unique, back = np.unique(rows, return_inverse=True)
        found = handle[unique]
        return [found[i] for i in back.tolist()]


class TablesDocuments(DocumentReader):
    """PyTables' ``VLArray``, which compresses nothing but its references."""

    library = "PyTables"
    modules = ("tables",)

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import tables

        with tables.open_file(str(path / "documents.h5"), "w") as file:
            filters = tables.Filters(complevel=5, complib="blosc:lz4")
            made = file.create_vlarray(file.root, "a", tables.Int32Atom(), filters=filters)
            for i in range(len(offsets) - 1):
                made.append(tokens[offsets[i] : offsets[i + 1]])

    def open(self, path: Path, offsets: Array) -> Any:
        import tables

        return tables.open_file(str(path / "documents.h5"), "r").root.a

    def count(self, handle: Any) -> int:
        return int(handle.nrows)

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        if self.how == "defaults":
            return [handle[i] for i in rows.tolist()]
        found: Sequence[Array] = handle[rows.tolist()]
        return found


class FaceDocuments(DocumentReader):
    """Hugging Face Datasets: an Arrow list column, mapped."""

    library = "HF Datasets"
    modules = ("datasets",)

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import datasets
        import pyarrow as pa

        datasets.disable_progress_bars()
        ends = pa.array(offsets.astype("i8"))
        lists = pa.LargeListArray.from_arrays(ends, pa.array(np.asarray(tokens)))
        table = pa.table({"tokens": lists.cast(pa.list_(pa.int32()))})
        datasets.Dataset(table).save_to_disk(str(path / "saved"))

    def open(self, path: Path, offsets: Array) -> Any:
        import datasets

        form = "torch" if self.how == "defaults" else "arrow"
        return datasets.load_from_disk(str(path / "saved")).with_format(form)

    def count(self, handle: Any) -> int:
        return len(handle)

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        found = handle[rows.tolist()]["tokens"]
        if self.how == "defaults":
            return [np.asarray(document) for document in found]
        return _split(found.combine_chunks())


class LanceDocuments(DocumentReader):
    """A list column of a Lance table."""

    library = "Lance"
    modules = ("lance", "pyarrow")

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import lance
        import pyarrow as pa

        lists = pa.LargeListArray.from_arrays(
            pa.array(offsets.astype("i8")), pa.array(np.asarray(tokens))
        )
        lance.write_dataset(pa.table({"tokens": lists}), str(path / "documents.lance"))

    def open(self, path: Path, offsets: Array) -> Any:
        import lance

        return lance.dataset(str(path / "documents.lance"))

    def count(self, handle: Any) -> int:
        return int(handle.count_rows())

    def documents(self, handle: Any, rows: Array) -> Sequence[Array]:
        return _split(handle.take(rows, columns=["tokens"]).column("tokens").combine_chunks())


def _split(lists: Any) -> list[Array]:
    """The lists of an Arrow column as arrays."""
    ends = lists.offsets.to_numpy()
    values = lists.values.to_numpy()
    return [np.array(values[a:b]) for a, b in itertools.pairwise(ends.tolist())]


class LitBlocks(DocumentReader):
    """LitData's ``TokensLoader``: it knows no documents, only blocks of one length."""

    library = "LitData"
    modules = ("litdata", "torch")
    tells = False
    block = 278

    def write(self, path: Path, tokens: Array, offsets: Array) -> None:
        import torch
        from litdata import TokensLoader
        from litdata.streaming.writer import BinaryWriter

        loader = TokensLoader(self.block)
        writer = BinaryWriter(str(path), chunk_size=1 << 22, item_loader=loader)
        for i in range(len(offsets) - 1):
            writer[i] = torch.from_numpy(np.array(tokens[offsets[i] : offsets[i + 1]]))
        writer.done()
        writer.merge()

    def open(self, path: Path, offsets: Array) -> Any:
        return path

    def batches(self, handle: Any, form: str, batch: int, seed: int) -> Batches:
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

        data = StreamingDataset(
            str(handle), item_loader=TokensLoader(self.block), shuffle=True, seed=seed
        )
        loader: Iterator[Any] = iter(StreamingDataLoader(data, batch_size=batch))
        for values in loader:
            yield values, np.zeros(len(values), np.int64)


def everyone() -> list[DocumentReader]:
    """All contestants, ours first, whether installed or not."""
    found: list[DocumentReader] = [
        OurDocuments("Loader", "defaults", "pool", "ragged"),
        OurDocuments("Loader, nothing ahead", "fast", "pool", "ragged"),
        OurDocuments("Loader, exact", "defaults", "exact", "ragged"),
    ]
    for library in ("zarr-python", "TensorStore", "h5py"):
        found.append(ArrayDocuments(library, "array and offsets", "defaults", "exact"))
        found.append(ArrayDocuments(library, "array and offsets, pool by hand", "fast", "pool"))
    return [
        *found,
        VlenDocuments("vlen", "defaults", "exact", "vlen"),
        TablesDocuments("VLArray, a document a read", "defaults", "exact", "vlarray"),
        TablesDocuments("VLArray, a batch a read", "fast", "exact", "vlarray"),
        FaceDocuments("torch format", "defaults", "exact", "hf"),
        FaceDocuments("arrow format", "fast", "exact", "hf"),
        LanceDocuments("list column", "defaults", "exact", "lists"),
        LitBlocks("TokensLoader, blocks of one length", "defaults", "own", "tokens"),
        ArrayDocuments("np.memmap", "array and offsets", "ceiling", "exact"),
    ]


def by_name(name: str) -> DocumentReader:
    """The contestant of that name."""
    return next(one for one in everyone() if one.name == name)
