"""The tree of entries, against a dict of versions: pages so small that all is cut and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensorstash import errors
from tensorstash.versions.container import packed_nbytes
from tensorstash.versions.ids import Reference, new_session
from tensorstash.versions.tree import TREE_PAGES, VALUES, Node, Sizes, Tree, differences
from tests.versions.pages import Pages

TINY = Sizes(split=120, merge=40, value=20, root=30)

names = st.sampled_from(("a", "b", "b b", "ä", "b!", "zarr.json", "long" * 6, "", "\U0001f600"))
keys = st.one_of(
    st.lists(names, min_size=1, max_size=4).map("/".join),
    st.integers(0, 60).map("many/{:03}/zarr.json".format),
)
contents = st.one_of(st.binary(max_size=12), st.integers(0, 60).map(bytes))
Model = dict[str, bytes]


def in_order(model: Model) -> list[tuple[str, bytes]]:
    return sorted(model.items(), key=lambda entry: entry[0].encode())


def listed(model: Model, prefix: str) -> list[tuple[str, bool]]:
    found: dict[tuple[str, bool], None] = {}
    for key, _ in in_order(model):
        if key.startswith(prefix):
            name, slash, _ = key[len(prefix) :].partition("/")
            found[name, bool(slash)] = None
    return list(found)


def reached(tree: Tree, pages: Pages) -> Iterator[Reference]:
    """Every page of a tree; that nodes are as they must be is checked on the way."""
    if isinstance(tree.root, Reference):
        yield tree.root
    nodes: Sequence[Node] = ()
    if tree.root is not None:
        nodes = [tree.root if isinstance(tree.root, Node) else pages.one(tree.root, TREE_PAGES)]
    assert not nodes or nodes[0].level == 0 or len(nodes[0].keys) > 1, "a level for nothing"
    while nodes:
        below = []
        for node in nodes:
            assert node.keys
            assert list(node.keys) == sorted(set(node.keys))
            for key, item in zip(node.keys, node.items, strict=True):
                if isinstance(item, Reference):
                    yield item
                    if node.level:
                        child = pages.one(item, TREE_PAGES)
                        assert child.level == node.level - 1
                        assert child.keys[0] == key
                        below.append(child)
        nodes = below


class TreeOfVersions(RuleBasedStateMachine):
    """Each version stays what it was, whatever comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages()
        self.versions: list[tuple[Tree, Model]] = [(Tree(sizes=TINY), {})]

    @rule(
        data=st.data(),
        changes=st.dictionaries(keys, st.one_of(contents, st.none()), max_size=30),
        gone=st.booleans(),
    )
    def change(self, data: st.DataObject, changes: dict[str, bytes | None], gone: bool) -> None:
        tree, model = self.versions[data.draw(st.integers(0, len(self.versions) - 1))]
        if gone and model:
            prefix = data.draw(st.sampled_from(sorted(model)))[: data.draw(st.integers(0, 6))]
            changes = {key: None for key in model if key.startswith(prefix)} | changes
        self.publish(tree, model, changes)

    @rule(start=st.integers(0, 60), count=st.integers(1, 60), version=st.integers(-3, -1))
    def change_many(self, start: int, count: int, version: int) -> None:
        tree, model = self.versions[max(version, -len(self.versions))]
        numbers = range(start, start + count)
        self.publish(tree, model, {f"many/{n:03}/zarr.json": b"%d" % n for n in numbers})

    def publish(self, tree: Tree, model: Model, changes: dict[str, bytes | None]) -> None:
        new = self.pages.session()
        changed = tree.apply(changes, self.pages.load, new)
        self.pages.keep(new)
        after = {**model, **changes}
        self.versions.append(
            (
                Tree.parse(changed.tree.encode(), "commit/x", TINY),
                {key: value for key, value in after.items() if value is not None},
            )
        )
        before, now = set(reached(tree, self.pages)), set(reached(changed.tree, self.pages))
        written = {each for each in changed.dead if each.session == new.session}
        assert len(changed.dead) == len(set(changed.dead))
        assert set(changed.dead) - written == before - now
        # Nothing is stored that nobody refers to, and that is not told of.
        assert {each.number for each in (now - before) | written} == set(range(new.next))
        if self.versions[-1][1] == model and not any(
            len(v or b"") > TINY.value for v in changes.values()
        ):
            assert changed.tree is tree
            assert not new.next

    @rule(data=st.data(), prefix=st.one_of(keys, st.just(""), names), asked=st.lists(keys))
    def read(self, data: st.DataObject, prefix: str, asked: list[str]) -> None:
        tree, model = self.versions[data.draw(st.integers(0, len(self.versions) - 1))]
        load = self.pages.load
        assert tree.get(asked, load) == {key: model[key] for key in asked if key in model}
        under = [(key, value) for key, value in in_order(model) if key.startswith(prefix)]
        assert list(tree.below(prefix, load)) == under
        assert list(tree.below(prefix, load, values=False)) == [(key, b"") for key, _ in under]
        assert list(tree.names(prefix, load)) == listed(model, prefix)

    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        one, two = (
            self.versions[data.draw(st.integers(0, len(self.versions) - 1))] for _ in range(2)
        )
        either = sorted({**one[1], **two[1]}, key=str.encode)
        assert list(differences(one[0], two[0], self.pages.load)) == [
            (key, one[1].get(key), two[1].get(key))
            for key in either
            if one[1].get(key) != two[1].get(key)
        ]

    @invariant()
    def the_first_version_is_empty(self) -> None:
        assert self.versions[0][0].root is None


