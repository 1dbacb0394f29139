"""Any place that tensorstash reaches, as a store of zarr-python: for zarr, xarray and dask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from .cached import PerProcess
from .driver import Driver, Request, Span, check_key, check_prefix, located
from .errors import Conflict, Invalid
from .location import Location, resolve
from .metadata.consolidated import place_path

_T = TypeVar("_T")
_THREADS = 16
_pools = PerProcess(lambda: ThreadPoolExecutor(_THREADS, "tensorstash-zarr"))


def zarr_store(
    location: Location,
    *,
    path: str = "",
    version: str | datetime | None = None,
    options: Mapping[str, Any] | None = None,
    read_only: bool = False,
) -> DriverStore:
    """What is at ``path`` below ``location`` as a ``zarr.abc.store.Store``, to be given to
    ``zarr.open``, ``xarray.open_zarr`` or ``dask.array.from_zarr``. Nothing is read yet.

    ``options`` go to the driver. zarr-python's own rules hold for what is written through the
    store: partial writes of a chunk by several writers are not merged safely.
    """
    return DriverStore(resolve(location, options, version), place_path(path), read_only=read_only)


class DriverStore(Store):
    """What is below a driver's path as a store. Its methods run in up to 16 threads, so no request
    holds up zarr's event loop; a forked child has threads of its own. Pickles as the driver does.

    Keys that no driver holds (``""``, ``"/a"``, ``"a//b"``, ``"../a"``) are absent, and nothing
    lies below such a prefix, as in zarr's own stores; only storing under one is refused. A prefix
    of slashes alone is the root's."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, driver: Driver, path: str = "", *, read_only: bool = False) -> None:
        """Read and write through ``driver``; ``path`` is empty or ends in ``/``."""
        super().__init__(read_only=read_only or not driver.capabilities.writable)
        self.driver = driver
        self.path = path

    def with_read_only(self, read_only: bool = False) -> DriverStore:
        """The same place, read only or not."""
        return DriverStore(self.driver, self.path, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        """Whether both lead to the same place, by drivers alike, with the same rights."""
        return (
            isinstance(other, DriverStore)
            and type(self.driver) is type(other.driver)
            and located(self.driver, self.path) == located(other.driver, other.path)
            and self._own(self.driver) == self._own(other.driver)
            and self.read_only == other.read_only
        )

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def _own(driver: Driver) -> object:
        """A mapping of the user's has no URL that would tell it from another."""
        return id(getattr(driver, "_mapping", None)) if driver.url.endswith("://") else None

    def __repr__(self) -> str:
        return f"<DriverStore {located(self.driver, self.path)}>"

    @property
    def _supports_sync_io(self) -> bool:
        """zarr's fused pipeline asks here (3.3 and newer) whether to call the methods named
        ``..._sync``: from as many threads as there are cores, too few for a network."""
        return self.driver.capabilities.local

    # -- reading ------------------------------------------------------------------

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value, or a part of it; ``None`` when nothing is stored."""
        return await self._run(
            lambda: self.get_sync(key, prototype=prototype, byte_range=byte_range)
        )

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As ``get``, in the calling thread."""
        span = _span(byte_range)
        value = _kept(self.driver.get(self.path + key, span)) if _possible(key) else None
        if value is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(value)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """All parts in one batch of the driver."""
        pairs = [(key, _span(byte_range)) for key, byte_range in key_ranges]
        places = [i for i, (key, _) in enumerate(pairs) if _possible(key)]
        requests = [Request(self.path + pairs[i][0], pairs[i][1]) for i in places]

        def get_all() -> dict[int, bytes | None]:
            return {places[i]: _kept(value) for i, value in self.driver.get_many(requests)}

        found = await self._run(get_all) if requests else {}
        values = (found.get(i) for i in range(len(pairs)))
        return [None if value is None else prototype.buffer.from_bytes(value) for value in values]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        asked = list(requests)
        prototypes = [prototype for _, prototype, _ in asked]
        pairs = [(key, byte_range) for key, _, byte_range in asked]
        if prototypes:
            values = await self.get_partial_values(prototypes[0], pairs)
            for (key, _), value in zip(pairs, values, strict=True):
                yield key, value

    async def exists(self, key: str) -> bool:
        """Whether a value is stored."""
        return _possible(key) and await self._run(
            lambda: self.driver.tag(self.path + key) is not None
        )

    async def getsize(self, key: str) -> int:
        """Bytes of the value; ``FileNotFoundError`` when absent."""
        value = await self.get(key, default_buffer_prototype())
        if value is None:
            raise FileNotFoundError(key)
        return len(value)

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below the folder ``prefix``."""
        below = self._folder(prefix)
        if below is None:
            return 0
        return await self._run(lambda: sum(size for _, size in self.driver.sizes(below)))

    # -- writing ------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Store the value."""
        await self._run(lambda: self.set_sync(key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As ``set``, in the calling thread."""
        self._check_writable()
        self.driver.put(self._key(key), _bytes(value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store the value unless there is one: in one step where the driver can."""
        self._check_writable()
        data, place = _bytes(value), self._key(key)

        def put_new() -> None:
            if self.driver.capabilities.conditional_put:
                with suppress(Conflict):
                    self.driver.put(place, data, if_absent=True)
            elif self.driver.tag(place) is None:
                self.driver.put(place, data)

        await self._run(put_new)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        self._check_writable()
        items = [(self._key(key), _bytes(value)) for key, value in values]
        await self._run(lambda: self.driver.put_many(items))

    async def delete(self, key: str) -> None:
        """Remove the value; no error when absent."""
        await self._run(lambda: self.delete_sync(key))

    def delete_sync(self, key: str) -> None:
        """As ``delete``, in the calling thread."""
        self._check_writable()
        if _possible(key):
            self.driver.delete(self.path + key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove every value below the folder ``prefix``."""
        self._check_writable()
        below = self._folder(prefix)
        if below is not None:
            await self._run(lambda: self.driver.delete_prefix(below))

    # -- listing ------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that starts with ``prefix``, which need not end at a ``/``."""
        if prefix.endswith("/"):
            prefix = prefix.rstrip("/")
            prefix = prefix and prefix + "/"
        below = self._folder(prefix[: prefix.rfind("/") + 1])
        if below is None:
            return
        wanted = self.path + prefix
        for key in await self._run(lambda: [*self.driver.list(below)]):
            if key.startswith(wanted):
                yield key[len(self.path) :]

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of values and folders directly below the folder ``prefix``."""
        below = self._folder(prefix)
        if below is None:
            return
        keys, folders = await self._run(lambda: self.driver.list_dir(below))
        for name in dict.fromkeys((*keys, *folders)):
            yield name

    async def is_empty(self, prefix: str) -> bool:
        """Whether no value lies below the folder ``prefix``."""
        below = self._folder(prefix)
        if below is None:
            return True
        return await self._run(lambda: next(iter(self.driver.list(below)), None) is None)

    # -- within -------------------------------------------------------------------

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(_pools.here(), work)

    def _key(self, key: str) -> str:
        """The driver's key to store something at."""
        return self.path + check_key(key)

    def _folder(self, prefix: str) -> str | None:
        """The driver's prefix of a folder; ``None`` where it can be none."""
        prefix = prefix.rstrip("/")
        try:
            return self.path + check_prefix(prefix and prefix + "/")
        except Invalid:
            return None


def _possible(key: str) -> bool:
    try:
        return bool(check_key(key))
    except Invalid:
        return False


def _span(byte_range: ByteRequest | None) -> Span | None:
    match byte_range:
        case None:
            return None
        case RangeByteRequest(start, end):
            return Span(start, end)
        case OffsetByteRequest(offset):
            return Span(offset)
        case SuffixByteRequest(0):
            return Span(0, 0)
        case SuffixByteRequest(suffix):
            return Span(-suffix)
    raise TypeError(f"Unexpected byte_range, got {byte_range}.")


def _kept(value: Any) -> bytes | None:
    """A driver's buffer lasts until its next one."""
    return None if value is None else bytes(value)


def _bytes(value: Buffer) -> bytes:
    if not isinstance(value, Buffer):
        raise TypeError(f"a store takes a zarr Buffer, not {type(value).__name__}")
    return value.to_bytes()
