"""Any tree, of both formats, with records, files of others and what is damaged, against a plain
dict of what is in it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import AlreadyExists, NotFound
from tensorstash.trees.patterns import matches
from tests.support.every_place import stored


@dataclass
class Node:
    """What is at one place of a tree; ``foreign``: files beside its members, by name."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "u1"
    zarr_format: Any = 3
    members: Mapping[str, Node] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()


NAMES = st.sampled_from(
    ["a", "b", "raw", "x 1", "ü", "日本", "c", "0", "y.tmp", ".hid", "[a]", "*"]
)
FORMATS = st.sampled_from([3, 3, 2])
ARRAYS = st.builds(
    Node,
    st.just("array"),
    st.sampled_from([(), (2,), (2, 3), (0,)]),
    st.sampled_from(["u1", "f4", "bfloat16", "M8[s]"]),
    st.just(3),
) | st.builds(Node, st.just("array"), st.just((2, 3)), st.just("i4"), FORMATS)
LEAVES = ARRAYS | st.sampled_from([Node("records"), Node("unreadable"), Node("folder")])
FOREIGN = st.sampled_from([(), (), (), ("notes.txt",), ("photos/1.png", "0.0")])


def groups(members: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    inside = st.dictionaries(NAMES, members, max_size=4)
    return st.builds(Node, st.just("group"), zarr_format=FORMATS, members=inside, foreign=FOREIGN)


TREES = groups(st.recursive(LEAVES, groups, max_leaves=12))

Keys: TypeAlias = dict[str, bytes]


def _records() -> Keys:
    place: dict[str, Any] = {}
    records = stash.create_records(place, {"x": "i4", "in": {"y": "u1"}})
    records.extend({"x": [1, 2, 3], "in/y": [4, 5, 6]})
    return {key: bytes(value) for key, value in place.items()}


RECORDS = _records()


def keys_of(node: Node) -> Keys:
    """All that is stored of a node, by key."""
    place: dict[str, Any] = {}
    if node.kind == "array":
        stash.create(place, node.shape, node.dtype, chunks=1, zarr_format=node.zarr_format)[...] = 1
    elif node.kind == "group":
        stash.create_group(place, zarr_format=node.zarr_format)
    elif node.kind == "records":
        place |= RECORDS
    elif node.kind == "unreadable":
        place["zarr.json"] = b'{"zarr_format": 3, "node_type": "arr'
    else:  # a folder with a file that is nobody's
        place["file"] = b"precious"
    for name, member in node.members.items():
        place |= {f"{name}/{key}": value for key, value in keys_of(member).items()}
    place |= dict.fromkeys(node.foreign, b"precious")
    return {key: bytes(value) for key, value in place.items()}


def expected(node: Node, fields: bool, prefix: str = "") -> Iterator[tuple[Any, ...]]:
    """What a walk finds, in its order."""
    for name in sorted(node.members):
        member, path = node.members[name], prefix + name
        if member.kind == "array":
            dtype = stash.create({}, (), member.dtype).dtype
            yield path, "array", member.shape, dtype, None
        elif member.kind != "folder":
            yield path, member.kind, None, None, 3 if member.kind == "records" else None
        if member.kind == "group":
            yield from expected(member, fields, path + "/")
        elif member.kind == "records" and fields:
            yield f"{path}/in", "group", None, None, None
            yield f"{path}/in/y", "array", (3,), np.dtype("u1"), None
            yield f"{path}/x", "array", (3,), np.dtype("i4"), None


def at(tree: Node, path: str) -> Node:
    for name in path.split("/") if path else ():
        tree = tree.members[name]
    return tree


def found(*args: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [(e.path, e.kind, e.shape, e.dtype, e.rows) for e in stash.walk(*args, **options)]


def holds_foreign(node: Node) -> bool:
    inside = any(map(holds_foreign, node.members.values()))
    return inside or bool(node.foreign) or node.kind == "folder"


def written(keys: Keys, folder: Path) -> Path:
    for key, value in keys.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(value)
    return folder


@given(TREES)
def test_any_tree_is_found(tree: Node) -> None:
    place: Any = keys_of(tree)
    with TemporaryDirectory() as folder:
        for where in (place, written(place, Path(folder))):
            for fields in (False, True):
                assert found(where, fields=fields) == [*expected(tree, fields)]
            for path, kind, *_ in ["", "group"], *expected(tree, False):
                assert stash.exists(where, path=path)
                if kind != "group":
                    continue
                members = [e for e in expected(at(tree, path), False) if "/" not in e[0]]
                assert [(e.path, e.kind) for e in stash.ls(where, path=path)] == [
                    e[:2] for e in members
                ]
                assert found(where, path=path) == [*expected(at(tree, path), False)]
                names = at(tree, path).members
                gone = [name for name, member in names.items() if member.kind == "folder"]
                assert not any(stash.exists(where, path=f"{path}/{name}") for name in gone)


PATTERNS = st.lists(
    st.sampled_from(["**", "*", "a", "b", "raw", "?", "*.tmp", "c*", "[ab0]", "[!a]"]),
    min_size=1,
    max_size=4,
).map("/".join)
SOME = st.none() | PATTERNS | st.lists(PATTERNS, max_size=3)


@given(TREES, SOME, SOME, st.booleans())
def test_what_is_not_listed_for_a_pattern_would_not_have_matched(
    tree: Node, include: Any, exclude: Any, fields: bool
) -> None:
    place: Any = keys_of(tree)
    wanted = [e for e in expected(tree, fields) if matches(e[0], include, exclude)]
    options = {"include": include, "exclude": exclude, "fields": fields}
    assert found(place, **options) == wanted
    with TemporaryDirectory() as folder:
        assert found(written(place, Path(folder)), **options) == wanted


@given(TREES)
def test_a_group_walks_over_the_same(tree: Node) -> None:
    place: Any = keys_of(tree)
    group = stash.open_group(place)
    unreadable = any(e[1] == "unreadable" for e in expected(tree, True))
    if not unreadable:
        assert [path for path, _ in group.walk()] == [e[0] for e in expected(tree, True)]


def only_format_3(node: Node) -> bool:
    fits = node.kind not in ("unreadable", "records") and node.zarr_format == 3
    return fits and all(map(only_format_3, node.members.values()))


@given(TREES.filter(only_format_3), SOME)
def test_consolidated_metadata_says_the_same(tree: Node, include: Any) -> None:
    place: Any = keys_of(tree)
    before = found(place, include=include)
    stash.open_group(place, "r+").consolidate()
    alone = {"zarr.json": place["zarr.json"]}
    assert found(alone, include=include) == before


@given(TREES, st.data())
def test_any_of_it_is_deleted(tree: Node, data: Any) -> None:
    place: Any = keys_of(tree)
    paths = ["", *(e[0] for e in expected(tree, False))]
    path = data.draw(st.sampled_from(paths))
    node = at(tree, path)
    with TemporaryDirectory() as folder:
        for where in (place, written(place, Path(folder) / "x")):
            before = dict(place) if where is place else stored(FileDriver(where))
            if holds_foreign(node):
                with pytest.raises(AlreadyExists):
                    stash.delete(where, path=path)
                after = dict(place) if where is place else stored(FileDriver(where))
                assert after == before
                continue
            stash.delete(where, path=path)
            after = dict(place) if where is place else stored(FileDriver(where))
            gone = f"{path}/" if path else ""
            assert after == {k: v for k, v in before.items() if not k.startswith(gone)}
            with pytest.raises(NotFound):
                stash.delete(where, path=path)
            if where is not place:
                assert not (where / path).exists()
                place = keys_of(tree)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@given(TREES, st.data())
def test_a_link_anywhere_is_what_it_leads_to_and_goes_alone(tree: Node, data: Any) -> None:
    kinds = {e[0]: e[1] for e in expected(tree, False)}
    holder = data.draw(st.sampled_from(["", *(p for p, kind in kinds.items() if kind == "group")]))
    apart = [path for path in kinds if not f"{holder}/".startswith(f"{path}/")]
    if not apart:
        return
    target = data.draw(st.sampled_from(apart))
    linked = copy.deepcopy(tree)
    members = at(linked, holder).members
    assert isinstance(members, dict)
    members["zz"] = at(linked, target)
    link = f"{holder}/zz".strip("/")
    with TemporaryDirectory() as folder:
        where = written(keys_of(tree), Path(folder) / "x")
        before = stored(FileDriver(where))
        os.symlink(where / target, where / link)
        assert found(where) == [*expected(linked, False)]
        stash.delete(where, path=link)
        assert not os.path.lexists(where / link)
        assert stored(FileDriver(where)) == before
        if holder and not holds_foreign(at(tree, holder)):
            os.symlink(where / target, where / link)
            stash.delete(where, path=holder)
            left = {k: v for k, v in before.items() if not k.startswith(f"{holder}/")}
            assert stored(FileDriver(where)) == left


def test_what_the_model_is_compared_with_is_varied() -> None:
    """Each kind of node, format and file of others is met."""
    seen: set[Any] = set()

    @given(TREES)
    def look(tree: Node) -> None:
        nodes = [tree]
        for node in nodes:
            nodes += node.members.values()
            seen.update({node.kind, node.zarr_format, node.foreign, len(node.members)})

    look()
    assert {"array", "group", "records", "unreadable", "folder", 2, 3, 0, 1} <= seen
