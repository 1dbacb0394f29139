"""A holder of a lock whose lease ends while it is stopped: what others stored meanwhile, and were
told is stored, stays; it succeeds wholly, or says Conflict and leaves nothing to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fencing import LAYOUTS, Holder, Op, patient, record_stops, stops
from tests.remote import Remote, on_redis, on_s3

PLACES = ("redis", "cluster", "moto-s3fs", "moto-obstore", "rgw-s3fs", "rgw-obstore")

WHOLE: Op = ("append", 8, 100)
PART: Op = ("append", 3, 200)
ONE: Op = ("append", 1, 300)
FILL: Op = ("append", 5, 0)
GROW: Op = ("resize", 17)
SHRINK: Op = ("resize", 3)
EDGE: Op = ("edge", 777)


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.close()


@pytest.fixture(scope="module", params=PLACES)
def place(request: Any) -> Remote:
    kind, _, client = str(request.param).partition("-")
    if kind == "redis":
        return on_redis(request.getfixturevalue("valkey_server"))
    if kind == "cluster":
        servers = request.getfixturevalue("redis_cluster")
        made = on_redis(servers.nodes[0])
        return made.having(**servers.options)
    return on_s3(request.getfixturevalue("s3" if kind == "moto" else "rgw"), client)


OFTEN: list[tuple[str, Op, list[Op]]] = [
    ("whole", WHOLE, [PART]),
    ("part", PART, [WHOLE]),
    ("part", PART, [GROW]),
    ("part", WHOLE, [("append", 8, 500), SHRINK, GROW]),
    ("part", FILL, [PART, EDGE]),
    ("part", SHRINK, [PART]),
    ("part", GROW, [FILL, ONE]),
    ("shards", PART, [FILL]),
]


@pytest.mark.parametrize("case", range(len(OFTEN)))
def test_a_holder_that_wakes_late_changes_nothing(place: Remote, holder: Holder, case: int) -> None:
    layout, op, others = OFTEN[case]
    assert stops(holder, patient(place), LAYOUTS[layout], op, others) > 4


@pytest.mark.parametrize("other", [5, 0], ids=["rows", "fill"])
def test_so_does_one_that_adds_records(place: Remote, holder: Holder, other: int) -> None:
    op, others = ("extend", 3, 200), [("extend", 2, other)]
    assert record_stops(holder, patient(place), 6, op, others) > 8
