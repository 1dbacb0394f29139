"""Who keeps arrays in a bucket: ours, TensorStore, zarr-python over its stores, icechunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .cloud_bucket import REGION, Bucket
from .cloud_peer import CloudPeer
from .layout import Layout
from .peer import CACHE, OURS
from .samples import Array
from .zarr_peers import Tensorstash as Local

MANY = 64


class Tensorstash(CloudPeer):
    """This package, with either client."""

    caches: ClassVar[dict[str, str]] = {
        "memory": "`cache=`, compared with the stored version at each use",
        "memory, immutable": "`cache=` and `immutable=True`",
        "disk": "`cache_dir=`, a new handle, compared at each use",
        "disk, immutable": "`cache_dir=` and `immutable=True`, a new handle",
    }

    def __init__(self, client: str) -> None:
        self.client = client
        self.name = OURS if client == "obstore" else f"{OURS}, {client}"
        self.how = f"client {client}, else defaults" + (
            " (the client where it is installed)" if client == "obstore" else ""
        )
        self.packages = ("tensorstash", client)  # type: ignore[misc]

    @property
    def version(self) -> str:
        """The package may run from a checkout."""
        import importlib.metadata

        return f"{Local.version()}, {self.client} {importlib.metadata.version(self.client)}"

    def _options(self, bucket: Bucket) -> dict[str, Any]:
        return {
            "endpoint": bucket.endpoint,
            "key": bucket.key,
            "secret": bucket.secret,
            "region": REGION,
            "client": self.client,
        }

    def create(self, bucket: Bucket, path: str, layout: Layout) -> Any:
        import tensorstash as stash

        return stash.create(
            f"s3://{bucket.name}/{path}",
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=layout.chunks,
            shards=layout.shards,
            codecs=layout.inner,
            options=self._options(bucket),
            overwrite=True,
        )

    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        import tensorstash as stash

        how: dict[str, Any] = {"immutable": True} if "immutable" in cache else {}
        if "memory" in cache:
            how["cache"] = CACHE
        if "disk" in cache:
            how["cache_dir"] = folder
        return stash.open(f"s3://{bucket.name}/{path}", options=self._options(bucket), **how)


class TensorStore(CloudPeer):
    """google/tensorstore; credentials come from the environment, as it wants them."""

    packages = ("tensorstore",)
    caches: ClassVar[dict[str, str]] = {
        "memory": "`cache_pool`, compared with the stored version at each use (its default)",
        "memory, immutable": "`cache_pool` and `recheck_cached_data=False`",
    }

    def __init__(self, requests: int | None = None) -> None:
        self.requests = requests
        self.name = "TensorStore" + (f", {requests}" if requests else "")
        self.how = f"`s3_request_concurrency` {requests}" if requests else "defaults (32 requests)"
        self._plain: Any = None

    def _context(self, cache: str) -> Any:
        import tensorstore as ts

        words: dict[str, Any] = {"aws_credentials": {"type": "environment"}}
        if self.requests:
            words["s3_request_concurrency"] = {"limit": self.requests}
        if cache:  # a pool of its own for every handle
            return ts.Context({**words, "cache_pool": {"total_bytes_limit": CACHE}})
        if self._plain is None:
            self._plain = ts.Context(words)
        return self._plain

    def _spec(self, bucket: Bucket, path: str) -> dict[str, Any]:
        kvstore = {
            "driver": "s3",
            "bucket": bucket.name,
            "path": f"{path}/",
            "endpoint": bucket.endpoint,
            "aws_region": REGION,
        }
        return {"driver": "zarr3", "kvstore": kvstore}

    def create(self, bucket: Bucket, path: str, layout: Layout) -> Any:
        import tensorstore as ts

        metadata = {
            "shape": list(layout.shape),
            "data_type": np.dtype(layout.dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": layout.outer}},
            "codecs": layout.documents,
            "fill_value": 0,
        }
        spec = {**self._spec(bucket, path), "metadata": metadata}
        context = self._context("")
        return ts.open(spec, create=True, delete_existing=True, context=context).result()

    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        import tensorstore as ts

        how: dict[str, Any] = {}
        if "immutable" in cache:
            how = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        spec, context = self._spec(bucket, path), self._context(cache)
        return ts.open(spec, open=True, read=True, context=context, **how).result()

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where].read().result()
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        values: Array = handle[rows].read().result()
        return values

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        """All at once, which is its way; its Batch would only merge them further."""
        futures = [handle[box].read() for box in boxes]
        return [future.result() for future in futures]

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where].write(values).result()


class TensorStoreBatch(TensorStore):
    """TensorStore with all patches in one ``Batch``, which merges requests across them."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "TensorStore, one batch"
        self.how = "defaults; all patches in one `ts.Batch`"

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        import tensorstore as ts

        with ts.Batch() as batch:
            futures = [handle[box].read(batch=batch) for box in boxes]
        return [future.result() for future in futures]


