"""Pages and commits of a repository, read once and kept: they never change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

from ...cached import PerProcess
from ...driver import REPAIR, Driver, Request
from ...errors import Corrupt, NotFound, counted
from ...memory import PROCESS
from ...turn import turn
from ..commit import Commit
from ..container import Kind, kind_of
from ..ids import Reference, commit_key, page_key
from ..pages import Form
from ..refs import REF_PAGES, RefPage
from ..tree import TREE_PAGES

T = TypeVar("T")

_KEPT = 64 << 20  # bytes of all that one process keeps
_MOST_COMMIT = 2 << 20  # bytes of a stored commit
_DECODED = 6  # times as many bytes as a page has when stored


class _Kept:
    """What a process keeps, the oldest going first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self.nbytes = 0
        self.account = PROCESS.account("caches", self)

    def get(self, key: Any) -> Any:
        with turn(self.lock):
            found = self.items.get(key)
            if found is None:
                return None
            self.items.move_to_end(key)
            return found[0]

    def put(self, key: Any, value: Any, nbytes: int) -> None:
        with turn(self.lock):
            old = self.items.pop(key, None)
            self.nbytes += nbytes - (0 if old is None else old[1])
            self.items[key] = value, nbytes
        room = PROCESS.limit
        self.shrink(self.nbytes - (_KEPT if room is None else min(_KEPT, room // 8)))
        self.account.set(self.nbytes)

    def shrink(self, nbytes: int) -> int:
        """Drop about so many bytes; how many it were."""
        dropped = 0
        with turn(self.lock):
            while dropped < nbytes and self.items:
                _, (_, size) = self.items.popitem(last=False)
                dropped += size
            self.nbytes -= dropped
        self.account.set(self.nbytes)
        return dropped


_kept = PerProcess(_Kept)


class Objects:
    """What the repository of the 16 bytes ``repo`` stores in ``driver``. Pickles."""

    def __init__(self, driver: Driver, repo: bytes) -> None:
        self.driver = driver
        self.repo = repo

    def load(self, references: Sequence[Reference], form: Form[T], /) -> Sequence[T]:
        """What pages hold: as :class:`~.pages.Load` says."""
        kept, found = _kept.here(), dict[Reference, Any]()
        for reference in references:
            page = kept.get((self.repo, reference))
            if page is not None:
                found[reference] = page
        missing = [each for each in dict.fromkeys(references) if each not in found]
        requests = [Request(page_key(each), most=each.nbytes) for each in missing]
        for i, pair in self.driver.get_many_tagged(requests) if requests else ():
            reference, key = missing[i], requests[i].key
            if pair is None:
                raise lost(key, self.driver)
            if len(pair[0]) != reference.nbytes:
                raise Corrupt(
                    f"{key} has {counted(len(pair[0]), 'byte')}, not {reference.nbytes}{REPAIR}",
                    key=key,
                )
            page = found[reference] = form.decode(pair[0], self.repo, key)
            size = page.held if isinstance(page, RefPage) else 1000 + _DECODED * reference.nbytes
            kept.put((self.repo, reference), page, size)
        return [found[each] for each in references]

    def keep(self, commit: Commit, nbytes: int) -> None:
        """Remember a commit that was stored just now."""
        id = commit.summary.id
        _kept.here().put((self.repo, id), commit, 1000 + _DECODED * nbytes)

    def keep_page(self, reference: Reference, data: bytes) -> None:
        """Remember a page of references that was stored just now: the next change asks for it."""
        key = page_key(reference)
        if kind_of(data) == Kind.REFS:
            page = REF_PAGES.decode(data, self.repo, key)
            _kept.here().put((self.repo, reference), page, page.held)
        elif kind_of(data) == Kind.TREE:
            node = TREE_PAGES.decode(data, self.repo, key)
            _kept.here().put((self.repo, reference), node, 1000 + _DECODED * reference.nbytes)

    def commit(self, id: str) -> Commit:
        """One commit; NotFound where there is none of that id."""
        return self.commits([id])[0]

    def commits(self, ids: Sequence[str]) -> list[Commit]:
        """Several, in one request where the driver can."""
        kept, found = _kept.here(), dict[str, Commit]()
        for id in ids:
            commit = kept.get((self.repo, id))
            if commit is not None:
                found[id] = commit
        missing = [id for id in dict.fromkeys(ids) if id not in found]
        requests = [Request(commit_key(id), most=_MOST_COMMIT) for id in missing]
        for i, pair in self.driver.get_many_tagged(requests) if requests else ():
            if pair is None:
                raise NotFound(
                    f"no commit {missing[i]} in {self.driver.url}; log() lists those of a branch"
                )
            found[missing[i]] = Commit.unpack(pair[0], self.repo, missing[i])
            kept.put((self.repo, missing[i]), found[missing[i]], 1000 + _DECODED * len(pair[0]))
        return [found[id] for id in ids]


def lost(key: str, driver: Driver) -> Corrupt:
    """An object to which something refers is not there."""
    return Corrupt(
        f"{key} is missing in {driver.url}: it was deleted, or the repository was copied in part; "
        "restore it",
        key=key,
    )
