"""Commits: what is stored comes back, what is large becomes pages, histories stay cheap."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstash import errors
from tensorstash.versions import changes as changes_module
from tensorstash.versions import log as log_module
from tensorstash.versions.changes import CHANGES, DEAD, ArrayChange, Changes, Dead, Pieces
from tensorstash.versions.commit import MOST, Commit
from tensorstash.versions.container import Kind, pack, unpack
from tensorstash.versions.ids import Reference, commit_id, new_session
from tensorstash.versions.log import LOG_PAGES, Log, Summary
from tensorstash.versions.refs import NONE, Refs
from tensorstash.versions.table import ChunkTable
from tensorstash.versions.tree import Tree
from tests.versions.pages import REPO, Pages

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SESSIONS = [new_session() for _ in range(3)]

references = st.builds(
    Reference, st.sampled_from(SESSIONS), st.integers(0, 10_000), st.integers(0, 1 << 40)
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 60), 1 << 60), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)
summaries = st.builds(
    Summary,
    st.builds(commit_id, st.sampled_from(SESSIONS), st.integers(1, 12)),
    st.integers(0, 1 << 40),
    st.lists(st.builds(commit_id, st.sampled_from(SESSIONS)), max_size=3).map(tuple),
    st.datetimes(
        datetime(1900, 1, 1),
        datetime(2200, 1, 1),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))]),
    ),
    st.text(max_size=20),
    st.text(max_size=50),
    st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
positions = st.lists(st.integers(0, 63), unique=True).map(lambda p: np.array(sorted(p), np.uint16))
array_changes = st.builds(
    ArrayChange,
    st.sampled_from([(8, 8), (64, 1), (2, 2)]),
    st.dictionaries(
        st.tuples(st.integers(0, (1 << 62) - 1), st.integers(0, 9)),
        positions.map(lambda p: p[p < 4]),
        max_size=5,
    ),
)
all_changes = st.builds(
    Changes,
    st.dictionaries(st.text(max_size=9), st.sampled_from(("created", "changed", "deleted"))),
    st.dictionaries(st.text(max_size=9), array_changes, max_size=4),
)
tables = st.builds(
    lambda counts, root: ChunkTable(ChunkTable.empty(counts).blocks, root, 5, 500),
    st.lists(st.integers(0, 100), max_size=3),
    references,
)
all_dead = st.builds(
    Dead,
    st.lists(references).map(Refs.listed),
    st.lists(references).map(Refs.listed),
    st.lists(tables, max_size=4),
)


def summary(number: int, **given: object) -> Summary:
    time = BEGAN + timedelta(minutes=number)
    return replace(Summary(new_session(), number, (), time, "Ada", f"step {number}"), **given)  # type: ignore[arg-type]


def as_plain(changes: Changes) -> object:
    arrays = {
        path: (change.block, {page: each.tolist() for page, each in change.pages.items()})
        for path, change in changes.arrays.items()
        if change.pages
    }
    return dict(changes.documents), arrays


def of_dead(pieces: Iterator[Dead]) -> tuple[list[Reference], list[Reference], list[bytes]]:
    out: tuple[list[Reference], list[Reference], list[bytes]] = ([], [], [])
    for piece in pieces:
        out[0].extend(piece.chunks)
        out[1].extend(piece.pages)
        out[2].extend(table.encode() for table in piece.tables)
    return out


@given(summaries, all_changes, all_dead, st.lists(summaries, max_size=3))
def test_a_commit_comes_back(
    shown: Summary, changes: Changes, dead: Dead, ancestors: list[Summary]
) -> None:
    pages = Pages()
    new = pages.session()
    log = Log()
    for each in ancestors:
        log = log.after(each, new)
    tree = Tree().apply({"a": b"1", "zarr.json": b"{}"}, pages.load, new).tree
    commit = Commit.make(shown, tree, log, changes, dead, new)
    pages.keep(new)
    read = Commit.unpack(commit.pack(REPO), REPO, shown.id)
    assert read.summary == shown
    assert read.summary.time.tzinfo is UTC
    assert read.tree.get(["a", "zarr.json"], pages.load) == {"a": b"1", "zarr.json": b"{}"}
    assert as_plain(read.read_changes(pages.load)) == as_plain(changes)
    found = of_dead(read.read_dead(pages.load))
    expected = list(dead.chunks), list(dead.pages), [table.encode() for table in dead.tables]
    assert [sorted(found[0]), sorted(found[1]), found[2]] == [
        sorted(expected[0]),
        sorted(expected[1]),
        expected[2],
    ]
    assert list(read.log.ancestors(pages.load)) == ancestors[::-1]


@given(all_changes, all_dead)
def test_large_changes_are_cut_into_pieces_that_can_each_be_read(
    changes: Changes, dead: Dead
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes_module, "_PIECE", 10)
        patch.setattr(changes_module, "_REFS", 3)
        pages = Pages()
        new = pages.session()
        kept = Pieces.of(CHANGES, changes.pieces(), new), Pieces.of(DEAD, dead.pieces(), new)
        pages.keep(new)
        read = [
            Pieces.parse(each.form, each.encode(), "commit/x").read(pages.load, "commit/x")
            for each in kept
        ]
        assert as_plain(Changes.joined(read[0])) == as_plain(changes)  # type: ignore[arg-type]
        found = of_dead(read[1])  # type: ignore[arg-type]
        assert sorted(found[0]) == sorted(dead.chunks)
        assert len(kept[1].pages) != 1


def test_small_changes_lie_in_the_commit_and_large_ones_in_pages() -> None:
    pages = Pages()
    new = pages.session()
    one = Changes(
        {"u/zarr.json": "changed"}, {"u/": ArrayChange((64,), {(3,): np.array([5], np.uint16)})}
    )
    gone = Refs.listed([Reference(SESSIONS[0], 1, 2), Reference(SESSIONS[1], 3, 4)])
    dead = Dead(gone, gone, [ChunkTable.empty((3,))])
    Commit.make(summary(0), Tree(), Log(), one, dead, new)
    assert not new.next
    rng = np.random.default_rng(0)
    many = {
        (int(page),): np.sort(rng.choice(64, 30, False)).astype(np.uint16) for page in range(2000)
    }
    commit = Commit.make(
        summary(0), Tree(), Log(), Changes({}, {"u/": ArrayChange((64,), many)}), Dead(), new
    )
    assert new.next == 1
    assert len(commit.pack(REPO)) < 1000


def test_pages_that_changed_whole_take_no_memory_each() -> None:
    """A few bytes claim 4096 positions: as many bytes as they please to."""
    every = np.arange(4096, dtype=np.uint16)
    change = ArrayChange((4096,), {(page,): every for page in range(5_000)})
    (raw,) = Changes({}, {"u/": change}).pieces()
    assert len(raw) < 50_000
    tracemalloc.start()
    try:
        read = CHANGES.parse(raw, "commit/x")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert read.arrays["u/"].pages[4_999,].tolist() == every.tolist()


def test_keys_that_are_no_text_are_refused() -> None:
    for wrong in (
        Changes({"\ud800": "created"}),
        Changes({}, {"\ud800": ArrayChange((1,), {(0,): np.zeros(1, np.uint16)})}),
    ):
        with pytest.raises(errors.Invalid, match="spelled in UTF-8"):
            list(wrong.pieces())


def test_a_million_dead_chunks_take_few_bytes() -> None:
    pages = Pages()
    new = pages.session()
    rng = np.random.default_rng(0)
    refs = Refs.of(
        new_session(), rng.permutation(1_000_000), rng.integers(50_000, 100_000, 1_000_000)
    )
    commit = Commit.make(summary(0), Tree(), Log(), Changes(), Dead(refs), new)
    assert sum(len(data) for _, data in new.stored) < 2.5e6
    pages.keep(new)
    read = list(commit.read_dead(pages.load))
    assert sum(len(each.chunks) for each in read) == 1_000_000
    assert len(commit.pack(REPO)) < 2000


def test_a_commit_that_is_another_one_or_of_a_newer_version_is_told() -> None:
    shown = summary(3)
    data = Commit.make(shown, Tree(), Log(), Changes(), Dead(), Pages().session()).pack(REPO)
    other = new_session()
    with pytest.raises(errors.Corrupt, match=f"commit/{other} is commit {shown.id}"):
        Commit.unpack(data, REPO, other)
    with pytest.raises(errors.Conflict, match="made anew"):
        Commit.unpack(data, bytes(16), shown.id)
    raw = unpack(data, Kind.COMMIT, REPO, "x", MOST)
    assert raw[0] == 5

    def with_section(number: int) -> bytes:
        return pack(Kind.COMMIT, REPO, b"\6" + raw[1:] + bytes((number, 1, 0)), MOST)

    assert Commit.unpack(with_section(128), REPO, shown.id).summary == shown
    with pytest.raises(errors.Unsupported, match=r"section 6.*newer tensorstash"):
        Commit.unpack(with_section(6), REPO, shown.id)
    with pytest.raises(errors.Corrupt, match="section 5 twice"):
        Commit.unpack(with_section(5), REPO, shown.id)


def test_every_damage_of_a_commit_is_noticed() -> None:
    shown = summary(3)
    change = Changes(
        {"u/zarr.json": "changed"}, {"u/": ArrayChange((64,), {(3,): np.array([5], np.uint16)})}
    )
    log = Log().after(summary(2), Pages().session())
    tree = Tree().apply({"a": b"1"}, Pages().load, Pages().session()).tree
    data = Commit.make(shown, tree, log, change, Dead(), Pages().session()).pack(REPO)
    for size in range(len(data)):
        with pytest.raises(errors.Corrupt, match=shown.id):
            Commit.unpack(data[:size], REPO, shown.id)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(errors.Corrupt, match=shown.id):
            Commit.unpack(damaged, REPO, shown.id)


def test_damage_behind_a_right_checksum_is_corrupt_or_another_commit() -> None:
    shown = summary(3)
    change = Changes(
        {"u/zarr.json": "changed"}, {"u/": ArrayChange((64,), {(3,): np.array([5], np.uint16)})}
    )
    log = Log().after(summary(2), Pages().session())
    dead = Dead(Refs.listed([Reference(SESSIONS[0], 1, 2)]), NONE, [ChunkTable.empty((3, 4))])
    data = Commit.make(shown, Tree(), log, change, dead, Pages().session()).pack(REPO)
    raw = unpack(data, Kind.COMMIT, REPO, "x", MOST)
    cuts = [raw[:size] for size in range(len(raw))]
    flips = []
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        flips.append(bytes(damaged))
    for changed in cuts + flips:
        with suppress(errors.Corrupt, errors.Unsupported):
            commit = Commit.unpack(pack(Kind.COMMIT, REPO, changed, MOST), REPO, shown.id)
            assert changed in flips
            commit.read_changes(Pages().load)
            list(commit.read_dead(Pages().load))
            list(commit.log.ancestors(Pages().load))


@given(all_changes, all_dead)
def test_every_truncation_of_changes_is_noticed(changes: Changes, dead: Dead) -> None:
    for form, pieces in ((CHANGES, changes.pieces()), (DEAD, dead.pieces())):
        for raw in pieces:
            for size in range(len(raw)):
                with pytest.raises(errors.Corrupt, match="commit/x"):
                    form.parse(raw[:size], "commit/x")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_readers(raw: bytes) -> None:
    for parse in (CHANGES.parse, DEAD.parse, LOG_PAGES.parse, Log.parse):
        with suppress(errors.Corrupt, errors.Unsupported):
            parse(raw, "commit/x")
    for form in (CHANGES, DEAD):
        with suppress(errors.Corrupt):
            Pieces.parse(form, raw, "commit/x")  # type: ignore[arg-type]


@given(json_values)
def test_no_json_breaks_the_readers_of_a_log(value: object) -> None:
    shown = summary(1).document()
    for key in shown:
        with suppress(errors.Corrupt):
            Summary.read({**shown, key: value}, "commit/x")
    for text in (
        {"rows": value},
        {"rows": [value]},
        {"recent": value, "levels": value},
        {"recent": [], "levels": [value]},
        {"recent": [], "levels": [[value]]},
    ):
        with suppress(errors.Corrupt):
            Log.parse(log_module.as_text(text), "commit/x")
        with suppress(errors.Corrupt):
            LOG_PAGES.parse(log_module.as_text(text), "commit/x")


def test_what_no_commit_can_hold_is_refused() -> None:
    def make(shown: Summary) -> None:
        Commit.make(shown, Tree(), Log(), Changes(), Dead(), Pages().session())

    make(summary(0, message="x" * 60_000))
    with pytest.raises(errors.Invalid, match="store them in an array"):
        make(summary(0, message="x" * 70_000))
    with pytest.raises(errors.Invalid, match="time zone"):
        make(summary(0, time=datetime(2026, 1, 1)))
    with pytest.raises(errors.Invalid, match=r"metadata\.n"):
        make(summary(0, metadata={"n": {1}}))
    make(summary(0, metadata={"n": np.float32(1)}))
    with pytest.raises(errors.Invalid, match="digits"):
        make(summary(0, metadata={"n": 10**5000}))
    with pytest.raises(errors.Invalid, match="a commit cannot hold this"):
        make(summary(0, time=datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))))
    for number in (-1, 1 << 53):
        with pytest.raises(errors.Invalid, match="number"):
            make(replace(summary(0), number=number))
    with pytest.raises(errors.Invalid, match="64 parents"):
        make(summary(0, parents=(new_session(),) * 65))


@pytest.mark.parametrize("depth", [100, *range(494, 502)])
def test_what_one_commit_can_hold_those_after_it_can_show(depth: int) -> None:
    metadata: dict[str, object] = {}
    for _ in range(depth):
        metadata = {"a": metadata}
    shown, pages = summary(0, metadata=metadata), Pages()
    new = pages.session()
    try:
        data = Commit.make(shown, Tree(), Log(), Changes(), Dead(), new).pack(REPO)
    except errors.Invalid:
        assert depth > 490
        return
    assert Commit.unpack(data, REPO, shown.id).summary == shown
    log = Log.parse(Log().after(shown, new).encode(), "commit/x")
    for _ in range(100):
        log = Log.parse(log.after(summary(1), new).encode(), "commit/x")
    pages.keep(new)
    assert [*log.ancestors(pages.load)][-1] == shown


def history(count: int, pages: Pages, **given: object) -> tuple[Log, list[Summary]]:
    log = Log()
    made = []
    for number in range(count):
        new = pages.session()
        made.append(summary(number, **given))
        log = Log.parse(log.after(made[-1], new).encode(), "commit/x")
        pages.keep(new)
    pages.forget()
    return log, made


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 79, 80, 81, 200, 2000])
def test_the_history_is_read_newest_first(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "COMMITS", 4)
    monkeypatch.setattr(log_module, "PAGES", 3)
    pages = Pages()
    log, made = history(count, pages)
    assert list(log.ancestors(pages.load)) == made[::-1]
    listed = set(pages.read)
    assert len(listed) == len(pages.read) == len(pages.objects)
    assert set(log.pages(pages.load)) == listed
    for number in (*range(0, count, 1 + count // 30), count - 1, count, -1):
        pages.forget()
        found = log.numbered(number, pages.load)
        assert found == (made[number] if 0 <= number < count else None)
        assert len(pages.read) <= 8
        at = BEGAN + timedelta(minutes=number, seconds=30)
        assert log.at(at, pages.load) == (
            made[min(number, count - 1)] if count and number >= 0 else None
        )
        if found:
            assert log.at(found.time, pages.load) == found


def test_a_long_history_costs_a_page_for_64_commits_and_stays_small() -> None:
    pages = Pages()
    log, made = history(1500, pages)
    assert sum(1 for _ in log.ancestors(pages.load)) == len(made)
    assert len(pages.read) <= len(made) / 64
    assert len(log.encode()) < 20_000


def test_long_messages_do_not_make_commits_large() -> None:
    pages = Pages()
    log, made = history(50, pages, message="x" * 9_000)
    assert len(log.encode()) < 20_000
    assert list(log.ancestors(pages.load)) == made[::-1]


def test_clocks_that_go_back_do_not_hide_commits() -> None:
    """The newest one that is old enough, whatever the order of times."""
    pages = Pages()
    log = Log()
    made = []
    for number in range(200):
        made.append(summary(number, time=BEGAN + timedelta(hours=number * 37 % 50)))
        new = pages.session()
        log = log.after(made[-1], new)
        pages.keep(new)
    for hours in range(-1, 51):
        time = BEGAN + timedelta(hours=hours)
        expected = [each for each in made if each.time <= time]
        assert log.at(time, pages.load) == (expected[-1] if expected else None)


def test_a_page_of_a_log_that_is_below_itself_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "COMMITS", 2)
    monkeypatch.setattr(log_module, "PAGES", 2)
    pages = Pages()
    log, _ = history(16, pages)
    (high,) = (stretch for level in log.levels for stretch in level)
    for levels in (((), (high,)), ((high,),), ((), (), (), (), (), (high,))):
        with pytest.raises(errors.Corrupt, match="page of level"):
            list(Log((), levels).ancestors(pages.load))
    with pytest.raises(errors.Corrupt, match="not one of 7 to 8"):
        list(Log((), (*log.levels[:-1], (replace(high, first=7, last=8),))).ancestors(pages.load))