TestTreeOfVersions = TreeOfVersions.TestCase
TestTreeOfVersions.settings = settings(stateful_step_count=12, deadline=None)


def tree_of(model: Model, pages: Pages, sizes: Sizes = TINY) -> Tree:
    new = pages.session()
    tree = Tree(sizes=sizes).apply(dict(model), pages.load, new).tree
    pages.keep(new)
    pages.forget()
    return tree


def large(pages: Pages) -> tuple[Tree, Model]:
    model = {f"g{n % 100:02}/a{n // 100:04}/zarr.json": b"x" * 400 for n in range(20_000)}
    return tree_of(model, pages, Sizes()), model


def test_one_change_among_many_writes_the_pages_on_the_way() -> None:
    pages = Pages()
    tree, model = large(pages)
    new = pages.session()
    changed = tree.apply({"g50/a0100/zarr.json": b"y"}, pages.load, new)
    assert len(changed.dead) == new.next == 1  # the root is where the tree is named
    assert pages.calls == 1
    assert sum(len(data) for _, data in new.stored) < 20_000
    pages.keep(new)
    assert dict(changed.tree.below("", pages.load)) == {**model, "g50/a0100/zarr.json": b"y"}
    assert packed_nbytes(tree.encode()) < 8192


def test_keys_of_one_level_are_read_at_once() -> None:
    pages = Pages()
    tree, model = large(pages)
    some = list(model)[::100]
    assert tree.get(some, pages.load) == {key: model[key] for key in some}
    assert pages.calls == 1


def test_names_of_large_folders_are_listed_without_reading_them() -> None:
    pages = Pages()
    tree, _ = large(pages)
    assert list(tree.names("", pages.load)) == [(f"g{n:02}", True) for n in range(100)]
    every = sum(1 for _ in reached(tree, pages))
    assert len(pages.read) < every / 3
    pages.forget()
    assert next(iter(tree.below("g50/", pages.load, values=False)))[0] == "g50/a0000/zarr.json"
    assert len(pages.read) <= 5


def test_trees_that_share_pages_are_compared_without_reading_these() -> None:
    pages = Pages()
    tree, _ = large(pages)
    new = pages.session()
    changed = tree.apply({"g50/a0100/zarr.json": None}, pages.load, new).tree
    pages.keep(new)
    pages.forget()
    assert list(differences(tree, changed, pages.load)) == [
        ("g50/a0100/zarr.json", b"x" * 400, None)
    ]
    assert len(pages.read) == 2
    assert list(differences(tree, tree, pages.load)) == []


def test_a_node_with_one_child_below_the_top_keeps_it() -> None:
    """Small pages that are joined leave such nodes; an edit may touch one node of each level."""
    pages = Pages()
    model = {f"many/{n:03}/zarr.json": b"%d" % n for n in range(24)}
    tree = tree_of(model, pages)
    for key in model:
        after = {**model, "a": b"", key: b""}
        new = pages.session()
        changed = tree.apply({"a": b"", key: b"", "a/a": None}, pages.load, new).tree
        pages.keep(new)
        assert list(changed.below("", pages.load)) == in_order(after)


