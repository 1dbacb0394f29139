"""Which of several sources each position of a mixture takes from. Pure arithmetic.

Two sources take turns as a line of their slope crosses a grid: of the first ``p`` positions the
first source has its share, rounded. More sources are a binary tree of such pairs. The source at a
position is found in one step a level, and so is the position of a source's number ``j``: nothing
is drawn, so no stretch is off by luck, and nothing is counted, so a mixture resumes anywhere.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..errors import Invalid, short
from ..loading.order import Lanes, Order
from ..loading.permutation import key_of, permute
from ..loading.source import Blocks

Numbers = NDArray[np.int64]

_CLOSE = Fraction(1, 10**9)
_MOST = 1 << 31  # of the sum of weights: products of two such numbers fit into 63 bits
_KEPT = 8  # tables of passes
_LANES = 1 << 16  # more than an order has


class Line(NamedTuple):
    """The part of a pair that takes ``share`` of every ``total`` turns."""

    share: int
    total: int
    phase: int

    @property
    def other(self) -> Line:
        """The part that takes the other turns."""
        return Line(self.total - self.share, self.total, self.total - 1 - self.phase)

    def before(self, turns: Numbers) -> Numbers:
        """How many of the first ``turns`` turns it takes."""
        whole, rest = np.divmod(turns, self.total)
        found: Numbers = whole * self.share + (rest * self.share + self.phase) // self.total
        return found

    def turn(self, numbers: Numbers) -> Numbers:
        """The turn that it takes as its number ``numbers``."""
        whole = (numbers + 1) // self.share  # of Python's integers too, which have no divmod
        rest = numbers + 1 - whole * self.share
        found: Numbers = whole * self.total - (self.phase - rest * self.total) // self.share - 1
        return found


class Pair(NamedTuple):
    """Two sources, or pairs in turn, of which ``one`` takes the turns of ``line``."""

    line: Line
    one: Node
    other: Node


Node: TypeAlias = int | Pair


class WeightedInterleave:
    """Turns of several sources by ``weights``, whole numbers.

    Of the first ``p`` positions source ``k`` has its share of ``p`` to within :attr:`off` ``[k]``,
    and of any other ``p`` in a row to within twice that: of two sources the share rounded down
    or up.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        heap: list[tuple[int, int, Node]] = [(w, k, k) for k, w in enumerate(weights)]
        heapq.heapify(heap)
        while len(heap) > 1:  # the lightest are paired first: heavy ones are near the root
            light, tie, some = heapq.heappop(heap)
            heavy, _, others = heapq.heappop(heap)
            divisor = math.gcd(heavy, light)
            total = (heavy + light) // divisor
            pair = Pair(Line(heavy // divisor, total, total // 2), others, some)
            heapq.heappush(heap, (heavy + light, tie, pair))
        self._tree = heap[0][2]
        self._paths = [path for _, path in sorted(_paths(self._tree))]

    @property
    def off(self) -> list[float]:
        """By how much what each source has given may differ from its share."""
        found = []
        for path in self._paths:
            off = 0.0
            for line in path:
                off = off * line.share / line.total + 0.5
            found.append(off)
        return found

    def counts(self, positions: int) -> list[int]:
        """How often each source comes in the first so many positions."""
        found = []
        for path in self._paths:
            at = np.array([positions], np.int64)
            for line in path:
                at = line.before(at)
            found.append(int(at[0]))
        return found

    def find(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """The source at each position, and which of its own turns this is."""
        source, number = np.empty_like(positions), np.empty_like(positions)
        todo = [(self._tree, np.arange(len(positions)), positions)]
        while todo:
            node, at, turns = todo.pop()
            if isinstance(node, int):
                source[at], number[at] = node, turns
                continue
            before = node.line.before(turns)
            taken = node.line.before(turns + 1) > before
            rest = ~taken
            todo.append((node.one, at[taken], before[taken]))
            todo.append((node.other, at[rest], turns[rest] - before[rest]))
        return source, number

    def position(self, source: int, numbers: Numbers) -> Numbers:
        """Where a source has these of its turns: what :meth:`find` undoes."""
        for line in reversed(self._paths[source]):
            numbers = line.turn(numbers)
        return numbers


def _paths(node: Node) -> list[tuple[int, list[Line]]]:
    """Every source, with the lines from the root to it."""
    if isinstance(node, int):
        return [(node, [])]
    sides = ((node.one, node.line), (node.other, node.line.other))
    return [(k, [line, *path]) for side, line in sides for k, path in _paths(side)]


def parse_weights(weights: Sequence[Any], strict: bool = False) -> list[int]:
    """Weights as whole numbers of the same proportions, as nearly as the sum of them may be
    large; ``strict``: raise where one is off by more than a hundredth of itself."""
    found = []
    for weight in weights:
        try:
            exact = _exact(weight.item() if isinstance(weight, np.generic) else weight)
        except (TypeError, ValueError, OverflowError):
            exact = Fraction(0)
        if exact <= 0:
            raise Invalid(f"a weight must be a number above 0, not {short(weight)}")
        found.append(exact)
    common = math.lcm(*(weight.denominator for weight in found))
    whole = [int(weight * common) for weight in found]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    near = _nearest(whole)
    asked, given = sum(whole), sum(near)
    for weight, share, part in zip(weights, whole, near, strict=True):
        if strict and 100 * abs(part * asked - share * given) > share * given:
            raise Invalid(
                f"the weight {short(weight)} is too small beside the others: of {_MOST:,} rows "
                f"in a row it could have {part}, which is not its share; leave its source out, "
                "or give it more"
            )
    return near


def _nearest(weights: list[int]) -> list[int]:
    """Weights of about the same proportions whose sum is small enough."""
    total, least = sum(weights), min(weights)
    if total < _MOST:
        return weights
    room = _MOST - len(weights)
    kept = least * room // total
    if not kept:
        return [max(1, weight * room // total) for weight in weights]
    # The least weights have most to lose by rounding: the others are measured by it.
    return [(2 * weight * kept + least) // (2 * least) for weight in weights]


def _exact(number: Any) -> Fraction:
    """The number that is meant: 0.1 is a tenth, which no float is."""
    exact = Fraction(number)
    near = exact.limit_denominator(1 << 20)
    if abs(near - exact) <= exact * _CLOSE:
        return near
    return Fraction(repr(number)) if isinstance(number, float) else exact


class RepeatedShuffle:
    """The endless stream of a source's rows: every row once in each pass, those of a block next
    to each other, the blocks of a pass in an order of its own by ``seed``; without one, as they
    are stored."""

    def __init__(self, blocks: Blocks, seed: int | None, which: int) -> None:
        """``which`` tells sources of one seed apart."""
        self._blocks = blocks
        self._seed = seed
        self._which = which
        self.rows_each = int(blocks.bounds[-1])
        self._tables: dict[int, tuple[Numbers, Numbers]] = {}

    def rows(self, numbers: Numbers) -> Numbers:
        """The row at each number of the stream."""
        turn, within = np.divmod(numbers, self.rows_each)
        found = np.empty_like(numbers)
        for one in np.unique(turn).tolist():
            mine = turn == one
            dealt, starts = self._table(one)
            slot = np.searchsorted(starts, within[mine], side="right") - 1
            found[mine] = self._blocks.bounds[dealt[slot]] + within[mine] - starts[slot]
        order = self._blocks.order
        return found if order is None else order[found]

    def bounds(self, start: int, stop: int) -> Numbers:
        """Where blocks meet from number ``start`` to ``stop`` of the stream, both included."""
        each = self.rows_each
        pieces = [
            starts[:-1] + turn * each
            for turn in range(start // each, -(-stop // each))
            for starts in [self._table(turn)[1]]
        ]
        ends = np.array([start, stop], np.int64)
        return np.unique(np.clip(np.concatenate([*pieces, ends]), start, stop))

    def _table(self, turn: int) -> tuple[Numbers, Numbers]:
        """The blocks of a pass in order, and where each begins."""
        found = self._tables.get(turn)
        if found is None:
            count = len(self._blocks)
            dealt = np.arange(count)
            if self._seed is not None:
                dealt = permute(dealt, count, key_of(self._seed, self._which, turn))
            sizes = np.diff(self._blocks.bounds)[dealt]
            found = dealt, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
            kept = [*self._tables.items()][-_KEPT + 1 :]
            self._tables = dict([*kept, (turn, found)])
        return found


class MixedOrder(Order):
    """Positions dealt to sources by a :class:`WeightedInterleave`; the turns of each put in order
    by an order of its own, over the blocks that are the source's."""

    def __init__(
        self, interleave: WeightedInterleave, blocks: Blocks, orders: Sequence[Order]
    ) -> None:
        """``blocks`` are those of ``orders``, one after another."""
        super().__init__(blocks)
        self._interleave = interleave
        self._orders = list(orders)
        counts = [len(order.blocks) for order in orders]
        self._first = np.cumsum([0, *counts[:-1]])

    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.locate`."""
        source, turn = self._interleave.find(positions)
        block, within = np.empty_like(turn), np.empty_like(turn)
        for k in np.unique(source).tolist():
            mine = source == k
            at, within[mine] = self._orders[k].locate(turn[mine])
            block[mine] = at + self._first[k]
        return block, within

    def lanes(self, positions: Numbers) -> Lanes | None:
        """See :meth:`Order.lanes`: those of one source after those of another."""
        source, turn = self._interleave.find(positions)
        found = np.empty(len(positions), np.uint16)
        for k, (order, first) in enumerate(zip(self._orders, self._lane, strict=True)):
            mine = source == k
            lanes = order.lanes(turn[mine])
            if lanes is None:
                return None
            found[mine] = lanes + np.uint16(first)
        return found

    @Cached
    def _lane(self) -> list[int]:
        """The first lane of each source; every lane has a row among a source's first ones."""
        first = [0]
        for order in self._orders:
            lanes = order.lanes(np.arange(min(order.count, _LANES)))
            first.append(first[-1] + (0 if lanes is None else int(lanes.max(initial=0)) + 1))
        return first[:-1]

    def last_use(self) -> Numbers:
        """See :meth:`Order.last_use`."""
        found = []
        for k, order in enumerate(self._orders):
            last = np.maximum(order.last_use(), 1) - 1
            found.append(self._interleave.position(k, last) + 1)
        return np.concatenate(found)


class InterleavedIndex:
    """A mixture's rows source after source, each source's in the order of its turns: what
    ``Blocks.order`` is, found where it is indexed instead of kept."""

    def __init__(self, interleave: WeightedInterleave, counts: Sequence[int]) -> None:
        """``counts``: rows of each source."""
        self._interleave = interleave
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, places: Any) -> Numbers:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        source = np.searchsorted(self._bounds, places, side="right") - 1
        found = np.empty_like(places)
        for k in np.unique(source).tolist():
            mine = source == k
            found[mine] = self._interleave.position(k, places[mine] - self._bounds[k])
        return found  # type: ignore[no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Numbers:
        return self[:].astype(dtype or np.int64, copy=False)