class ZarrPython(CloudPeer):
    """zarr-python over one of its stores, as it comes (10 requests at once, and both formats
    looked for) or configured for the cloud."""

    def __init__(self, many: bool) -> None:
        self.many = many
        self.default = not many
        self.name = self.label + (f", {MANY}" if many else "")
        self.how = f"`async.concurrency` {MANY}, `zarr_format=3`" if many else "defaults (10)"

    label: ClassVar[str]

    def store(self, bucket: Bucket, path: str, read_only: bool) -> Any:
        """A store rooted at the array."""
        raise NotImplementedError

    def _config(self) -> Any:
        import zarr

        return zarr.config.set({"async.concurrency": MANY if self.many else 10})

    def create(self, bucket: Bucket, path: str, layout: Layout) -> Any:
        import zarr

        return self._create(zarr, self.store(bucket, path, False), layout)

    def _create(self, zarr: Any, store: Any, layout: Layout) -> Any:
        return zarr.create(
            store=store,
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=layout.outer,
            codecs=layout.documents,
            zarr_format=3,
            fill_value=0,
            overwrite=True,
        )

    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        import zarr

        how: dict[str, Any] = {"zarr_format": 3} if self.many else {}
        return zarr.open_array(self.store(bucket, path, True), mode="r", **how)

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        with self._config():
            values: Array = handle[where]
        return values

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        with self._config():  # which holds for all threads
            return super().reads(handle, boxes)

    def take(self, handle: Any, rows: Array) -> Array:
        with self._config():
            values: Array = handle.oindex[rows]
        return values

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        with self._config():
            handle[where] = values


class ZarrS3fs(ZarrPython):
    """zarr-python over s3fs."""

    packages = ("zarr", "s3fs")
    label = "zarr + s3fs"

    def store(self, bucket: Bucket, path: str, read_only: bool) -> Any:
        """See :meth:`ZarrPython.store`."""
        from zarr.storage import FsspecStore

        options = {
            "key": bucket.key,
            "secret": bucket.secret,
            "endpoint_url": bucket.endpoint,
            "client_kwargs": {"region_name": REGION},
        }
        if self.many:
            options["config_kwargs"] = {"max_pool_connections": MANY}
        url = f"s3://{bucket.name}/{path}"
        return FsspecStore.from_url(url, storage_options=options, read_only=read_only)


class ZarrObstore(ZarrPython):
    """zarr-python over obstore."""

    packages = ("zarr", "obstore")
    label = "zarr + obstore"

    def store(self, bucket: Bucket, path: str, read_only: bool) -> Any:
        """See :meth:`ZarrPython.store`."""
        from obstore.store import S3Store
        from zarr.storage import ObjectStore

        inner = S3Store(
            bucket.name,
            prefix=path,
            endpoint=bucket.endpoint,
            access_key_id=bucket.key,
            secret_access_key=bucket.secret,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        return ObjectStore(inner, read_only=read_only)


class Icechunk(ZarrPython):
    """Icechunk's own format under zarr-python; a write ends with its commit."""

    packages = ("icechunk", "zarr")
    label = "icechunk"
    family = "icechunk"

    def _storage(self, bucket: Bucket, path: str) -> Any:
        import icechunk

        return icechunk.s3_storage(
            bucket=bucket.name,
            prefix=path,
            region=REGION,
            endpoint_url=bucket.endpoint,
            allow_http=True,
            access_key_id=bucket.key,
            secret_access_key=bucket.secret,
            force_path_style=True,
        )

    def create(self, bucket: Bucket, path: str, layout: Layout) -> Any:
        import icechunk
        import zarr

        repo = icechunk.Repository.open_or_create(self._storage(bucket, path))
        session = repo.writable_session("main")
        return session, self._create(zarr, session.store, layout)

    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        import icechunk
        import zarr

        repo = icechunk.Repository.open(self._storage(bucket, path))
        how: dict[str, Any] = {"zarr_format": 3} if self.many else {}
        return zarr.open_array(repo.readonly_session("main").store, mode="r", **how)

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        session, array = handle
        super().write(array, where, values)
        session.commit("written")


def everyone() -> list[CloudPeer]:
    """All contestants, ours first, whether installed or not."""
    peers: list[CloudPeer] = [Tensorstash("obstore"), Tensorstash("s3fs")]
    peers += [TensorStore(), TensorStore(128)]
    for kind in (ZarrS3fs, ZarrObstore, Icechunk):
        peers += [kind(False), kind(True)]
    return peers
