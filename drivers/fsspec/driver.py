"""Writing, deleting and locking by fsspec, beside what ``reading.py`` reads."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

from tensorstash.driver import Buffer, Check, Tag, check_key, check_prefix
from tensorstash.drivers.failures import is_absence
from tensorstash.drivers.file.driver import FileDriver
from tensorstash.drivers.fsspec.options import Recipe
from tensorstash.drivers.fsspec.reading import TEMPORARY, FsspecReader, digest
from tensorstash.drivers.window import Window
from tensorstash.errors import DriverError, Invalid, Unsupported

_TRIES = 5  # of a put, whose folder others may take away


class FsspecDriver(FsspecReader):
    """Values are files of an fsspec filesystem below one path.

    What a put promises depends on the filesystem: see :attr:`traits`. A tag is what the
    filesystem calls a version (an ETag, a generation, a checksum), else a digest of the value,
    for which the value is read whole; with ``weak_tags`` its time and size count as a version,
    which a change within the clock's tick leaves equal. Failures that may pass are tried again
    within ``timeout`` seconds.
    """

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value`` as :attr:`traits` says. Conditions are refused: fsspec has none."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        check_key(key)
        if if_absent or if_tag is not None:
            raise Unsupported(
                f"{self.url} cannot store {key!r} on a condition; use file, s3 or redis for that"
            )
        data = bytes(value)
        self._store(key, data)
        found = self._version(key) if self.traits.versions or self.weak_tags else None
        return digest(data) if found is None or found[0] is None else found[0]

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Store each, as many at once as the filesystem is good for."""

        def store(item: tuple[str, Buffer]) -> None:
            self._store(check_key(item[0]), bytes(item[1]))

        window: Window[tuple[str, Buffer], None] = self._window  # type: ignore[assignment]
        for _ in window.each(store, items):
            pass

    def delete(self, key: str) -> None:
        """Remove the value; no error when absent."""
        check_key(key)
        self._writable("delete", key)
        if self._local is not None:
            self._local.delete(key)
            return

        def remove() -> None:
            # Of a folder some filesystems make a not-found, some an error of their own.
            if not self.traits.folders or self._info(key) is not None:
                self._client.call("rm_file", self._path(key))

        self._client.ask("delete", key, remove)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove each, as many at once as the filesystem is good for."""
        window: Window[str, None] = self._window  # type: ignore[assignment]
        for _ in window.each(self.delete, keys):
            pass

    def delete_prefix(self, prefix: str) -> None:
        """Remove every key below ``prefix``, then the folders that are left empty."""
        if self._local is not None:
            self._writable("delete", prefix)
            self._local.delete_prefix(prefix)
            return
        folders: list[str] = []
        self.delete_many([key for key, _ in self._walk(check_prefix(prefix), folders)])
        self._remove(prefix, folders)

    def prune(self, prefix: str) -> None:
        """Remove the folders below ``prefix`` that are empty, where the filesystem has folders."""
        if self._local is not None:
            self._local.prune(prefix)
        elif self.traits.folders:
            folders: list[str] = []
            for _ in self._walk(check_prefix(prefix), folders):
                pass
            self._remove(prefix, folders)

    def remove_root(self) -> None:
        """Of a filesystem of this machine, remove the root where it is an empty folder."""
        if self._local is not None:
            self._local.remove_root()

    def remove_link(self, prefix: str) -> bool:
        """Of a filesystem of this machine, remove the symbolic link that ``prefix`` is."""
        return self._local is not None and self._local.remove_link(prefix)

    def linked(self, prefix: str) -> str | None:
        """Of a filesystem of this machine, the first symbolic link on the way to ``prefix``."""
        return None if self._local is None else self._local.linked(prefix)

    def kept(self, key: str) -> str | None:
        """Names of puts in progress."""
        names = f"{self.url}/{key}".split("/")
        return next((name for name in names if name.startswith(TEMPORARY)), None)

    def _remove(self, prefix: str, folders: list[str]) -> None:
        """Remove folders that are empty, the deepest first."""
        for folder in [*reversed(folders), prefix] if self.traits.folders else []:
            path = self._path(folder.rstrip("/"))
            with suppress(DriverError):  # someone stores there again
                self._client.ask("delete", folder, partial(self._client.call, "rmdir", path))

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        """With the option ``unsafe``: alone among the threads of this process, and no other
        process must write. Else :class:`Unsupported`."""
        return self._locks.hold_unsafe(key, self.url, self.unsafe, timeout)

    def close(self) -> None:
        """Forget this process' filesystem; the next use makes another."""
        self._window.close()
        self._clients.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        """Secrets stay here: elsewhere ``connection`` or the library's usual chain has them."""
        return _restore, (self.recipe.without_secrets(), self.timeout, self.weak_tags, self.unsafe)

    # -- within -------------------------------------------------------------------

    def _store(self, key: str, data: bytes) -> None:
        self._writable("put", key)
        if self._local is not None:
            self._local.clear_for(key)
        client, path = self._client, self._path(key)

        def store() -> bool:
            place = path
            if self.traits.put == "rename":
                folder, _, _ = path.rpartition("/")
                place = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
            try:
                client.call("pipe_file", place, data)
            except Exception as error:
                if not is_absence(error):
                    raise
                client.call("makedirs", posixpath.dirname(place), exist_ok=True)
                client.call("pipe_file", place, data)
            if place != path:
                client.call("mv", place, path)
            return True

        # Who deletes others may take the folder away before anything is in it.
        if all(client.ask("put", key, store) is None for _ in range(_TRIES)):
            raise DriverError(
                f"cannot put {key!r} in {self.url}: its folder cannot be made; check the path",
                key=key,
                driver=self.scheme,
            )
        client.sent(len(data))

    @property
    def _local(self) -> FileDriver | None:
        """The folder that this is, where it is one of this machine."""
        client = self._client
        return client.ask("open", "", lambda: client.folder)

    def _writable(self, verb: str, key: str) -> None:
        if self.traits.put == "none":
            raise Unsupported(f"cannot {verb} {key!r}: {self.url} is read only; copy it to write")


def _restore(recipe: Recipe, timeout: float, weak_tags: bool, unsafe: bool) -> FsspecDriver:
    return FsspecDriver(recipe, timeout=timeout, weak_tags=weak_tags, unsafe=unsafe)
