"""Pages of references, against a dict: what is stored comes back, what is damaged is noticed."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstash import errors
from tensorstash.versions.binary import Reader, column, steps, varint
from tensorstash.versions.container import Kind, pack
from tensorstash.versions.ids import MOST_NBYTES, MOST_NUMBER, MOST_TOTAL, Reference, new_session
from tensorstash.versions.refs import REF_PAGES, PageChange, RefPage, Refs

REPO = bytes(range(16))
SESSIONS = sorted(new_session() for _ in range(5))

references = st.builds(
    Reference,
    st.sampled_from(SESSIONS),
    st.one_of(st.integers(0, 300), st.integers(0, MOST_NUMBER - 1)),
    st.one_of(st.integers(0, 300), st.integers(0, MOST_NBYTES - 1)),
)


@st.composite
def models(draw: st.DrawFn, size: int) -> dict[int, Reference]:
    """What is at which position: all, none, the first, few or many."""
    every = list(range(size))
    taken = draw(
        st.one_of(
            st.just(every),
            st.integers(0, size).map(lambda n: every[:n]),
            st.lists(st.integers(0, size - 1), unique=True).map(sorted) if size else st.just([]),
        )
    )
    few = draw(st.lists(references, min_size=1, max_size=8))
    return {position: few[(position * 7) % len(few)] for position in taken}


def page_of(model: dict[int, Reference], size: int, pages: bool = False) -> RefPage:
    taken = sorted(model)
    below = np.array(taken, np.uint64) * 3 if pages else None
    refs = Refs.listed([model[position] for position in taken])
    return RefPage(size, np.array(taken, np.uint16), refs, below, below)


def read(page: RefPage) -> RefPage:
    stored = pack(Kind.REFS, REPO, page.encode(), REF_PAGES.most)
    return REF_PAGES.decode(stored, REPO, "page/x/0")


def as_dict(page: RefPage) -> dict[int, Reference]:
    return dict(zip(page.positions.tolist(), page.refs, strict=True))


@given(st.data(), st.sampled_from((1, 2, 7, 8, 64, 4096)), st.booleans())
def test_a_page_is_a_dict(data: st.DataObject, size: int, pages: bool) -> None:
    model = data.draw(models(size))
    page = read(page_of(model, size, pages))
    assert as_dict(page) == model
    assert page.size == size
    assert len(page) == len(model)
    for position in data.draw(st.lists(st.integers(0, size - 1), max_size=9)):
        assert page.find(position) == model.get(position)
    asked = np.array(data.draw(st.lists(st.integers(0, size - 1))), np.int64)
    there, refs = page.lookup(asked)
    assert there.tolist() == [position in model for position in asked.tolist()]
    assert list(refs) == [model[p] for p in asked.tolist() if p in model]
    if pages:
        assert page.chunks is not None
        assert page.chunks.tolist() == [3 * position for position in sorted(model)]
        assert page.totals() == (3 * sum(model), 3 * sum(model))
    else:
        assert page.totals() == (len(model), sum(each.nbytes for each in model.values()))
    assert page.held > 0


@given(st.data(), st.sampled_from((1, 8, 64, 4096)))
def test_a_changed_page_is_a_changed_dict(data: st.DataObject, size: int) -> None:
    model = data.draw(models(size))
    page = page_of(model, size)
    before = as_dict(page)
    new = data.draw(models(size))
    gone = [p for p in data.draw(st.lists(st.integers(0, size - 1), unique=True)) if p not in new]
    placed = data.draw(st.permutations(sorted(new)))
    change = PageChange.of(placed, Refs.listed([new[position] for position in placed]), gone)
    changed = page.changed(change)
    expected = {p: each for p, each in {**model, **new}.items() if p not in gone}
    assert as_dict(changed) == as_dict(read(changed)) == dict(sorted(expected.items()))
    assert set(changed.refs.sessions) == {each.session for each in expected.values()}
    assert as_dict(page) == before


@given(st.data())
def test_references_are_listed_joined_and_taken(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.lists(references, max_size=6), max_size=4))
    flat = [each for part in parts for each in part]
    joined = Refs.joined([Refs.listed(part) for part in parts])
    assert list(joined) == flat
    assert list(joined.compact()) == flat
    assert [joined[i] for i in range(len(joined))] == flat
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(flat), max_size=len(flat))), bool
    )
    assert list(joined.take(mask)) == [each for each, kept in zip(flat, mask, strict=True) if kept]
    reader = Reader(joined.encode(), "page/x/0")
    assert list(Refs.read(reader, len(flat))) == flat
    reader.end()


@given(st.lists(st.tuples(references, references, st.booleans()), max_size=20))
def test_references_are_compared_whatever_sessions_their_columns_list(
    pairs: list[tuple[Reference, Reference, bool]],
) -> None:
    one = [mine for mine, _, _ in pairs]
    other = [mine if alike else theirs for mine, theirs, alike in pairs]
    for left, right in ((one, other), (other, one)):
        found = Refs.listed(left).same(Refs.listed(right)).tolist()
        assert found == [a == b for a, b in zip(left, right, strict=True)]


@given(st.data(), st.sampled_from((1, 3, 8, 64)), st.booleans())
def test_every_truncation_of_a_page_is_noticed(data: st.DataObject, size: int, pages: bool) -> None:
    """Also of its raw bytes, behind a checksum that is right."""
    raw = page_of(data.draw(models(size)), size, pages).encode()
    for cut in range(len(raw)):
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            REF_PAGES.parse(raw[:cut], "page/x/0")
    with pytest.raises(errors.Corrupt, match="1 byte too many"):
        REF_PAGES.parse(raw + b"\0", "page/x/0")


@given(st.data(), st.sampled_from((3, 64)), st.booleans())
def test_a_flipped_bit_behind_a_right_checksum_is_another_page_or_corrupt(
    data: st.DataObject, size: int, pages: bool
) -> None:
    raw = page_of(data.draw(models(size)), size, pages).encode()
    step = 1 + len(raw) // 20  # of the bits of a long one some, others in each example
    for bit in range(data.draw(st.integers(0, step - 1)), 8 * len(raw), step):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(errors.Corrupt, errors.Unsupported):
            check_sound(REF_PAGES.parse(bytes(damaged), "page/x/0"))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    with suppress(errors.Corrupt, errors.Unsupported):
        check_sound(REF_PAGES.parse(raw, "page/x/0"))


def check_sound(page: RefPage) -> None:
    """Whatever was read, it is a page as any other."""
    assert page.size <= 4096
    assert all(0 <= position < page.size for position in page.positions.tolist())
    assert sorted(set(page.positions.tolist())) == page.positions.tolist()
    for each in page.refs:
        assert 0 <= each.number < MOST_NUMBER
        assert 0 <= each.nbytes < MOST_NBYTES
    assert as_dict(read(page)) == as_dict(page)


def test_claims_of_size_are_not_believed() -> None:
    huge = varint(1 << 62)
    for raw in (
        b"\0" + huge,  # positions
        b"\0" + varint(4096) + b"\0" + huge,  # how many are taken
        b"\0" + varint(4096) + b"\0" + varint(4096) + huge,  # sessions
        b"\0" + varint(64) + b"\3",
        b"\0" + varint(3) + b"\2\xff",  # bits beyond the size
    ):
        with pytest.raises(errors.Corrupt, match="page/x/0"):
            REF_PAGES.parse(raw, "page/x/0")
    with pytest.raises(errors.Corrupt, match="positions beyond its 3"):
        REF_PAGES.parse(b"\0" + varint(3) + b"\2\xff", "page/x/0")
    with pytest.raises(errors.Unsupported, match=r"references of kind 2.* newer tensorstash"):
        REF_PAGES.parse(b"\2", "page/x/0")


def test_the_largest_page_can_be_stored_and_read() -> None:
    rng = np.random.default_rng(1)
    refs = Refs.listed(
        [
            Reference(new_session(), int(number), int(nbytes))
            for number, nbytes in zip(
                rng.integers(0, MOST_NUMBER, 4096), rng.integers(0, MOST_NBYTES, 4096), strict=True
            )
        ]
    )
    most = rng.integers(0, MOST_TOTAL // 4096, 4096).astype(np.uint64)
    page = RefPage(4096, np.arange(4096, dtype=np.uint16), refs, most, most)
    assert list(read(page).refs) == list(refs)
    assert read(page).totals() == (int(most.sum()), int(most.sum()))
    more = RefPage(4096, page.positions, refs, most, most | np.uint64(1 << 61))
    with pytest.raises(errors.Corrupt, match="more chunks or bytes below it"):
        read(more)


@given(st.lists(st.integers(0, MOST_NUMBER - 1)))
def test_columns_and_steps_come_back(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    reader = Reader(column(array) + steps(array), "x")
    assert reader.column(len(values), MOST_NUMBER - 1).tolist() == values
    assert reader.steps(len(values), MOST_NUMBER - 1).tolist() == values
    reader.end()
    if values and max(values):
        for form, read_again in ((column, Reader.column), (steps, Reader.steps)):
            with pytest.raises(errors.Corrupt):
                read_again(Reader(form(array), "x"), len(values), max(values) - 1)


@given(st.integers(0, (1 << 70) - 1))
def test_varints_come_back_and_have_one_form(value: int) -> None:
    data = varint(value)
    assert Reader(data, "x").varint(value) == value
    longer = data[:-1] + bytes((data[-1] | 128, 0))
    with pytest.raises(errors.Corrupt):
        Reader(longer, "x").varint(value)


@pytest.mark.parametrize(("writers", "most"), [(1, 2.4), (64, 3.4)])
def test_a_reference_takes_less_than_four_bytes(writers: int, most: float) -> None:
    """Its size, of which 15.6 bits are random here, takes two of them."""
    rng = np.random.default_rng(0)
    names = [new_session() for _ in range(writers)]
    which = rng.integers(0, writers, 4096)
    numbers = np.zeros(4096, np.int64)
    for writer in range(writers):
        numbers[which == writer] = np.arange((which == writer).sum()) + 10_000
    refs = Refs(tuple(names), which, numbers, rng.integers(50_000, 100_000, 4096))
    page = RefPage(4096, np.arange(4096, dtype=np.uint16), refs)
    stored = pack(Kind.REFS, REPO, page.encode(), REF_PAGES.most)
    assert len(stored) / 4096 < most