def test_folders_whose_names_begin_alike_are_all_listed() -> None:
    pages = Pages()
    model = {f"a{end}/{n}": b"12345678" for end in ("", *"abcdefgh", " b") for n in range(2)}
    for size in (60, 90, 120, 150):
        tree = tree_of(model, pages, Sizes(size, size // 3, 20, 30))
        for prefix in ("", "a", "a/", "aa/"):
            assert list(tree.names(prefix, pages.load)) == listed(model, prefix)


def test_deleting_nearly_all_leaves_a_small_tree() -> None:
    pages = Pages()
    tree, model = large(pages)
    new = pages.session()
    gone = {key: None for key in model if not key.endswith("a0007/zarr.json")}
    changed = tree.apply(gone, pages.load, new).tree
    pages.keep(new)
    assert sum(1 for _ in reached(changed, pages)) < 10
    assert len(dict(changed.below("", pages.load))) == 100


def test_a_key_that_is_too_long_is_refused() -> None:
    new = Pages().session()
    Tree().apply({"k" * 4096: b""}, Pages().load, new)
    with pytest.raises(errors.Invalid, match=r"4097 bytes.*shorter names"):
        Tree().apply({"k" * 4097: b""}, Pages().load, new)
    with pytest.raises(errors.Invalid, match="spelled in UTF-8"):
        Tree().apply({"\ud800": b""}, Pages().load, new)


def test_a_page_that_is_not_the_one_its_parent_speaks_of_is_corrupt() -> None:
    """Neither a page put in place of another one, nor one that refers to itself."""
    pages = Pages()
    tree = tree_of({f"{n:03}": b"12345678" for n in range(200)}, pages)
    root = pages.one(tree.root, TREE_PAGES) if isinstance(tree.root, Reference) else tree.root
    assert root is not None
    for key, item in ((b"no", root.items[0]), (root.keys[0], root.items[1])):
        wrong = Tree(Node(root.level, [key], [item]))
        for call in (
            lambda wrong=wrong: list(wrong.below("", pages.load)),
            lambda wrong=wrong: wrong.get(["zzz"], pages.load),
            lambda wrong=wrong: wrong.apply({"zzz": b""}, pages.load, pages.session()),
        ):
            with pytest.raises(errors.Corrupt, match=r"page/.* begins with"):
                call()
    above = Tree(Node(root.level + 1, root.keys[:1], root.items[:1]))
    with pytest.raises(errors.Corrupt, match="at level"):
        list(above.below("", pages.load))


items = st.one_of(
    st.binary(max_size=40),
    st.builds(
        Reference,
        st.sampled_from([new_session() for _ in range(3)]),
        st.integers(0, (1 << 62) - 1),
        st.integers(0, (1 << 50) - 1),
    ),
)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    texts = st.text(max_size=12).map(str.encode)
    entries = sorted(draw(st.dictionaries(texts, items, min_size=1)).items())
    level = (
        draw(st.integers(0, 3)) if all(isinstance(item, Reference) for _, item in entries) else 0
    )
    return Node(level, [key for key, _ in entries], [item for _, item in entries])


@given(nodes())
def test_a_node_comes_back_and_each_truncation_is_noticed(node: Node) -> None:
    raw = node.encode()
    read = TREE_PAGES.parse(raw, "page/x/0")
    assert (read.level, list(read.keys), list(read.items)) == (node.level, node.keys, node.items)
    assert read.weight == node.weight
    assert read.held > 0
    for size in range(len(raw)):
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            TREE_PAGES.parse(raw[:size], "page/x/0")
    with pytest.raises(errors.Corrupt, match="too many"):
        TREE_PAGES.parse(raw + b"\0", "page/x/0")


@given(st.data(), nodes())
def test_a_flipped_bit_behind_a_right_checksum_is_another_node_or_corrupt(
    data: st.DataObject, node: Node
) -> None:
    raw = node.encode()
    step = 1 + len(raw) // 40
    for bit in range(data.draw(st.integers(0, step - 1)), 8 * len(raw), step):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(errors.Corrupt):
            read = TREE_PAGES.parse(bytes(damaged), "page/x/0")
            assert list(read.keys) == sorted(set(read.keys))
            assert all(key.decode() is not None for key in read.keys)
            assert not read.level or all(isinstance(item, Reference) for item in read.items)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    for parse in (TREE_PAGES.parse, Tree.parse):
        with suppress(errors.Corrupt):
            parse(raw, "page/x/0")


def test_keys_that_are_no_text_are_corrupt() -> None:
    for keys in ([b"\xff"], [b"a\xc3", b"b"], [b"a\xc3", b"\xa4"]):
        raw = Node(0, keys, [b""] * len(keys)).encode()
        with pytest.raises(errors.Corrupt, match=r"page/x/0 has a key that cannot be spelled"):
            TREE_PAGES.parse(raw, "page/x/0")
    parts = ["ä", "äb", "ö"]  # of which the bytes that are shared are no text
    node = TREE_PAGES.parse(Node(0, [*map(str.encode, parts)], [b""] * 3).encode(), "page/x/0")
    assert [key.decode() for key in node.keys] == parts


def test_large_values_are_pages_of_their_own() -> None:
    pages = Pages()
    tree = tree_of({"a": b"x" * 5000, "b": b"small"}, pages, Sizes())
    assert isinstance(tree.root, Node)
    (reference,) = (item for item in tree.root.items if isinstance(item, Reference))
    assert pages.one(reference, VALUES) == b"x" * 5000
    assert list(tree.below("", pages.load, values=False)) == [("a", b""), ("b", b"")]
    assert not pages.read
    assert tree.get(["b"], pages.load) == {"b": b"small"}
    assert not pages.read
    assert tree.get(["a", "b"], pages.load)["a"] == b"x" * 5000
