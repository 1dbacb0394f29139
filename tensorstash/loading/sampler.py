"""The epochs of a source, divided into batches and among ranks: all of a loader but the reading."""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import numpy as np

from ..coerce import parse_bytes, parse_whole
from ..errors import Invalid, counted, short
from .dataloader_worker import check_shared_out
from .order import BlockShuffle, Exact, InOrder, Order
from .permutation import key_of
from .quality import evenness, read_amplification
from .ranks import EpochPlan, PoolBudget, RankBatches, mean_bytes
from .source import Blocks, Source, wrapped

Shuffle: TypeAlias = bool | Literal["exact"]
_Function = TypeVar("_Function", bound=Callable[..., Any])
Kind: TypeAlias = Literal["in order", "exact", "pooled"]

_AHEAD = 64  # slots for blocks on their way; memory that is not read into costs none
_LOOKED_AT = 1 << 16  # block bounds and rows that tell a view from another

MOST_LANES = 1 << 16
"""Lanes that there may be: their numbers have 16 bits."""

RULE = 2
"""The rule by which a state names an order: another one whenever a state of before would name
another order. States without one are of rule 1, by which ragged rows went by what was stored of
them."""

_KINDS = {"order": str, "data": str}
_POOLED = {"lanes", "pool"}
_OPTIONAL = _POOLED | {"extent", "rule"}
_ADVICE = "resume with what it was saved with, or begin an epoch with set_epoch()"


@dataclass(frozen=True)
class State:
    """Rows of the epoch that were yielded, by all ranks together, and all that the order of the
    others depends on: nothing of ranks, batches, threads or workers.

    ``data`` tells the source from others; ``lanes`` and ``pool`` are 0 where the order has none.
    ``extent``: of a source whose rows are made of others, as windows are, how many those were.
    """

    order: str
    seed: int
    epoch: int
    position: int
    rows: int
    data: str
    lanes: int = 0
    pool: int = 0
    rule: int = RULE
    extent: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As a dict of numbers and short strings, under 250 bytes of JSON."""
        absent = set() if self.pool else set(_POOLED)
        absent |= set() if self.extent else {"extent"}
        return {name: value for name, value in asdict(self).items() if name not in absent}

    @classmethod
    def of(cls, given: Any) -> State:
        """The state in a dict; :class:`~tensorstash.errors.Invalid` for anything else."""
        if not isinstance(given, Mapping):
            raise Invalid(f"a state is a dict from state_dict(), not {short(given)}")
        fields = set(cls.__dataclass_fields__)
        if unknown := set(given) - fields:
            raise Invalid(f"a state has no {_listed(unknown)}: pass what state_dict() returned")
        if missing := fields - _OPTIONAL - set(given):
            raise Invalid(f"the state lacks {_listed(missing)}: pass what state_dict() returned")
        for name, value in given.items():
            kind = _KINDS.get(name, int)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise Invalid(f"{name!r} of a state is {kind.__name__}, not {short(value)}")
            if isinstance(value, int) and value < 0 and name != "seed":
                raise Invalid(f"{name!r} of a state cannot be {value}")
        state = cls(**{"rule": 1, **given})
        if state.rule != RULE:
            raise Invalid(
                f"the state is of rule {state.rule} for the order of an epoch, and this release "
                f"has rule {RULE}, by which other rows may be left: begin the epoch again with "
                f"set_epoch({state.epoch}), or resume with the release that saved the state"
            )
        if state.order == "pooled" and not (0 < state.lanes <= MOST_LANES and state.pool):
            raise Invalid(
                f"the state is of {state.lanes} lanes and a pool of {counted(state.pool, 'block')}"
            )
        if state.position > state.rows:
            raise Invalid(f"the state is at row {state.position} of {state.rows}")
        return state

    def check(self, order: str, rows: int, data: str) -> None:
        """Raise :class:`~tensorstash.errors.Invalid` unless it is of that order and data."""
        if self.order != order:
            raise Invalid(
                f"the state is of order {self.order!r}, not {order!r}: make the loader with the "
                "shuffle it was saved with"
            )
        if self.rows != rows:
            added = "make it of the rows there were, as records.where(slice(0, n)), or "
            raise Invalid(
                f"the state is of {counted(self.rows, 'row')}, and there are {rows}: "
                f"{added if rows > self.rows else ''}{_ADVICE}"
            )
        if self.data != data:
            raise Invalid(f"the state is of other data ({self.data}, not {data}): {_ADVICE}")


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(map(short, names)))


@dataclass
class EpochPosition:
    """How far an epoch is that was begun at ``state``, and what was read for it. ``torn``: in the
    midst of a batch of several ranks, whose rows are no run of positions. ``over``: nothing more
    comes of it."""

    state: State
    position: int
    blocks_read: int = 0
    torn: bool = False
    over: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has had and has, from where it was begun."""
        return self.state.rows - self.state.position


