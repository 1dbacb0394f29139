"""How far an epoch is, in a few numbers: what to save, and what may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import Invalid, counted, short

MOST_LANES = 1 << 16
"""Lanes that there may be: their numbers have 16 bits."""

RULE = 2
"""The rule by which a state names an order: another one whenever a state of before would name
another order. States without one are of rule 1, by which ragged rows went by what was stored of
them."""

_KINDS = {"order": str, "data": str}
_POOLED = {"lanes", "pool"}
_OPTIONAL = _POOLED | {"extent", "rule"}


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
            raise Invalid(f"a state has no {_listed(unknown)}: pass what state_dict() answered")
        if missing := fields - _OPTIONAL - set(given):
            raise Invalid(f"the state lacks {_listed(missing)}: pass what state_dict() answered")
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


_ADVICE = "resume with what it was saved with, or begin an epoch with set_epoch()"


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(map(short, names)))
