"""The order of records with ragged rows: nothing in it depends on what rows have now."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.errors import Corrupt, Invalid
from tensorstash.loading.loader import BatchLoader
from tensorstash.loading.sampler import fingerprint
from tensorstash.records import catalog
from tensorstash.sources.arrays import as_source
from tensorstash.sources.mixture import mix
from tensorstash.sources.patches import Patches
from tensorstash.sources.windows import Windows

VIEWS: dict[str, Any] = {
    "all": lambda r, n: r.where(slice(0, n)),
    "slice": lambda r, n: r.where(slice(n // 3, n)),
    "chosen": lambda r, n: r.where(np.arange(n)[::-1]),
    "tokens": lambda r, n: r.where(slice(0, n)).select("t"),
}


def rows_of(ranks: list[Any], **options: Any) -> list[int]:
    """What ranks have between them, each of a handle of its own."""
    feeds: list[BatchLoader[Any]] = [
        BatchLoader(one, 4, rank=k, world_size=len(ranks), shuffle=True, **options)
        for k, one in enumerate(ranks)
    ]
    return [row for feed in feeds for batch in feed for row in batch["id"].tolist()]


def test_ranks_that_opened_before_and_after_rows_were_rewritten() -> None:
    store: dict[str, Any] = {}
    r = stash.create_records(store, {"id": "int64", "t": stash.ragged("int64")})
    r.extend({"id": np.arange(6000), "t": [np.arange(60)] * 6000})
    ranks = [stash.open_records(store)]
    for k in range(20):
        r[k] = {"id": k, "t": np.arange(20_000)}
    ranks.append(stash.open_records(store))
    r["t"][:500] = [np.arange(0)] * 500
    ranks.append(stash.open_records(store))
    seen = rows_of(ranks, pool_bytes="1MiB")
    assert sorted(seen) == list(range(6000))
    assert len({fingerprint(one.source) for one in ranks}) == 1


def test_fields_that_are_added_renamed_or_dropped_take_their_sizes_along() -> None:
    store: dict[str, Any] = {}
    r = stash.create_records(store, {"id": "int64", "t": stash.ragged("int64")})
    r.extend({"id": np.arange(512), "t": [np.arange(500)] * 512})
    size = r.select("t").source.row_bytes
    assert size == 8 * 500 + 16
    r.rename_field("t", "tokens")
    assert r.select("tokens").source.row_bytes == size
    r.add_field("u", stash.ragged("int8"), [np.zeros(3, "int8")] * 512)
    u = r.select("u").source.row_bytes
    r["u"][:] = [np.zeros(900, "int8")] * 512
    again = stash.open_records(store)
    assert again.select("u").source.row_bytes == u == 3 + 16
    r.drop_field("u")
    r.add_field("u", stash.ragged("int8"))
    assert stash.open_records(store).select("u").source.row_bytes == 1024 + 16  # nothing is known


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(0, 60),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 90), st.integers(0, 3000)), min_size=1, max_size=6
    ),
    which=st.sampled_from(sorted(VIEWS)),
)
def test_no_write_changes_the_order_of_rows_that_were_there(
    first: int, steps: list[tuple[bool, int, int]], which: str
) -> None:
    store: dict[str, Any] = {}
    r = stash.create_records(
        store, {"id": "int64", "t": stash.ragged("int64")}, first, rows_per_chunk=16
    )
    rows, known = first, []
    for adds, count, length in steps:
        values = [np.arange(length)] * count
        if adds:
            r.extend({"id": np.arange(count), "t": values})
            rows += count
        else:
            some = np.arange(min(count, rows))
            r.where(some)[:] = {"id": some, "t": values[: len(some)]}
        known.append((rows, view(store, which, rows)))
        for n, before in known:
            after = view(store, which, n)
            assert fingerprint(after.source) == fingerprint(before.source)
            assert after.source.row_bytes == before.source.row_bytes
            for one, other in zip(orders(before), orders(after), strict=True):
                assert np.array_equal(one, other)


def view(store: Any, which: str, rows: int) -> Any:
    return VIEWS[which](stash.open_records(store), rows)


def orders(source: Any) -> list[Any]:
    """The order of two epochs, of a pool that goes by bytes."""
    feed: BatchLoader[Any] = BatchLoader(source, 4, shuffle=True, pool_bytes=4096)
    found = []
    for epoch in (0, 1):
        feed.set_epoch(epoch)
        order = feed.sampler.plan(feed.sampler._state).order
        found.append(order.rows(np.arange(order.count)))
    return found


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_notes_are_few_and_last(counts: list[int]) -> None:
    notes: catalog.RowSizes = ()
    rows, found = 0, {}
    for count in counts:
        notes = catalog.with_row_size(notes, rows, rows + count, 7 * (rows + count) + count)
        rows += count
        found[rows] = catalog.values_per_row(notes, rows)
        assert all(catalog.values_per_row(notes, n) == then for n, then in found.items())
    assert len(notes) <= rows.bit_length()
    assert catalog.values_per_row((), 5) is None


def test_notes_that_are_none_are_refused() -> None:
    for odd in (3, {"t": 3}, {"t": [[1, -2]]}, {"t": [[1, 2.5]]}, {"t": [[4, 1], [2, 1]]}):
        assert catalog.parse_row_sizes(odd) is None
    store: dict[str, Any] = {}
    r = stash.create_records(store, {"t": stash.ragged("int64")})
    r.append({"t": np.arange(5)})
    store["zarr.json"] = store["zarr.json"].replace(b'"sizes"', b'"sizes":{"t":[[2]]},"old"')
    with pytest.raises(Corrupt, match="as sizes of rows"):
        r.refresh()


# -- states after a change ---------------------------------------------------------------------


def begun(source: Any, batch: int = 7) -> tuple[dict[str, Any], list[int]]:
    """The state after three batches, and the rows that are left."""
    feed: BatchLoader[Any] = BatchLoader(source, batch, shuffle=True)
    batches = iter(feed)
    for _ in range(3):
        next(batches)
    state = feed.state_dict()
    return state, [id_ for one in batches for id_ in ids(one)]


def ids(batch: Any) -> list[int]:
    found = batch if isinstance(batch, np.ndarray) else batch["id"]
    flat = np.asarray(found).reshape(len(found), -1)
    told = flat.sum(1) if np.ndim(found) > 2 else flat[:, 0]  # all of a patch
    return told.tolist()  # type: ignore[no-any-return]


def rest(source: Any, state: Any, batch: int = 7) -> list[int]:
    feed: BatchLoader[Any] = BatchLoader(source, batch, shuffle=True)
    feed.load_state_dict(state)
    assert len(feed) == -(-(state["rows"] - state["position"]) // batch)
    found = [id_ for one in feed for id_ in ids(one)]
    assert len(feed) == -(-len(source) // batch)
    after = [id_ for one in feed for id_ in ids(one)]
    assert len(after) == len(source)  # the next epoch has them all
    return found


def test_an_epoch_over_the_rows_that_its_state_counts() -> None:
    store: dict[str, Any] = {}
    r = stash.create_records(store, {"id": "int64", "t": stash.ragged("int32")}, rows_per_chunk=16)
    r.extend({"id": np.arange(300), "t": [np.arange(2000)] * 300})
    state, left = begun(stash.open_records(store))
    known = [(state, left)]
    for count in (1, 17, 700, 3):
        r.extend({"id": np.arange(count), "t": [np.arange(5)] * count})
        for state, left in known:
            assert rest(stash.open_records(store), state) == left
        known.append(begun(stash.open_records(store)))
    # The handle learns of the rows in mid-epoch.
    feed: BatchLoader[Any] = BatchLoader(r, 7, shuffle=True)
    batches = iter(feed)
    seen = ids(next(batches))
    r.extend({"id": np.arange(50), "t": [np.arange(5)] * 50})
    seen += [row for one in batches for row in ids(one)]
    assert len(seen) == feed.state_dict()["rows"] == len(r) - 50
    feed.set_epoch(5)
    r.append({"id": 1, "t": [1]})
    assert sum(len(ids(one)) for one in feed) == len(r)


def test_arrays_that_have_grown() -> None:
    a = stash.save({}, np.arange(200), chunks=(16,))
    b = stash.save({}, np.arange(200)[:, None].repeat(3, 1), chunks=(9, 3), codecs=None)
    cases: list[Any] = [lambda: a, lambda: {"id": a, "b": b}, lambda: b]
    cases.append(lambda: {"id": a[...], "b": b})
    known = [(make, *begun(as_source(make()))) for make in cases]
    a.append(np.arange(33))
    b.append(np.ones((33, 3), "int64"))
    for make, state, left in known:
        assert rest(as_source(make()), state) == left


def test_fields_that_a_view_does_not_show_come_and_go() -> None:
    store: dict[str, Any] = {}
    r = stash.save_records(store, {"id": np.arange(300), "x": np.zeros(300)}, rows_per_chunk=16)

    def views() -> list[Any]:
        now = stash.open_records(store)
        return [
            now.select("id"),
            now.select("id").split({"a": 0.5})["a"],
            now.select("id").windows(4, stride=2),
            now.windows(4, fields="id"),
            mix([now.select("id"), now.select("id").where(slice(0, 100))]),
        ]

    known = [begun(view) for view in views()]
    for change in (
        lambda: r.add_field("note", str),
        lambda: r.add_field("t", stash.ragged("int8"), [np.zeros(9, "int8")] * 300),
        lambda: r.rename_field("x", "y"),
        lambda: r.drop_field("y"),
    ):
        change()
        for view, (state, left) in zip(views(), known, strict=True):
            assert rest(view, state) == left
    r.drop_field("id")
    r.add_field("id", "int32")
    for view, (state, _) in zip(views(), known, strict=True):
        with pytest.raises(Invalid, match="the state is of other data"):
            BatchLoader(view, 7, shuffle=True).load_state_dict(state)


def test_windows_of_rows_that_have_grown() -> None:
    ids, last = np.arange(300), np.arange(300) % 41 == 40
    r = stash.save_records({}, {"id": ids}, rows_per_chunk=16)
    a = stash.save({}, ids, chunks=(16,))
    mask = stash.save({}, last, chunks=(50,))
    ends = stash.save({}, np.flatnonzero(last) + 1, chunks=(3,))
    makes: list[Any] = [
        lambda: r.windows(5, 3),
        lambda: r.where(slice(20, 250)).windows(5, 3),
        lambda: Windows({"id": a}, 5, 5),
        lambda: Windows({"id": a}, 4, 2, boundaries=mask),
        lambda: Windows({"id": a}, 4, boundaries=ends),
        lambda: Windows({"id": a}, 4, boundaries=np.array([7, 100])),
    ]
    known = [(make, *begun(make())) for make in makes]
    for _ in range(2):
        r.extend({"id": np.arange(100)})
        a.append(np.arange(100))
        mask.append(np.arange(100) % 3 == 0)
        ends.append(len(a) - np.array([99, 60, 0]))
        for make, state, left in known:
            assert rest(make(), state) == left


@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"pad": 0, "stride": 3}, {"count": 70}])
@pytest.mark.parametrize("shape", [(4, 3), 5])
def test_patches_of_arrays_that_have_grown(how: Any, shape: Any) -> None:
    values = 1 + np.arange(91 * 211).reshape(91, 211)
    a = stash.save({}, values, chunks=(8, 40))
    b = stash.save({}, values * 2, chunks=(5, 211))
    makes: list[Any] = [
        lambda: Patches({"id": a}, shape, **how),
        lambda: Patches({"id": a, "b": b}, shape, **how),
        lambda: Patches({"id": a.lazy[3:, 1:]}, shape, **how),
    ]
    if shape == 5:
        makes.append(lambda: Patches({"id": a}, 1, axes=0, **how))
    known = [(make, *begun(make())) for make in makes]
    for _ in range(2):
        a.append(np.full((1, 211), -1))
        a.append(np.full((29, 211), -1))
        b.append(np.full((30, 211), -1))
        for make, state, left in known:
            assert rest(make(), state) == left
    a.append(np.zeros((len(a), 2), int), axis=1)
    for make, state, _ in known[:1] + known[2:3]:
        with pytest.raises(Invalid, match="resume with what it was saved with"):
            rest(make(), state)


def test_an_epoch_of_patches_that_began_after_more_were_appended_has_them() -> None:
    a = stash.save({}, np.arange(40), chunks=(8,))
    feed = BatchLoader(Patches(a, 4, count=9), 3, shuffle=True)
    batches = iter(feed)
    next(batches)
    state = feed.state_dict()
    a.append(np.arange(1000))
    again = BatchLoader(Patches(a, 4, count=9), 3, shuffle=True)
    again.load_state_dict(state)
    assert max(int(np.max(batch)) for batch in again) < 40
    assert max(int(np.max(batch)) for batch in again) >= 40


def test_mixtures_take_the_first_rows() -> None:
    r = stash.save_records({}, {"id": np.arange(300)}, rows_per_chunk=16)

    def make(s: Any) -> Any:
        return mix([s, s.where(slice(0, 40))])

    state, left = begun(make(r))
    r.extend({"id": np.arange(100)})
    with pytest.raises(Invalid, match=r"make it of the rows there were, as records"):
        BatchLoader(make(r), 7, shuffle=True).load_state_dict(state)
    assert rest(make(r.where(slice(0, 300))), state) == left