@dataclass
class _Loaded:
    """A state that was loaded, and what was said and asked since: whether its epoch was ``named``,
    so that it is begun even if nothing is left of it, and whether it was ``claimed``."""

    state: State
    named: bool = False
    claimed: bool = False

    def passed(self, rest: bool) -> bool:
        """Whether nothing is left of it, so that the epoch after it is next."""
        return self.state.position >= self.state.rows and not (self.named or rest)


class EpochOptions(TypedDict, total=False):
    """What all loaders and samplers take, and hand on to :class:`EpochSampler`."""

    shuffle: Shuffle
    seed: int
    rank: int | None
    world_size: int | None
    drop_last: bool
    lanes: int
    pool: int | None
    pool_bytes: int | str


_TORCHS = {
    "collate_fn": "give transform=, which gets whole batches",
    "num_workers": "a loader reads with threads=; give its sampler to a DataLoader for workers",
    "sampler": "give a view of the rows, by where() or split()",
}
"""What torch's ``DataLoader`` takes, and what to do here."""


def check_options(options: Mapping[str, Any], of: object) -> None:
    """The error that Python raises where an argument is not known, in the name of what is made."""
    for name in options.keys() - EpochOptions.__annotations__.keys():
        hint = f"; {_TORCHS[name]}" if name in _TORCHS else ""
        raise TypeError(f"{type(of).__name__}() got an unexpected keyword argument {name!r}{hint}")


def shows_epoch_options(**defaults: Any) -> Callable[[_Function], _Function]:
    """Has the signature of a function with ``**options: Unpack[EpochOptions]`` show each of them,
    with its default in :class:`EpochSampler` or the one given here."""

    def decorate(function: _Function) -> _Function:
        known = inspect.signature(EpochSampler.__init__).parameters
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        options = [
            known[name].replace(default=defaults.get(name, known[name].default))
            for name in EpochOptions.__annotations__
        ]
        first = [p for p in own if p.kind != p.KEYWORD_ONLY]
        rest = [p for p in own if p.kind == p.KEYWORD_ONLY]
        shown = signature.replace(parameters=[*first, *options, *rest])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate


