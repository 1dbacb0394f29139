"""Repositories: branches and tags of versions of a tree of arrays, groups and records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..driver import Driver, Request, get_at_most
from ..errors import AlreadyExists, Conflict, Invalid, NotFound, Unsupported
from ..location import Location, resolve
from ..metadata import zarr3
from ..metadata.document import GroupDocument
from .access.branches import Branches, read_branch
from .access.driver import VersionDriver
from .access.names import MAIN, check_name, wanted
from .access.objects import Objects
from .access.pointers import MOST, REPO_KEY, Founding, Pointer, parse_repo, pointer_key
from .access.snapshot import Snapshot
from .changes import Changes, Dead
from .commit import Commit
from .ids import commit_key, new_repo, new_session
from .log import Log, Summary
from .pages import NewPages
from .publish.check import Damage, check
from .publish.diff import Difference, diff
from .transaction import Transaction
from .tree import Tree
from .version import Version

_ROOT = GroupDocument()


@dataclass(frozen=True)
class RepoInfo:
    """What ``repo.info()`` returns. ``concurrent``: several may commit to one branch at the same
    time; where it is false, the place has no conditional put, and one alone must write."""

    url: str
    id: str
    branches: int
    tags: int
    concurrent: bool


class Repo:
    """A repository: versions of a tree, each kept as it was, with branches and tags that name them.

    Made by :func:`create_repo` and :func:`open_repo`. ``repo.change()`` commits, ``repo.at()``
    reads a version. Where a method takes a version, that is a commit's id, a tag, a branch, a
    ``datetime`` (on ``main``), or a text that says which it is: ``"tag:v1"``, ``"branch:v1"``,
    ``"commit:..."``, ``"time:2026-11-01T12:00"``, ``"time:2026-11-01T12:00@branch"``. It may be
    used by several threads, in forked processes, and pickles small.

    >>> repo = stash.create_repo({})
    >>> with repo.change(message="three numbers") as t:
    ...     t.create("u", 3, "int8")[:] = [1, 2, 3]
    >>> repo.tag("v1")
    >>> [each.message for each in repo.log()]
    ['three numbers', 'created']
    """

    def __init__(self, driver: Driver, id: bytes) -> None:
        """Made by ``create_repo()`` and ``open_repo()``."""
        self.driver = driver
        self._objects = Objects(driver, id)
        self._named = Branches(self._objects)

    @property
    def id(self) -> str:
        """What tells this repository from others, also from a later one at the same place."""
        return self._objects.repo.hex()

    def change(
        self,
        branch: str = MAIN,
        message: str = "",
        *,
        author: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Transaction:
        """Begin a transaction, to be used in a ``with`` block, at the end of which what it changed
        is committed to a branch, all of it or nothing.

        What others have committed to the branch meanwhile stays; where both changed the same chunk,
        the same metadata, or one deleted what the other changed, nothing is committed.

        Args:
            branch: which branch.
            message: what to say about the commit.
            author: who commits.
            metadata: whatever JSON can hold, kept with the commit.

        Returns:
            A context manager that yields a ``Transaction``.

        Raises:
            NotFound: there is no such branch. Invalid: an argument is wrong. Conflict: at the end
            of the block, both changed the same; it names that, and both commits.

        >>> repo = stash.create_repo({})
        >>> with repo.change("main", "a group", author="Ada") as t:
        ...     made = t.create_group("raw")
        >>> repo.at("main").author
        'Ada'
        """
        check_name(branch, "branch")
        if not self.driver.capabilities.writable:
            raise Unsupported(f"{self.driver.url} cannot be written to; copy the repository")
        summary = Summary(new_session(), 0, (), datetime.now(UTC), author, message, metadata or {})
        summary.check()
        return Transaction(self._objects, branch, summary)

    def at(self, version: str | datetime = MAIN) -> Version:
        """Look at a version.

        Args:
            version: which; see the class.

        Returns:
            The version, for reading.

        Raises:
            NotFound: there is no such version; it names those with a name like it.
            Invalid: the text names no version, or both a tag and a branch.

        >>> repo = stash.create_repo({})
        >>> repo.at("main").number
        0
        """
        return Version(self._objects, self._named.commit(version))

    def log(self, version: str | datetime = MAIN) -> Iterator[Summary]:
        """Iterate over a version and the commits before it, newest first.

        Args:
            version: where to begin.

        Returns:
            An iterator over summaries, each with ``id``, ``number``, ``parents``, ``time``,
            ``author``, ``message`` and ``metadata``. Old ones are read some eighty at a time.

        Raises:
            NotFound: there is no such version.

        >>> repo = stash.create_repo({})
        >>> [each.number for each in repo.log()]
        [0]
        """
        commit = self._named.commit(version)

        def each() -> Iterator[Summary]:
            yield commit.summary
            yield from commit.log.ancestors(self._objects.load)

        return each()

    def diff(self, old: str | datetime, new: str | datetime = MAIN) -> Difference:
        """Tell what two versions differ in; costs by what that is.

        Args:
            old, new: the versions.

        Returns:
            Paths of what was created, deleted and changed, and for each array the chunks that are
            others, with the boxes they cover.

        Raises:
            NotFound: there is no such version.

        >>> repo = stash.create_repo({})
        >>> with repo.change() as t:
        ...     a = t.create("u", (4, 4), "int8", chunks=(2, 2))
        >>> repo.tag("empty")
        >>> with repo.change() as t:
        ...     t["u"][:2] = 1
        >>> repo.diff("empty", "main").arrays["u"].boxes
        ((slice(0, 2, None), slice(0, 4, None)),)
        """
        one, other = self._named.commit(old), self._named.commit(new)
        return diff(Snapshot(self._objects, one), Snapshot(self._objects, other))

    def branches(self) -> dict[str, str]:
        """List the branches.

        Returns:
            Ids of commits by the name of the branch, sorted.

        >>> list(stash.create_repo({}).branches())
        ['main']
        """
        return self._named.pointers("branch")

    def tags(self) -> dict[str, str]:
        """List the tags.

        Returns:
            Ids of commits by the name of the tag, sorted.

        >>> stash.create_repo({}).tags()
        {}
        """
        return self._named.pointers("tag")

    def tag(self, name: str, at: str | datetime = MAIN) -> None:
        """Name a version for good.

        Args:
            name: of up to 100 characters; any text that is no commit's id.
            at: the version.

        Raises:
            AlreadyExists: a tag or a branch has that name. NotFound: there is no such version.
            Invalid: a tag cannot be named so.

        >>> repo = stash.create_repo({})
        >>> repo.tag("v1")
        >>> list(repo.tags())
        ['v1']
        """
        self._named.name("tag", name, at)

    def branch(self, name: str, at: str | datetime = MAIN) -> None:
        """Begin a branch at a version, to which can be committed apart from others.

        Args:
            name: of up to 100 characters; any text that is no commit's id.
            at: the version.

        Raises:
            AlreadyExists: a branch or a tag has that name. NotFound: there is no such version.
            Invalid: a branch cannot be named so.

        >>> repo = stash.create_repo({})
        >>> repo.branch("try")
        >>> list(repo.branches())
        ['main', 'try']
        """
        self._named.name("branch", name, at)

    def delete_tag(self, name: str) -> None:
        """Delete a tag; the commit stays.

        Args:
            name: which.

        Raises:
            NotFound: there is none.

        >>> repo = stash.create_repo({})
        >>> repo.tag("v1")
        >>> repo.delete_tag("v1")
        """
        self._named.delete("tag", name)

    def delete_branch(self, name: str) -> None:
        """Delete a branch; its commits stay, and can be reached by their ids.

        Args:
            name: which; not ``main``.

        Raises:
            NotFound: there is none. Invalid: it is ``main``.

        >>> repo = stash.create_repo({})
        >>> repo.branch("try")
        >>> repo.delete_branch("try")
        """
        if name == MAIN:
            raise Invalid(f"{MAIN!r} is the branch that every repository has; reset() moves it")
        self._named.delete("branch", name)

    def reset(self, branch: str, to: str | datetime, *, expect: str | None = None) -> None:
        """Have a branch name another version. What was committed since can be reached by its id.

        Args:
            branch: which branch.
            to: the version.
            expect: the id of the commit that the branch must name now, so that nothing that
                somebody commits meanwhile is left out unseen.

        Raises:
            NotFound: there is no such branch or version. Conflict: somebody else has committed to
            the branch meanwhile.

        >>> repo = stash.create_repo({})
        >>> repo.tag("before")
        >>> with repo.change() as t:
        ...     t.attrs["unit"] = "K"
        >>> repo.reset("main", to="before")
        >>> repo.at("main").number
        0
        """
        commit = self._named.commit(to)
        pointer, tag = read_branch(self._objects, check_name(branch, "branch"))
        if expect is not None and pointer.commit != expect:
            raise Conflict(
                f"branch {branch!r} names {pointer.commit}, not {expect}: somebody committed to it"
            )
        self._named.put(pointer_key("branch", branch), commit, tag, branch)

    def info(self) -> RepoInfo:
        """Tell what this repository is.

        Returns:
            Its place, its id, how many branches and tags it has, and whether several may commit at
            the same time.

        >>> stash.create_repo({}).info().concurrent
        True
        """
        able = self.driver.capabilities
        return RepoInfo(
            self.driver.url,
            self.id,
            len(self.branches()),
            len(self.tags()),
            able.conditional_put and able.writable,
        )

    def check(self, version: str | datetime | None = None) -> list[Damage]:
        """Read every page, and look for every chunk, of versions.

        Args:
            version: which; by default whatever branches and tags name, with their histories.

        Returns:
            What is damaged or missing, each with its ``key`` and ``why``; empty where all is well.

        Raises:
            NotFound: there is no such version.

        >>> stash.create_repo({}).check()
        []
        """
        if version is not None:
            return check(self._objects, [self._named.commit(version).summary.id], history=False)
        heads = dict.fromkeys([*self.branches().values(), *self.tags().values()])
        return check(self._objects, list(heads), history=True)

    def __repr__(self) -> str:
        return f"<Repo {self.driver.url}>"


def create_repo(location: Location, *, options: Mapping[str, Any] | None = None) -> Repo:
    """Create a repository: a place that keeps every version of a tree of arrays and groups.

    It has a branch ``main``, with one commit that holds an empty group. Where this was
    interrupted, create it again.

    Args:
        location: an empty place: a path, a URL such as ``"s3://bucket/x"``, a ``pathlib.Path``, a
            ``dict`` or a driver.
        options: keyword arguments of the driver.

    Returns:
        A handle on the repository.

    Raises:
        AlreadyExists: a repository, or anything else, is stored there.
        Unsupported: the place cannot be written to.

    >>> repo = stash.create_repo("memory://a-repo")
    >>> with repo.change("main", "the first numbers") as t:
    ...     t.create("u", 3, "int8")[:] = [1, 2, 3]
    >>> repo.at("main").open("u")[:].tolist()
    [1, 2, 3]
    """
    driver = resolve(location, options)
    if not driver.capabilities.writable:
        raise Unsupported(f"{driver.url} cannot be written to; create the repository elsewhere")
    there = get_at_most(driver, REPO_KEY, MOST)
    if there is None:
        first = next(iter(driver.taken()), None) if driver.capabilities.lists else None
        if first is not None:
            raise AlreadyExists(
                f"{driver.url} holds {first!r}; create the repository in an empty place"
            )
        founding = Founding(new_repo(), new_session(), datetime.now(UTC))
        try:
            driver.replace(REPO_KEY, founding.encode(), None)
        except Conflict as error:
            raise _exists(driver) from error
    else:
        founding = parse_repo(there[0])
        if not _interrupted(driver, founding):
            raise _exists(driver)
    commit, data = _first(driver, founding)
    driver.put(commit.key, data)
    pointer = Pointer(founding.repo, commit.summary.id, 0).encode()
    try:
        # Of several that create, or finish what was interrupted, this tells who did.
        driver.replace(pointer_key("branch", MAIN), pointer, None)
    except Conflict as error:
        raise _exists(driver) from error
    return Repo(driver, founding.repo)


def _exists(driver: Driver) -> AlreadyExists:
    return AlreadyExists(f"{driver.url} is a repository already; open it with open_repo()")


def _first(driver: Driver, founding: Founding) -> tuple[Commit, bytes]:
    """The first commit, and what to store of it: the same whoever makes it."""
    new = NewPages(founding.repo, founding.first)
    document = zarr3.encode(zarr3.group_document(_ROOT))
    tree = Tree().apply({zarr3.KEY: document}, Objects(driver, founding.repo).load, new).tree
    summary = Summary(founding.first, 0, (), founding.created, "", "created", {})
    changes = Changes({zarr3.KEY: "created"}, {})
    commit = Commit.make(summary, tree, Log(), changes, Dead(), new)
    return commit, commit.pack(founding.repo)


def _interrupted(driver: Driver, founding: Founding) -> bool:
    """Whether who created the repository did not come to its end. A branch that went later leaves
    other commits; where the driver cannot list, nobody knows."""
    if driver.tag(pointer_key("branch", MAIN)) is not None or not driver.capabilities.lists:
        return False
    return all(key == commit_key(founding.first) for key in driver.list("commit/"))


def open_repo(location: Location, *, options: Mapping[str, Any] | None = None) -> Repo:
    """Open a repository and return a handle; this costs one small read.

    Args:
        location: where it is, as for :func:`create_repo`.
        options: keyword arguments of the driver.

    Returns:
        A handle on the repository.

    Raises:
        NotFound: there is no repository. Corrupt: its document is damaged.
        Unsupported: a newer version of tensorstash made it.

    >>> place = {}
    >>> made = stash.create_repo(place)
    >>> stash.open_repo(place).id == made.id
    True
    """
    driver = resolve(location, options)
    found = driver.get(REPO_KEY)
    if found is None:
        raise NotFound(
            f"no repository at {driver.url}: no {REPO_KEY}; check the place, or create_repo() one"
        )
    return Repo(driver, parse_repo(found).repo)


def version_driver(driver: Driver, version: str | datetime) -> VersionDriver:
    """The version of the repository in ``driver``, for whoever opens what is in it: of a tag or a
    branch that is named as such in two requests, and what it takes to find a text's other kind."""
    kinds, name, _ = wanted(version)
    if kinds[0] in ("tag", "branch"):
        keys = [pointer_key(kind, name) for kind in kinds]
        requests = [Request(key, most=MOST) for key in keys]
        there = [
            Pointer.parse(pair[0], keys[i])
            for i, pair in driver.get_many_tagged(requests)
            if pair is not None
        ]
        if len(there) == 1:
            objects = Objects(driver, there[0].repo)
            return VersionDriver(objects, objects.commit(there[0].commit))
    return open_repo(driver).at(version).driver
