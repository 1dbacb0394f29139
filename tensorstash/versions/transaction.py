"""A transaction: changes to a version, which become one commit when the block ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Unpack

from ..array import Array
from ..attributes import Attributes
from ..create import make_spec
from ..driver import Tag
from ..errors import Closed, StashError
from ..group import Group, open_group
from ..options import LayoutOptions, RowLayoutOptions, shown
from ..records import Records, create_records, layout, open_records
from .access.branches import read_branch
from .access.objects import Objects
from .access.snapshot import Snapshot
from .access.writing import TransactionDriver
from .ids import session_key
from .log import Summary
from .publish.race import Publisher


class Transaction:
    """What ``repo.change()`` gives to the ``with`` block: the tree of a branch, as of when the
    block began, and with what the block changes.

    ``t["u"]`` is an array or a group that reads and writes, ``t.records("runs")`` are records,
    ``t.create(...)`` and ``del t["old"]`` do what a group's do; ``t.group`` is the root. Nobody
    else sees any of it before the block ends, and then all of it or nothing: an exception discards
    it, as does :meth:`abort`. ``commit`` is the id of the commit after the block; ``None`` where
    nothing was changed. It stays in the process that began it.

    Raises:
        Conflict: at the end of the block: somebody else has changed the same meanwhile. Nothing is
        committed then. Closed: it is used after its end.

    >>> repo = stash.create_repo({})
    >>> with repo.change(message="the first") as t:
    ...     t.create("u", 4, "int8")[:] = 1
    >>> repo.at("main").open("u")[:].tolist()
    [1, 1, 1, 1]
    """

    def __init__(self, objects: Objects, branch: str, summary: Summary) -> None:
        """Made by ``repo.change()``."""
        self._objects = objects
        self._branch = branch
        self._summary = summary
        self._driver: TransactionDriver | None = None
        self._tag: Tag = None
        self._group: Group | None = None
        self._aborted = False
        self.session = summary.id
        self.commit: str | None = None

    def __enter__(self) -> Transaction:
        if self._driver is not None:
            raise Closed("this transaction was begun already; begin another with repo.change()")
        pointer, self._tag = read_branch(self._objects, self._branch)
        base = Snapshot(self._objects, self._objects.commit(pointer.commit))
        self._begin()
        self._driver = TransactionDriver(self._objects, base, self.session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        driver = self.driver
        try:
            if kind is not None or self._aborted:
                driver.ended = "was aborted"
                return
            if not driver.draft.empty:
                publisher = Publisher(
                    self._objects, driver.draft, self._branch, self._tag, self._summary
                )
                driver.ended = "could not be committed"
                self.commit = publisher.run().summary.id
            driver.ended = "has ended"
        finally:
            self._end()

    def _begin(self) -> None:
        """Tell others that the session is under way."""
        backing, key = self._objects.driver, session_key(self.session)
        document = {
            "repo": self._objects.repo.hex(),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "author": self._summary.author,
            "branch": self._branch,
        }
        backing.put(key, json.dumps(document).encode())

    def _end(self) -> None:
        # Nobody needs it any more, and a sweep takes what stays.
        with suppress(StashError):
            self._objects.driver.delete(session_key(self.session))

    # -- what is in it -----------------------------------------------------------------

    @property
    def driver(self) -> TransactionDriver:
        """The tree as a driver, which any function of tensorstash takes for a location."""
        if self._driver is None:
            raise Closed("this transaction was not begun; use it as: with repo.change() as t")
        return self._driver

    @property
    def group(self) -> Group:
        """The group at the root, opened for reading and writing."""
        if self._group is None:
            self._group = open_group(self.driver, "r+")
        return self._group

    @property
    def attrs(self) -> Attributes:
        """The attributes of the root."""
        return self.group.attrs

    def __getitem__(self, name: str) -> Array | Group:
        return self.group[name]

    def __delitem__(self, name: str) -> None:
        del self.group[name]

    def __contains__(self, name: object) -> bool:
        return name in self.group

    def __iter__(self) -> Iterator[str]:
        return iter(self.group)

    @shown(LayoutOptions, make_spec, zarr_format="that of the group")
    def create(
        self,
        name: str,
        shape: int | Sequence[int] | None = None,
        dtype: Any = None,
        *,
        data: Any = None,
        overwrite: bool = False,
        **how: Unpack[LayoutOptions],
    ) -> Array:
        """Create an array.

        Args:
            name: its path from the root.
            shape, dtype, data, overwrite, chunks, shards, codecs, fill_value, dimension_names,
                attributes, zarr_format, key_encoding, separator, order, filters, in_place: as
                ``Group.create`` explains.

        Returns:
            A handle that reads and writes it.

        Raises:
            AlreadyExists: something is stored there. Invalid: an argument is wrong.

        >>> with stash.create_repo({}).change() as t:
        ...     t.create("raw/u", 3, "int8")[:] = 1
        """
        return self.group.create(name, shape, dtype, data=data, overwrite=overwrite, **how)

    def create_group(self, name: str, *, attributes: Mapping[str, Any] | None = None) -> Group:
        """Create a group.

        Args:
            name: its path from the root.
            attributes: its first attributes.

        Returns:
            A handle on it.

        Raises:
            AlreadyExists: something is stored there.

        >>> with stash.create_repo({}).change() as t:
        ...     made = t.create_group("raw")
        """
        return self.group.create_group(name, attributes=attributes)

    def records(self, path: str) -> Records:
        """Open records for reading and writing.

        Args:
            path: where they are, from the root.

        Returns:
            A handle on all rows and fields.

        Raises:
            NotFound: nothing is there. Invalid: what is there are no records.

        >>> with stash.create_repo({}).change() as t:
        ...     made = t.create_records("runs", {"x": "int32"})
        ...     first = t.records("runs").append({"x": 1})
        """
        return open_records(self.driver, "r+", path=path)

    @shown(RowLayoutOptions, layout.specs, make_spec)
    def create_records(
        self,
        path: str,
        schema: Any = None,
        length: int = 0,
        *,
        overwrite: bool = False,
        **how: Unpack[RowLayoutOptions],
    ) -> Records:
        """Create records.

        Args:
            path: where, from the root.
            schema, length, overwrite, rows_per_chunk, rows_per_shard, codecs, fill_value,
                in_place: as ``tensorstash.create_records`` explains.

        Returns:
            A handle that reads and writes them.

        Raises:
            AlreadyExists: something is stored there. Invalid: the schema is wrong.

        >>> with stash.create_repo({}).change() as t:
        ...     made = t.create_records("runs", {"x": "int32"}, 10)
        """
        return create_records(self.driver, schema, length, path=path, overwrite=overwrite, **how)

    def abort(self) -> None:
        """Discard what was changed; nothing is committed when the block ends.

        >>> with stash.create_repo({}).change() as t:
        ...     t.abort()
        >>> t.commit is None
        True
        """
        self._aborted = True
        self.driver.ended = "was aborted"
