"""``a == 3`` on a handle: never silently ``False``."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import tensorstash as stash

OPERATORS = [
    operator.eq, operator.ne, operator.lt, operator.ge, operator.add, operator.sub, operator.mul,
    operator.truediv, operator.floordiv, operator.mod, operator.pow, operator.and_, operator.or_,
    operator.matmul, operator.lshift,
]  # fmt: skip
VALUES: list[Any] = [3, 2.5, 1j, True, np.int8(3), np.bool_(1), np.arange(3), [1, 2, 3], "x", b"x"]


def handles() -> list[Any]:
    a = stash.create({}, (3,), "int64")
    r = stash.save_records({}, {"id": np.arange(3), "t": [[1], [2], [3]]})
    return [a, a.lazy[1:], r["id"], r["t"]]


@pytest.mark.parametrize("sign", OPERATORS, ids=lambda sign: sign.__name__)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_operators_with_data_are_refused_with_advice(sign: Any, value: Any) -> None:
    for handle in handles():
        with pytest.raises(TypeError, match=r"read first: a\[\.\.\.\]"):
            sign(handle, value)


def test_a_number_on_the_left() -> None:
    for handle in handles():
        for sign in operator.eq, operator.add, operator.pow, operator.lt:
            with pytest.raises(TypeError, match="read first"):
                sign(3, handle)


def test_handles_are_equal_when_they_are_one() -> None:
    for one, other in zip(handles(), handles(), strict=True):
        assert one == one
        assert one != other
        assert not one == other  # noqa: SIM201
        assert one != None  # noqa: E711
        assert one != object()
        assert {one: 1}[one] == 1
        assert one in [other, one]


def test_numpy_reads_what_it_is_given() -> None:
    a = stash.save({}, np.arange(3))
    assert (np.arange(3) + a).tolist() == [0, 2, 4]
    assert np.equal(a, 1).tolist() == [False, True, False]


def test_a_series_says_how_its_rows_are_compared() -> None:
    r = stash.create_records({}, {"t": stash.ragged("int32"), "s": str, "j": stash.json})
    r.extend({"t": [[1], [2, 3]], "s": ["a", "b"], "j": [1, 2]})
    view = r.where([1, 0])
    for series, advice in (
        (r["t"], "r.lengths('t') < value, or each row, [row < value for row in r['t']]"),
        (r["j"], "[row < value for row in r['j']]"),
        (view["s"], "r['s'][...] < value"),
    ):
        with pytest.raises(TypeError) as caught:
            series < 3  # noqa: B015
        assert str(caught.value).endswith(f"; read first: {advice}")
        assert series == series and series != r
        with pytest.raises(TypeError, match="has no '=='"):
            assert not series == 3  # noqa: SIM201
    assert (r.lengths("t") < 2).tolist() == [True, False]
