"""One version of a repository, for reading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack

from ..array import Array
from ..create import open as open_array
from ..create import open_place
from ..group import Group, open_group
from ..options import LimitsLike, shown
from ..records import Records, open_records
from .access.driver import VersionDriver
from .access.objects import Objects
from .commit import Commit


class ReadOptions(TypedDict, total=False):
    """How a handle on what a version holds reads."""

    cache: int | str
    threads: int | None
    missing: Literal["fill", "raise"]
    allow_pickle: bool
    limits: LimitsLike
    memory_limit: int | str | None
    cache_dir: str | os.PathLike[str] | None
    cache_dir_bytes: int | str


class Version:
    """What a commit of a repository holds; it never changes, whatever others commit.

    Made by ``repo.at(...)``. ``driver`` is the version as a driver, which every function that
    reads takes for a location: ``stash.zarr_store(version.driver)`` for zarr-python, xarray and
    dask. Pickles small, without what it holds.

    >>> repo = stash.create_repo({})
    >>> with repo.change() as t:
    ...     t.create("u", 4, "int8")[:] = 1
    >>> first = repo.at("main")
    >>> with repo.change() as t:
    ...     t["u"][:] = 2
    >>> first.open("u")[0].item(), repo.at("main").open("u")[0].item()
    (1, 2)
    """

    def __init__(self, objects: Objects, commit: Commit) -> None:
        """Made by ``repo.at()``."""
        self.driver = VersionDriver(objects, commit)

    @property
    def commit(self) -> str:
        """The commit's id."""
        return self.driver.snapshot.id

    @property
    def number(self) -> int:
        """How many commits there were before it."""
        return self.driver.snapshot.commit.summary.number

    @property
    def time(self) -> datetime:
        """When it was committed, by the clock of who did."""
        return self.driver.snapshot.commit.summary.time

    @property
    def author(self) -> str:
        """Who committed it, as they said."""
        return self.driver.snapshot.commit.summary.author

    @property
    def message(self) -> str:
        """What they said about it."""
        return self.driver.snapshot.commit.summary.message

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given with it."""
        return self.driver.snapshot.commit.summary.metadata

    @shown(ReadOptions, open_place)
    def open(self, path: str = "", **how: Unpack[ReadOptions]) -> Array:
        """Open an array of this version.

        Args:
            path: where it is, from the root.
            cache, threads, missing, allow_pickle, limits, memory_limit, cache_dir,
                cache_dir_bytes: as ``tensorstash.open`` explains.

        Returns:
            A handle that reads.

        Raises:
            NotFound: nothing is there in this version. Invalid: a group is.

        >>> repo = stash.create_repo({})
        >>> with repo.change() as t:
        ...     t.create("u", 2, "int8")[:] = 1
        >>> repo.at("main").open("u")[:].tolist()
        [1, 1]
        """
        return open_array(self.driver, path=path, immutable=True, **how)

    @shown(ReadOptions, open_place)
    def open_group(self, path: str = "", **how: Unpack[ReadOptions]) -> Group:
        """Open a group of this version.

        Args:
            path: where it is, from the root.
            cache, threads, missing, allow_pickle, limits, memory_limit, cache_dir,
                cache_dir_bytes: as ``tensorstash.open_group`` explains.

        Returns:
            A handle that reads.

        Raises:
            NotFound: nothing is there in this version. Invalid: an array is.

        >>> repo = stash.create_repo({})
        >>> repo.at("main").open_group().keys()
        []
        """
        return open_group(self.driver, path=path, immutable=True, **how)

    @shown(ReadOptions, open_place)
    def open_records(self, path: str = "", **how: Unpack[ReadOptions]) -> Records:
        """Open records of this version.

        Args:
            path: where they are, from the root.
            cache, threads, missing, allow_pickle, limits, memory_limit, cache_dir,
                cache_dir_bytes: as ``tensorstash.open_records`` explains.

        Returns:
            A handle that reads all rows and fields.

        Raises:
            NotFound: nothing is there in this version. Invalid: there are no records.

        >>> repo = stash.create_repo({})
        >>> with repo.change() as t:
        ...     r = t.create_records("runs", {"x": "int32"}, 4)
        >>> len(repo.at("main").open_records("runs"))
        4
        """
        return open_records(self.driver, path=path, immutable=True, **how)

    def __repr__(self) -> str:
        return f"<Version {self.commit} of {self.driver.backing.url}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.driver.objects, self.commit)


def _again(objects: Objects, commit: str) -> Version:
    return Version(objects, objects.commit(commit))
