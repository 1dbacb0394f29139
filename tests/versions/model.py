"""A repository beside a plain dict of versions, and the operations on both that a machine draws.

A tree is a dict of arrays by name. Transactions overlap: each has the tree that it began with and
what it changed; which of two may commit follows from the chunks and the arrays that each touched.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tensorstash as stash
from tensorstash.errors import Conflict

CHUNK = 3
NAMES = ("a", "b", "g/c")
Tree = dict[str, NDArray[np.int32]]
Touched = set[tuple[str, Any]]


def plain(tree: Tree) -> dict[str, Any]:
    return {name: array.tolist() for name, array in tree.items()}


def read(group: Any) -> dict[str, Any]:
    """All arrays of a group, read."""
    return {
        path: member[...].tolist()
        for path, member in group.walk()
        if isinstance(member, stash.Array)
    }


@dataclass
class Under:
    """A transaction under way. ``touched``: (array, chunk), (array, "metadata") where its own
    document changed, (array, "shorter") and (array, "gone") where others must not touch it."""

    transaction: Any
    base: int
    tree: Tree
    branch: str
    touched: Touched = field(default_factory=set)


def clashes(one: Touched, other: Touched) -> bool:
    """Whether two sets of changes cannot stand together."""
    if any(what != "new" for _, what in one & other):
        return True
    for first, second in ((one, other), (other, one)):
        for name, what in first:
            if what == "gone" and any(each == name for each, _ in second):
                return True
            if what == "shorter" and any(
                each == name and isinstance(other_what, int) for each, other_what in second
            ):
                return True
    return any((name, "new") in other for name, what in one if what == "new")


class Model:
    """The repository and what it must hold. ``actors`` transactions are under way at most."""

    def __init__(self, driver: Any, seed: int) -> None:
        self.random = random.Random(seed)
        self.repo = stash.create_repo(driver)
        self.versions: list[tuple[str, Tree]] = [(self.repo.at("main").commit, {})]
        self.history: dict[str, list[int]] = {"main": [0]}
        self.touched: list[Touched] = [set()]
        self.tags: dict[str, int] = {}
        self.under: list[Under] = []
        self.seen: Counter[str] = Counter()

    def step(self) -> None:
        """One operation of any kind."""
        if len(self.under) < 2 and self.random.random() < 0.4:
            self.begin()
        elif self.under and self.random.random() < 0.75:
            self.change(self.random.choice(self.under))
        elif self.under:
            self.end(self.random.choice(self.under))
        else:
            self.random.choice([self.tag, self.branch, self.look, self.reset])()

    def begin(self) -> None:
        branch = self.random.choice([*self.history])
        base = self.history[branch][-1]
        transaction = self.repo.change(branch, f"change {len(self.versions)}", author="Ada")
        transaction.__enter__()
        tree = {name: array.copy() for name, array in self.versions[base][1].items()}
        self.under.append(Under(transaction, base, tree, branch))
        self.seen["begin"] += 1

    def change(self, under: Under) -> None:
        t, tree, rand = under.transaction, under.tree, self.random
        name = rand.choice(NAMES)
        if name not in tree:
            length = rand.randrange(1, 12)
            t.create(name, length, "int32", chunks=CHUNK)
            tree[name] = np.zeros(length, np.int32)
            under.touched.add((name, "new"))
            if (name, "gone") not in under.touched:
                under.touched.add((name, "metadata"))
            self.seen["create"] += 1
            return
        array, what = (
            t[name],
            rand.choice(["write", "write", "write", "append", "shrink", "delete"]),
        )
        if what == "write" and len(tree[name]):
            start = rand.randrange(len(tree[name]))
            stop = min(len(tree[name]), start + rand.randrange(1, 5))
            value = rand.randrange(1, 100)
            array[start:stop] = value
            tree[name][start:stop] = value
            under.touched |= {(name, i) for i in range(start // CHUNK, (stop - 1) // CHUNK + 1)}
        elif what == "append":
            rows = np.full(rand.randrange(1, 4), rand.randrange(1, 100), np.int32)
            first = len(tree[name])
            array.append(rows)
            tree[name] = np.concatenate([tree[name], rows])
            under.touched.add((name, "metadata"))
            last = len(tree[name]) - 1
            under.touched |= {(name, i) for i in range(first // CHUNK, last // CHUNK + 1)}
        elif what == "shrink" and len(tree[name]):
            length = rand.randrange(len(tree[name]))
            array.resize(length)
            under.touched |= {
                (name, i) for i in range(length // CHUNK, (len(tree[name]) - 1) // CHUNK + 1)
            }
            tree[name] = tree[name][:length].copy()
            under.touched |= {(name, "metadata"), (name, "shorter")}
        elif what == "delete":
            del t[name]
            del tree[name]
            if name in self.versions[under.base][1]:
                under.touched |= {(name, "gone"), (name, "metadata")}
            else:  # as if it had never been
                under.touched = {each for each in under.touched if each[0] != name}
        self.seen[what] += 1
        assert read(t.group) == plain(tree), "a transaction reads what it wrote"

    def end(self, under: Under) -> None:
        self.under.remove(under)
        if self.random.random() < 0.1:
            under.transaction.abort()
            under.transaction.__exit__(None, None, None)
            self.seen["abort"] += 1
            return
        line = self.history[under.branch]
        reset = under.base not in line
        since = [] if reset else line[line.index(under.base) + 1 :]
        head = self.versions[line[-1]][1]
        must = [clashes(under.touched, self.touched[k]) for k in since]
        try:
            under.transaction.__exit__(None, None, None)
        except Conflict:
            self.seen["conflict"] += 1
            assert any(must) or reset, "only what both changed is refused"
            return
        if under.transaction.commit is None:
            return
        assert not reset, "a branch that was reset is not committed to"
        self.seen["rebased" if since else "commit"] += 1
        merged = self.merged(under, head)
        self.versions.append((under.transaction.commit, merged))
        self.touched.append(under.touched)
        line.append(len(self.versions) - 1)
        self.look()

    def merged(self, under: Under, head: Tree) -> Tree:
        """The head with the chunks and arrays that the transaction touched."""
        merged = {name: array.copy() for name, array in head.items()}
        for name in {name for name, _ in under.touched}:
            whats = {what for each, what in under.touched if each == name}
            if name not in under.tree:
                merged.pop(name, None)
            elif "gone" in whats or "new" in whats:
                merged[name] = under.tree[name].copy()
            else:
                mine = under.tree[name]
                length = len(mine) if "metadata" in whats else len(merged[name])
                made = np.zeros(length, np.int32)
                kept = min(length, len(merged[name]))
                made[:kept] = merged[name][:kept]
                for i in (what for what in whats if isinstance(what, int)):
                    part = slice(i * CHUNK, min((i + 1) * CHUNK, len(mine), length))
                    made[part] = mine[part]
                merged[name] = made
        return merged

    def tag(self) -> None:
        name = f"v{len(self.tags)}"
        branch = self.random.choice([*self.history])
        self.repo.tag(name, at=f"branch:{branch}")
        self.tags[name] = self.history[branch][-1]
        self.seen["tag"] += 1

    def branch(self) -> None:
        if len(self.history) > 2:
            return
        name, at = f"line {len(self.history)}/x", self.random.choice([*self.history])
        self.repo.branch(name, at=at)
        self.history[name] = list(self.history[at])
        self.seen["branch"] += 1

    def reset(self) -> None:
        branch = self.random.choice([*self.history])
        line = self.history[branch]
        keep = self.random.randrange(1, len(line) + 1)
        self.repo.reset(branch, to=self.versions[line[keep - 1]][0])
        del line[keep:]
        self.seen["reset"] += 1

    def look(self) -> None:
        """Every version is what it was; names lead to what they name."""
        for branch, line in self.history.items():
            commit, tree = self.versions[line[-1]]
            version = stash.open_repo(self.repo.driver).at(f"branch:{branch}")
            assert version.commit == commit
            assert read(version.open_group()) == plain(tree)
            assert [each.id for each in self.repo.log(branch)] == [
                self.versions[k][0] for k in reversed(line)
            ]
        commit, tree = self.random.choice(self.versions)
        assert read(self.repo.at(commit).open_group()) == plain(tree), commit
        for name, k in self.tags.items():
            assert self.repo.at(name).commit == self.versions[k][0]
        one, other = (self.random.choice(self.versions) for _ in range(2))
        self.compare(one, other)
        self.seen["look"] += 1

    def compare(self, one: tuple[str, Tree], other: tuple[str, Tree]) -> None:
        """A diff names every array that differs, and each element lies in one of its boxes."""
        found = self.repo.diff(one[0], other[0])
        assert set(found.created) - {"g"} == other[1].keys() - one[1].keys()
        assert set(found.deleted) - {"g"} == one[1].keys() - other[1].keys()
        for name in one[1].keys() & other[1].keys():
            a, b = one[1][name], other[1][name]
            if len(a) != len(b):
                assert name in found.changed
            both = min(len(a), len(b))
            covered = np.zeros(len(b), bool)
            for (box,) in found.arrays[name].boxes if name in found.arrays else ():
                covered[box] = True
            assert covered[:both][a[:both] != b[:both]].all(), name

    def finish(self) -> None:
        """End what is under way, and look at everything."""
        while self.under:
            self.end(self.under[0])
        for commit, tree in self.versions:
            assert read(self.repo.at(commit).open_group()) == plain(tree), commit
        assert self.repo.check() == []
