"""Images from WebDataset, Grain and Hugging Face Datasets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import Array
from .data import PIXELS
from .image_loader import Batch, ImageLoader, Images, Mapped

WIDTH = int(np.prod(PIXELS))


class WebImages(ImageLoader):
    """Tar files, read in order through a shuffle buffer of samples."""

    library = "WebDataset"
    modules = ("webdataset", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import webdataset

        pattern = str(path / "%05d.tar")
        with webdataset.ShardWriter(pattern, maxcount=max(256, spec.rows // 64), verbose=0) as out:
            for i in range(spec.rows):
                out.write({"__key__": f"{i:08d}", "image.npy": images[i], "label.cls": i})

    def open(self, path: Path, spec: Images) -> Any:
        return sorted(map(str, path.glob("*.tar"))), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        import torch

        for image, label in self._data(handle, number):
            yield torch.as_tensor(image), torch.as_tensor(np.asarray(label))

    def _data(self, handle: Any, number: int) -> Any:
        import webdataset

        files, spec = handle
        kept = 1000 if self.how == "defaults" else spec.pool * spec.chunk
        files_in_turn = webdataset.WebDataset(files, shardshuffle=len(files), seed=number)
        return (
            files_in_turn.shuffle(
                kept, initial=100 if self.how == "defaults" else kept, seed=number
            )
            .decode()
            .to_tuple("image.npy", "label.cls")
            .batched(spec.batch)
        )

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        import webdataset

        return webdataset.WebLoader(
            self._data(handle, 0),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
        )


def _decoded(record: bytes) -> dict[str, Any]:
    image = np.frombuffer(record, np.uint8, WIDTH).reshape(PIXELS)
    return {"image": image, "label": np.frombuffer(record, np.int64, 1, WIDTH)[0]}


class GrainImages(ImageLoader):
    """ArrayRecord files, one record a group, as its documents say for random access."""

    library = "Grain"
    modules = ("grain", "array_record", "torch")
    packed = "zstd, a record at a time"

    def write(self, path: Path, images: Array, spec: Images) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path / "images.array_record"), "group_size:1")
        for i in range(spec.rows):
            writer.write(images[i].tobytes() + i.to_bytes(8, "little"))
        writer.close()

    def open(self, path: Path, spec: Images) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource([str(path / "images.array_record")]), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        import torch

        for batch in self._data(handle, number):
            yield torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])

    def _data(self, handle: Any, number: int) -> Any:
        import grain

        source, spec = handle
        data = grain.MapDataset.source(source).shuffle(seed=number).map(_decoded)
        batches = data.batch(spec.batch)
        if self.how == "defaults":
            return batches.to_iter_dataset()
        count = len(os.sched_getaffinity(0))
        return batches.to_iter_dataset(grain.ReadOptions(count, prefetch_buffer_size=8))


class FaceImages(Mapped):
    """Arrow files, mapped."""

    library = "HF Datasets"
    modules = ("datasets", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import datasets

        datasets.disable_progress_bars()
        if self.how == "defaults":
            shape = datasets.Array3D(PIXELS, "uint8")
            features = datasets.Features({"image": shape, "label": datasets.Value("int64")})

            def rows() -> Iterator[dict[str, Any]]:
                for i in range(spec.rows):
                    yield {"image": images[i], "label": i}

            made = datasets.Dataset.from_generator(
                rows, features=features, cache_dir=str(path / "cache")
            )
        else:
            import pyarrow as pa

            flat = pa.array(np.ascontiguousarray(images).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
            made = datasets.Dataset(pa.table({"image": lists, "label": np.arange(spec.rows)}))
        made.save_to_disk(str(path / "saved"))
        shutil.rmtree(path / "cache", ignore_errors=True)

    def open(self, path: Path, spec: Images) -> Any:
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_from_disk(str(path / "saved"))
        return data.with_format("torch" if self.how == "defaults" else "arrow"), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        import torch

        data, spec = handle
        if self.how == "defaults":
            for batch in self.dataset(handle, spec, 0, None):
                yield batch["image"], batch["label"]
            return
        order = np.random.default_rng(number).permutation(spec.rows)
        for start in range(0, spec.rows, spec.batch):
            table = data[order[start : start + spec.batch].tolist()]
            image = table["image"].combine_chunks().flatten().to_numpy()
            label = table["label"].to_numpy()
            yield torch.from_numpy(np.array(image.reshape(-1, *PIXELS))), torch.from_numpy(label)


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        WebImages("shuffle(1000)", "defaults", "own", "wds"),
        WebImages("a buffer as large as our pool", "fast", "pool", "wds"),
        GrainImages("16 threads", "defaults", "exact", "arrayrecord"),
        GrainImages("a thread a core", "fast", "exact", "arrayrecord"),
        FaceImages("torch format", "defaults", "exact", "hf-array3d"),
        FaceImages("arrow format", "fast", "exact", "hf-list"),
    ]