class EpochSampler:
    """Epochs of which each has every row of a source once, in an order that depends on ``seed``
    and the epoch's number alone, and which are resumed exactly from a state of under 250 bytes
    with any number of ranks, batch size and threads.

    An epoch is begun by :meth:`begin`: the next one, the one that :meth:`set_epoch` named, or the
    rest of one that was loaded. What was begun and not finished is over when another is begun.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int = 1,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        lanes: int = 64,
        pool: int | None = None,
        pool_bytes: int | str = "256MiB",
    ) -> None:
        """An epoch sampler, at the beginning of epoch 0.

        Args:
            source: a source, or an object that has the members of one.
            batch_size: rows of a batch, for each rank.
            shuffle: ``False``: row after row. ``True``: each block of rows is read once, and the
                order is as even as a pool of ``pool`` blocks allows. ``"exact"``: a true shuffle,
                which reads a block again for every batch that has a row of it, unless all of them
                fit into ``pool_bytes``.
            seed: with the epoch's number, all that a shuffle depends on.
            rank: which part of each global batch is this process', from 0 on; 0 if left out.
            world_size: how many ranks there are; 1 if left out.
            drop_last: leave out what is left at the end, rather than fill it up with the epoch's
                first rows until ranks can divide it.
            lanes: blocks that the rows of a batch are dealt from at a time, at most.
            pool: blocks that a shuffle draws from, of all ranks together; if left out, four for
                each row of a global batch, as far as ``pool_bytes`` allow.
            pool_bytes: what a rank may hold of decoded blocks: bytes, or ``"256MiB"``.

        Raises:
            Invalid: an option is of the wrong kind or too small, or ``source`` has no rows to load.
        """
        self.source = wrapped(source)
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.rank = 0 if rank is None else whole(rank, "rank", 0)
        self.world_size = 1 if world_size is None else whole(world_size, "world_size", 1)
        if self.rank >= self.world_size:
            raise Invalid(
                f"rank {self.rank} of {self.world_size}: ranks are counted from 0 and are fewer "
                "than world_size"
            )
        self.ranks = RankBatches(self.batch_size, self.rank, self.world_size, bool(drop_last))
        self._budget = PoolBudget(
            parse_whole(lanes, "lanes is", 1, MOST_LANES),
            None if pool is None else whole(pool, "pool", 1),
            parse_bytes(pool_bytes),
        )
        self._kind = _kind(shuffle)
        self._seed = parse_whole(seed, "seed is")
        self.position: EpochPosition | None = None
        """Of the epoch begun last."""
        self._named: State | None = None
        self._loaded: _Loaded | None = None
        self._warned = 0

    def __len__(self) -> int:
        """Batches of the epoch that is next, for this rank as for every other: after
        :meth:`load_state_dict` those that are left of it. While one is under way, of that one."""
        return self.ranks.batches(self.rows(over=False))

    def __repr__(self) -> str:
        return self.described(type(self).__name__)

    def described(self, name: str) -> str:
        """What is printed of this, or of what has it, by the name of its class."""
        ranks = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        order = {"pooled": "shuffled", "exact": "shuffled exactly"}.get(self._kind)
        batches = f"batches of {self.batch_size}, {order or 'in order'}{ranks}"
        return f"<tensorstash.{name} {batches}, of {self.source!r}>"

    @property
    def dropped(self) -> int:
        """Rows that the epoch leaves out: what is left at its end, with ``drop_last``. Of the
        epoch begun last or, where one was loaded or named since, of what is left of that."""
        return self.ranks.dropped(self.rows(over=True))

    @property
    def padded(self) -> int:
        """Rows that come a second time at the epoch's end, that all ranks have as many; of the
        same epoch as :attr:`dropped`."""
        return self.ranks.padded(self.rows(over=True))

    # -- which epoch is next, and where in it ---------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that iterating will begin or go on with, where that was said, else the one
        begun last."""
        coming = self._coming
        if coming is not None:
            return coming.epoch
        return 0 if self.position is None else self.position.state.epoch

    def set_epoch(self, epoch: int) -> None:
        """Iterating next begins this epoch; where :meth:`load_state_dict` named the same one, it
        goes on with it."""
        epoch = whole(epoch, "an epoch", 0)
        if self._loaded is not None and self._loaded.state.epoch == epoch:
            self._loaded.named = True
        else:
            self._named, self._loaded = self._fresh(epoch), None

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is that was begun last: numbers and short strings, under 250 bytes of
        JSON. Rows that were read ahead and not yielded are not counted."""
        return self._state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterating next yields what is left of the epoch that ``state`` tells of, each row once,
        whatever the number of ranks, the batch size and the threads were and are. After the
        state of an epoch's end it begins the next, unless :meth:`set_epoch` names that one. Rows
        that were added since the epoch began come in the next one, where the source is records
        (all of them) or arrays; of windows, patches and mixtures take those of the first rows.

        :class:`~tensorstash.errors.Invalid` for a state of other rows or another ``shuffle``.
        """
        found = State.of(state)
        self._check(found)
        self._seed = found.seed
        self._loaded, self._named = _Loaded(found), None

    def claim(self) -> bool:
        """Whether a state was loaded and this was not asked since."""
        if self._loaded is None or self._loaded.claimed:
            return False
        self._loaded.claimed = True
        return True

    def begin(self, level: int, rest: bool = False) -> EpochPosition:
        """Begin the epoch that is next; ``rest``: with the rest of one that was loaded even if
        nothing is left of it. ``level``: how far up the stack the loop is, for a warning."""
        check_shared_out(self.rank, self.world_size)
        self._warn(self._coming_rows(rest), level + 1)
        loaded, last = self._loaded, self.position
        if loaded is not None and not loaded.passed(rest):
            state = loaded.state
            self._check(state)  # rows may have come since
        elif loaded is not None:
            state = self._fresh(loaded.state.epoch + 1)
        elif self._named is not None:
            state = self._fresh(self._named.epoch)
        else:
            state = self._fresh(0 if last is None else last.state.epoch + 1)
        self._named = self._loaded = None
        self.position = EpochPosition(state, state.position)
        return self.position

    def rows(self, over: bool) -> int:
        """How many rows the epoch under way has, while it is not over, else the one that will be
        begun next; ``over``: the one begun last counts until another is loaded, named or begun."""
        now = self.position
        if self._coming is not None or now is None or (now.over and not over):
            return self._coming_rows()
        return now.rows

    @property
    def _coming(self) -> State | None:
        """What will be begun, where that was said."""
        return self._named if self._loaded is None else self._loaded.state

    @property
    def _state(self) -> State:
        """What will be begun, where that was said; else how far it is."""
        coming, now = self._coming, self.position
        if coming is not None:
            return coming
        if now is None:
            return self._fresh(0)
        if now.torn:
            raise Invalid(
                "of several ranks there is a state only between batches: give the sampler the "
                "batch_size of its loader"
            )
        return replace(now.state, position=now.position)

    def _coming_rows(self, rest: bool = False) -> int:
        """How many rows :meth:`begin` will begin with."""
        loaded = self._loaded
        if loaded is None or loaded.passed(rest):
            return len(self.source)
        return loaded.state.rows - loaded.state.position

    def _fresh(self, epoch: int) -> State:
        """The state of an epoch that begins."""
        source = self.source.at_epoch(epoch)
        lanes, pool = self._budget.pooled(source, self.ranks) if self._kind == "pooled" else (0, 0)
        return State(
            self._kind,
            self._seed,
            epoch,
            0,
            len(source),
            fingerprint(source),
            lanes,
            pool,
            extent=source.extent,
        )

    def _check(self, state: State) -> None:
        """Raise :class:`~tensorstash.errors.Invalid` unless ``state`` is of this source and kind
        of order."""
        source = self._source_of(state)
        state.check(self._kind, len(source), fingerprint(source))

    def _source_of(self, state: State) -> Source:
        """The source as it is in the epoch of a state: where rows were added since it was begun,
        and the source can tell, the rows there were."""
        source = self.source.at_epoch(state.epoch)
        extent = source.extent
        have, had = (extent, state.extent) if extent else (len(source), state.rows)
        if not source.can_shrink or have <= had or (extent and not had):
            return source
        return source.at_rows(had)

    def _warn(self, rows: int, level: int) -> None:
        """That rows come twice, once for each number of them."""
        padded = self.ranks.padded(rows)
        if not padded or padded == self._warned:
            return
        self._warned = padded
        what = "an epoch" if rows == len(self.source) else "the rest of the epoch"
        warnings.warn(
            f"{padded} of {counted(rows, 'row')} {'comes' if padded == 1 else 'come'} twice in "
            f"{what}, that {counted(self.world_size, 'rank has', 'ranks have')} as many; "
            f"drop_last=True drops {rows % self.ranks.whole} instead",
            stacklevel=level + 1,
        )

    # -- its order ------------------------------------------------------------------------------

    def plan(self, state: State) -> EpochPlan:
        """What this rank reads of the epoch that ``state`` names, and how much it holds."""
        source = self._source_of(state)
        order: Order = source.order(
            _in_order if self._kind == "in order" else partial(_shuffled, state)
        )
        slots = self._slots(source, state, order)
        return EpochPlan(source, order, self.ranks, slots, self._budget.prefetch_blocks(source))

    def _slots(self, source: Source, state: State, order: Order) -> int:
        blocks = len(order.blocks)
        if self._kind == "exact":
            return blocks if self._budget.fits(source) else 0
        if self._kind == "in order" and source.raw:
            return 0  # nothing is decoded, so nothing is decoded twice
        held = 2 * (state.pool + state.lanes) // self.ranks.world
        in_batch = self.ranks.whole * blocks // max(1, order.count)
        return max(1, min(blocks, held + in_batch + _AHEAD))

    def quality(self, room: int | None = None) -> dict[str, Any]:
        """How even the order is, and what it costs to read, found without reading anything.
        ``room``: bytes that a loader's memory is limited to, which then reads fewer blocks at a
        time, and each batch by itself where it has none for those that rows are drawn from.

        ``inflation`` is the spread of batch means over that of a true shuffle where the rows of
        a block are all alike (1.0: as even); ``blocks_per_batch`` how many blocks a global batch
        has rows of, on average and at least, beside a true shuffle's; ``read_amplification`` how
        many chunks this rank decodes over its part of them all, estimated from how rows lie: of
        ragged rows as if all had the mean length, end to end as they were added. ``pool`` is in
        blocks, and ``cut_by_budget`` where ``pool_bytes`` made it smaller than ``pool_wanted``.
        """
        state = self._state
        plan = self.plan(state)
        order = plan.order
        if room is not None and plan.slots:
            drawn = state.pool // self.ranks.world * mean_bytes(plan.source, order.blocks)
            plan = plan._replace(slots=0 if drawn > room else plan.slots)
        found: dict[str, Any] = {"order": state.order, "blocks": len(order.blocks)}
        if state.pool:
            wanted = self._budget.wanted(plan.source.blocks, self.ranks)
            found |= {"lanes": state.lanes, "pool": state.pool, "pool_wanted": wanted}
            found["cut_by_budget"] = state.pool < wanted
        found |= evenness(order, self.ranks)
        found["read_amplification"] = round(
            read_amplification(plan, self._kind == "in order", room is not None), 2
        )
        return found


