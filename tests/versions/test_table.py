"""The references of one array, against a dict of versions: small pages, so that levels grow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tensorstash import errors
from tensorstash.versions.ids import Reference, new_session
from tensorstash.versions.pages import NewPages
from tensorstash.versions.refs import PageChange, RefPage, Refs
from tensorstash.versions.table import (
    Applied,
    Blocks,
    ChunkTable,
    Index,
    ReadyPage,
    apply,
    choose_block,
)
from tensorstash.versions.table import edit as table_edit
from tests.versions.pages import Pages

Model = dict[Index, Reference]


def changes_of(
    table: ChunkTable, wanted: Mapping[Index, Reference | None]
) -> dict[Index, PageChange | ReadyPage]:
    """What becomes of which pages."""
    grouped: dict[Index, dict[int, Reference | None]] = {}
    for index, reference in wanted.items():
        page, position = table.blocks.place(index, 0)
        grouped.setdefault(page, {})[position] = reference
    out: dict[Index, PageChange | ReadyPage] = {}
    for page, each in grouped.items():
        given = {position: ref for position, ref in each.items() if ref is not None}
        gone = [position for position, ref in each.items() if ref is None]
        out[page] = PageChange.of(list(given), Refs.listed(list(given.values())), gone)
    return out


def stored_in(table: ChunkTable, pages: Pages, *box: Sequence[int]) -> Model:
    found: Model = {}
    for indices, refs in table.iterate(pages.load, *box):
        assert len(indices) == len(refs) > 0
        for index, reference in zip(indices.tolist(), refs, strict=True):
            assert tuple(index) not in found
            found[tuple(index)] = reference
    return found


def every_page(table: ChunkTable, pages: Pages) -> set[Reference]:
    found = list(table.every_page(pages.load))
    assert len(set(found)) == len(found)
    return set(found)


class TableOfVersions(RuleBasedStateMachine):
    """Each version stays what it was; grids of a few axes grow along any of them."""

    @initialize(counts=st.lists(st.sampled_from((0, 1, 2, 3, 9, 5000)), max_size=3))
    def begin(self, counts: list[int]) -> None:
        self.pages = Pages()
        blocks = Blocks((tuple(min(count // 2, 1) for count in counts),))
        table = ChunkTable(blocks, RefPage.empty(blocks.size(0)))
        self.versions: list[tuple[ChunkTable, Model]] = [(table, {})]
        self.ndim = len(counts)

    def pick(self, data: st.DataObject) -> tuple[ChunkTable, Model]:
        return self.versions[-data.draw(st.integers(1, len(self.versions)))]

    def indices(self, data: st.DataObject, model: Model) -> list[Index]:
        axis = st.one_of(st.integers(0, 9), st.integers(0, 200), st.integers(0, (1 << 62) - 1))
        index = st.tuples(*[axis] * self.ndim)
        if model:
            index = st.one_of(index, st.sampled_from(sorted(model)))
        return data.draw(st.lists(index, max_size=8, unique=True))

    def references(self, new: NewPages, indices: Sequence[Index]) -> dict[Index, Reference | None]:
        # Numbers that pages do not have, so that none is taken for another one.
        return {
            index: Reference(new.session, 1000 + number, 7 * number)
            for number, index in enumerate(indices)
        }

    @rule(data=st.data(), hint=st.booleans())
    def change(self, data: st.DataObject, hint: bool) -> None:
        table, model = self.pick(data)
        new = self.pages.session()
        wanted = self.references(new, self.indices(data, model))
        wanted |= dict.fromkeys(self.indices(data, model))
        counts = [
            max((index[axis] for index in wanted), default=0) + 1 for axis in range(self.ndim)
        ]
        applied = apply(
            table, changes_of(table, wanted), self.pages.load, new, counts if hint else ()
        )
        self.publish(table, model, wanted, applied, new)

    @rule(data=st.data(), count=st.integers(1, 300))
    def fill(self, data: st.DataObject, count: int) -> None:
        if not self.ndim:
            return
        table, model = self.pick(data)
        new = self.pages.session()
        axis = data.draw(st.integers(0, self.ndim - 1))
        along = [tuple(n if a == axis else 0 for a in range(self.ndim)) for n in range(count)]
        wanted = self.references(new, along)
        applied = apply(table, changes_of(table, wanted), self.pages.load, new)
        self.publish(table, model, wanted, applied, new)

    @rule(data=st.data(), keep=st.integers(0, 3))
    def clear(self, data: st.DataObject, keep: int) -> None:
        table, model = self.pick(data)
        new = self.pages.session()
        wanted = dict.fromkeys(sorted(model)[keep:])
        applied = apply(table, changes_of(table, wanted), self.pages.load, new)
        self.publish(table, model, wanted, applied, new)

    @rule(data=st.data(), count=st.integers(0, 9))
    def put_back(self, data: st.DataObject, count: int) -> None:
        """What an earlier version has is no new chunk, and what stays is not dead."""
        (table, model), (_, earlier) = self.pick(data), self.pick(data)
        new = self.pages.session()
        back = {index: earlier[index] for index in sorted(earlier)[:count]}
        wanted = self.references(new, self.indices(data, model)[:1]) | back
        applied = apply(table, changes_of(table, wanted), self.pages.load, new)
        self.publish(table, model, wanted, applied, new)
        again = self.pages.session()
        after = {**model, **wanted}
        same = {index: ref for index, ref in sorted(after.items())[:count] if ref is not None}
        twice = apply(applied.table, changes_of(applied.table, same), self.pages.load, again)
        assert twice.table is applied.table
        once_more = apply(applied.table, applied.ready, self.pages.load, again)
        assert once_more.table is applied.table
        assert not (again.next or len(once_more.dead) or once_more.dead_pages)

    @rule(data=st.data())
    def rebase(self, data: st.DataObject) -> None:
        """A change is applied to one version, and then to another one where others were first."""
        table, model = self.pick(data)
        new, other = self.pages.session(), self.pages.session()
        wanted = self.references(new, self.indices(data, model))
        first = apply(table, changes_of(table, wanted), self.pages.load, new)
        self.pages.keep(new)
        theirs = self.references(other, self.indices(data, model)) | dict.fromkeys(
            sorted(model)[data.draw(st.integers(0, 9)) :]
        )
        second = apply(table, changes_of(table, theirs), self.pages.load, other)
        self.pages.keep(other)
        touched = set(changes_of(table, theirs))
        mine = changes_of(table, wanted)
        mine |= {page: each for page, each in first.ready.items() if page not in touched}
        after = {index: ref for index, ref in {**model, **theirs}.items() if ref is not None}
        again = NewPages(new.repo, new.session, new.next)
        applied = apply(second.table, mine, self.pages.load, again)
        reused = sum(page not in touched for page in first.ready)
        assert again.next - new.next <= len(applied.table.blocks.bits) * (
            len(mine) - reused + 1
        ) + reused * (len(applied.table.blocks.bits) - 1)
        self.publish(second.table, after, wanted, applied, again, earlier=new.next)

    def publish(
        self,
        table: ChunkTable,
        model: Model,
        wanted: Mapping[Index, Reference | None],
        applied: Applied,
        new: NewPages,
        earlier: int = 0,
    ) -> None:
        self.pages.keep(new)
        after = {index: ref for index, ref in {**model, **wanted}.items() if ref is not None}
        now = ChunkTable.parse(applied.table.encode(), "commit/x")
        self.versions.append((now, after))
        before, pages = every_page(table, self.pages), every_page(now, self.pages)
        assert len(set(applied.dead_pages)) == len(applied.dead_pages)
        assert set(applied.dead_pages) == before - pages
        stored = {each.number for each in pages - before if each.number >= earlier}
        assert stored == set(range(earlier, new.next))
        gone = set(model.values()) - set(after.values())
        assert len(applied.dead) == len(gone)
        assert set(applied.dead) == gone
        assert now.chunks == len(after)
        assert now.stored == sum(each.nbytes for each in after.values())
        if after == model:
            assert applied.table is table
            assert not applied.ready

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        table, model = self.pick(data)
        assert stored_in(table, self.pages) == model
        asked = [
            *self.indices(data, model),
            *data.draw(st.lists(st.sampled_from([(-1,) * self.ndim]))),
        ]
        asked += asked[:2]
        array = np.array(asked, np.int64).reshape(len(asked), self.ndim)
        there, refs = table.get(array, self.pages.load)
        assert there.tolist() == [index in model for index in asked]
        assert list(refs) == [model[index] for index in asked if index in model]
        for index in asked:
            assert table.find(index, self.pages.load) == model.get(index)

    @rule(data=st.data())
    def read_a_box(self, data: st.DataObject) -> None:
        table, model = self.pick(data)
        (start, stop) = (self.corner(data, model) for _ in range(2))
        inside = {
            index: ref
            for index, ref in model.items()
            if all(a <= i < b for a, i, b in zip(start, index, stop, strict=True))
        }
        assert stored_in(table, self.pages, start, stop) == inside

    def corner(self, data: st.DataObject, model: Model) -> Index:
        return (*self.indices(data, model), (3,) * self.ndim)[0]


TestTableOfVersions = TableOfVersions.TestCase
TestTableOfVersions.settings = settings(stateful_step_count=10, deadline=None)


@given(st.lists(st.integers(0, 1 << 40), max_size=5))
def test_the_block_of_a_grid(counts: list[int]) -> None:
    block = choose_block(counts)
    assert len(block) == len(counts)
    size = int(np.prod(block, dtype=object)) if block else 1
    assert size == 4096 if block else size == 1
    for count, side in list(zip(counts, block, strict=True))[1:]:
        assert side < 2 * max(count, 1)
    full = [side for side, count in zip(block, counts, strict=True) if side < count]
    assert not full or max(full) <= 2 * min(full) or block[0] > max(counts[0], 1)


@pytest.mark.parametrize(
    ("counts", "block"),
    [
        ((), ()),
        ((0,), (4096,)),
        ((10**9,), (4096,)),
        ((100, 100), (64, 64)),
        ((1000, 1), (4096, 1)),
        ((1, 1000), (4, 1024)),
        ((10**6, 3, 3), (256, 4, 4)),
        ((1, 1, 1), (4096, 1, 1)),
    ],
)
def test_blocks_of_some_grids(counts: Index, block: Index) -> None:
    assert choose_block(counts) == block
    assert ChunkTable.empty(counts).blocks.block == block


@given(
    st.data(), st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=1, max_size=4)
)
def test_places_and_indices_are_each_others_reverse(
    data: st.DataObject, bits: list[list[int]]
) -> None:
    blocks = Blocks(tuple(map(tuple, bits)))
    most = [1 << shift for shift in blocks.shifts[-1]]
    index = tuple(data.draw(st.integers(0, side - 1)) for side in most)
    assert blocks.covers(index)
    assert not blocks.covers((index[0], most[1]))
    below: Index = index
    for level in range(blocks.levels):
        page, position = blocks.above(below, level)
        assert blocks.place(index, level) == (page, position)
        assert blocks.positions(np.array([index]), level).tolist() == [position]
        assert blocks.position(index, level) == position
        assert blocks.inside(page, np.array([position]), level).tolist() == [list(below)]
        below = page
    assert below == (0, 0)


def filled(counts: Index) -> tuple[ChunkTable, Pages, str]:
    """All chunks of a grid are stored, by one session."""
    pages = Pages()
    new = pages.session()
    table = ChunkTable.empty(counts)
    indices = np.indices(counts).reshape(len(counts), -1).T
    table = apply(table, whole(table, indices, new.session, 0), pages.load, new, counts).table
    pages.keep(new)
    pages.forget()
    return table, pages, new.session


def whole(
    table: ChunkTable, indices: np.ndarray, session: str, first: int
) -> dict[Index, PageChange | ReadyPage]:
    """Changes of many chunks, without a step of Python for each."""
    where, positions = table.place(indices)
    order = np.lexsort((positions, *where.T[::-1]))
    where, positions = where[order], positions[order]
    cuts = np.flatnonzero(np.any(np.diff(where, axis=0, prepend=-1), axis=1))
    out: dict[Index, PageChange | ReadyPage] = {}
    for start, stop in itertools.pairwise([*cuts.tolist(), len(where)]):
        numbers = np.arange(start, stop) + first
        refs = Refs.of(
            session, numbers, np.random.default_rng(start).integers(50_000, 100_000, len(numbers))
        )
        out[tuple(where[start].tolist())] = PageChange.of(positions[start:stop], refs)
    return out


def test_one_chunk_among_many_writes_the_pages_on_its_way() -> None:
    table, pages, _ = filled((300, 200))
    assert table.chunks == 60_000
    new = pages.session()
    changed = {(17, 33): Reference(new.session, 9, 5)}
    applied = apply(table, changes_of(table, changed), pages.load, new)
    assert new.next == pages.calls == len(pages.read) == 1
    assert len(new.stored[0][1]) < 4 * 4096
    assert len(applied.dead) == len(applied.dead_pages) == 1
    pages.keep(new)
    assert applied.table.find((17, 33), pages.load) == Reference(new.session, 9, 5)
    assert isinstance(applied.table.root, RefPage)


def test_each_level_is_read_at_once_and_boxes_alone() -> None:
    table, pages, _ = filled((300, 200))
    there, refs = table.get(np.array([(i, i) for i in range(0, 400, 10)]), pages.load)
    assert there.sum() == len(refs) == 20
    assert pages.calls == 1
    pages.forget()
    assert len(stored_in(table, pages, (0, 0), (64, 64))) == 4096
    assert len(pages.read) == 1
    pages.forget()
    assert next(iter(table.iterate(pages.load)))[0].shape == (4096, 2)
    assert len(pages.read) <= 2


def test_a_box_of_a_huge_grid_costs_by_what_is_stored() -> None:
    pages = Pages()
    new = pages.session()
    table = ChunkTable.empty((1 << 50, 1 << 50))
    model = {(1 << n, 3 << n): Reference(new.session, n, n) for n in range(0, 50, 7)}
    table = apply(table, changes_of(table, model), pages.load, new, (1 << 50, 1 << 50)).table
    pages.keep(new)
    pages.forget()
    assert stored_in(table, pages) == model
    assert len(pages.read) < 8 * table.blocks.levels
    assert stored_in(table, pages, (0, 0), (1 << 21, 1 << 50)) == {
        index: ref for index, ref in model.items() if index[0] < 1 << 21
    }


def test_a_page_beyond_the_grid_and_a_position_beyond_the_page_are_refused() -> None:
    pages = Pages()
    table = ChunkTable.empty((10, 1))
    change = PageChange.of([0], Refs.listed([Reference(new_session(), 0, 0)]))
    for page in ((0,), (0, -1), (1 << 61, 0), (0, 1 << 62)):
        with pytest.raises(errors.Invalid):
            apply(table, {page: change}, pages.load, pages.session())
    beyond = PageChange.of([4096], Refs.listed([Reference(new_session(), 0, 0)]))
    with pytest.raises(errors.Invalid, match="position 4096"):
        apply(table, {(0, 0): beyond}, pages.load, pages.session())


def test_arrays_of_exabytes_can_be_read_again() -> None:
    pages = Pages()
    table = ChunkTable.empty((4096 * 64,))
    new = pages.session()
    model = {(n * 4096,): Reference(new.session, n, (1 << 50) - 1) for n in range(64)}
    table = apply(table, changes_of(table, model), pages.load, new).table
    pages.keep(new)
    again = ChunkTable.parse(table.encode(), "u//refs")
    assert again.stored == 64 * ((1 << 50) - 1)
    assert stored_in(again, pages) == model


def test_pages_of_a_huge_table_are_told_some_at_a_time() -> None:
    table, pages, _ = filled((1 << 20,))
    listed = table.every_page(pages.load)
    next(listed)
    assert len(list(listed)) == 255
    assert not pages.calls  # what is above chunks is all that is read


def test_a_page_of_another_table_is_corrupt() -> None:
    table, pages, _ = filled((300, 200))
    assert isinstance(table.root, RefPage)
    leaf = table.root.refs[0]
    for wrong in (
        ChunkTable(Blocks(((3,),)), leaf),
        ChunkTable(Blocks((*table.blocks.bits[:1], (6, 6))), leaf),
    ):
        for call in (
            lambda wrong=wrong: wrong.find((0,) * wrong.blocks.ndim, pages.load),
            lambda wrong=wrong: list(wrong.iterate(pages.load)),
        ):
            with pytest.raises(errors.Corrupt, match=r"page/.* has 4096 references to chunks"):
                call()


@given(st.data())
def test_every_truncation_of_a_table_is_noticed(data: st.DataObject) -> None:
    for raw in encoded(data):
        for size in range(len(raw)):
            with pytest.raises(errors.Corrupt, match="u//refs"):
                ChunkTable.parse(raw[:size], "u//refs")
        with pytest.raises(errors.Corrupt, match="too many"):
            ChunkTable.parse(raw + b"\0", "u//refs")


@given(st.data())
def test_a_flipped_bit_of_a_table_is_another_table_or_corrupt(data: st.DataObject) -> None:
    for raw in encoded(data):
        step = 1 + len(raw) // 40
        for bit in range(data.draw(st.integers(0, step - 1)), 8 * len(raw), step):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            with suppress(errors.Corrupt, errors.Unsupported):
                table = ChunkTable.parse(bytes(damaged), "u//refs")
                with suppress(errors.Corrupt):
                    stored_in(table, Pages())


def encoded(data: st.DataObject) -> Iterator[bytes]:
    pages = Pages()
    new = pages.session()
    counts = data.draw(st.lists(st.integers(1, 70), max_size=3))
    table = ChunkTable.empty(counts)
    index = st.tuples(*(st.integers(0, count - 1) for count in counts))
    wanted = data.draw(st.lists(index, max_size=5, unique=True))
    model = {each: Reference(new.session, n, n * n) for n, each in enumerate(wanted)}
    table = apply(table, changes_of(table, model), pages.load, new).table
    yield table.encode()
    yield ChunkTable(table.blocks, Reference(new.session, 5, 300), 7, 4000).encode()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    with suppress(errors.Corrupt, errors.Unsupported):
        ChunkTable.parse(raw, "u//refs")


def test_a_page_that_became_the_root_is_not_taken_over_by_another_try() -> None:
    """It was taken back: under its number there is another page, or none."""
    pages = Pages()
    blocks = Blocks(((2,),))
    base = pages.session()
    both = {(0,): Reference(base.session, 100, 1), (4,): Reference(base.session, 101, 1)}
    empty = ChunkTable(blocks, RefPage.empty(4))
    table = apply(empty, changes_of(empty, both), pages.load, base).table
    pages.keep(base)
    assert table.blocks.levels == 2
    mine, theirs = pages.session(), pages.session()
    wanted = {(1,): Reference(mine.session, 100, 1), (4,): None}
    first = apply(table, changes_of(table, wanted), pages.load, mine)
    assert first.table.blocks.levels == 1
    assert not mine.next
    assert (0,) not in first.ready
    far = {(8,): Reference(theirs.session, 100, 1)}
    second = apply(table, changes_of(table, far), pages.load, theirs)
    pages.keep(theirs)
    again = {**changes_of(table, wanted), **first.ready}
    after = apply(second.table, again, pages.load, mine).table
    pages.keep(mine)
    assert stored_in(after, pages) == {(0,): both[0,], (1,): wanted[1,], **far}


def test_many_pages_are_changed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table, pages, _ = filled((300, 200))
    monkeypatch.setattr(table_edit, "_AT_ONCE", 3)
    new = pages.session()
    every = np.indices((300, 200)).reshape(2, -1).T
    applied = apply(table, whole(table, every, new.session, 0), pages.load, new)
    pages.keep(new)
    assert len(applied.dead) == applied.table.chunks == 60_000
    assert pages.calls == 7
    assert {each.session for each in stored_in(applied.table, pages).values()} == {new.session}