def _in_order(blocks: Blocks, number: int, part: float) -> Order:
    """The rows of one of several sources, or of the only one, as they are stored."""
    return InOrder(blocks)


def _shuffled(state: State, blocks: Blocks, number: int, part: float) -> Order:
    """The shuffle of one of several sources that make up ``part`` of the rows, or of the only
    one."""
    seed = int(key_of(state.seed, number)[0]) if number else state.seed
    if state.order == "exact":
        return Exact(blocks, seed, state.epoch)
    lanes = max(1, round(state.lanes * part))
    return BlockShuffle(blocks, seed, state.epoch, lanes, max(lanes, round(state.pool * part)))


def fingerprint(source: Source) -> str:
    """The source's own, and for views of other rows that of its blocks."""
    blocks = source.blocks
    sum_ = zlib.crc32(blocks.bounds[:: 1 + len(blocks.bounds) // _LOOKED_AT].tobytes())
    if blocks.order is not None:
        some = blocks.order[:: 1 + len(blocks.order) // _LOOKED_AT]
        sum_ = zlib.crc32(np.ascontiguousarray(some).tobytes(), sum_)
    return f"{source.fingerprint}-{sum_:08x}"


def _kind(shuffle: Any) -> Kind:
    if shuffle is True or shuffle is False:
        return "pooled" if shuffle else "in order"
    if shuffle == "exact":
        return "exact"
    raise Invalid(f"shuffle is False, True or 'exact', not {short(shuffle)}")


def whole(value: Any, what: str, least: int) -> int:
    """A whole number that arithmetic of positions can take."""
    return parse_whole(value, f"{what} is", least, 1 << 62)
