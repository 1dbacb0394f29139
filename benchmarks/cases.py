"""Cases, goals and what came of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .peer import OURS
from .timing import Result

FLOORS = ("floor", "floor, all cores")
CEILING = "np.memmap"
FASTEST = "fastest peer"
FASTEST_ZARR = "fastest Zarr peer"
OTHER_FORMATS = frozenset(("h5py", "PyTables"))
FLOOR = "floor"
CLOSE = 1.1
"""Within this factor of the floor a goal beside a peer is met, whatever the peer takes."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Ours takes at most ``limit`` times what ``against`` takes."""

    against: str
    limit: float

    def __str__(self) -> str:
        return f"≤ {self.limit:g}x {self.against}"


@dataclass(frozen=True, slots=True)
class Check:
    """A goal that is not a ratio of two times of one case."""

    text: str
    value: str
    met: bool


@dataclass(slots=True)
class Case:
    """One measured thing: every contestant's result and what ours should reach."""

    workload: str
    name: str
    results: list[Result]
    goals: tuple[Goal, ...] = ()
    operations: int = 1
    payload: int = 0
    unit: str = "s"
    """``s``: ``walls`` are seconds; ``MiB``: they are bytes of memory."""
    aside: tuple[str, ...] = ()
    """Contestants that are shown but are no peers of the fastest-peer goal."""

    def result(self, name: str) -> Result | None:
        """By name; ``None`` when absent or failed."""
        for result in self.results:
            if result.name == name and result.walls:
                return result
        return None

    @property
    def ours(self) -> Result | None:
        """Our result."""
        return self.result(OURS)

    @property
    def floor(self) -> float:
        """Seconds of the better floor; NaN without one."""
        return min((r.wall for n in FLOORS if (r := self.result(n))), default=float("nan"))

    @property
    def fastest(self) -> Result | None:
        """The fastest peer; the mapped file is a ceiling, not a peer."""
        return self._fastest()

    def _fastest(self, without: frozenset[str] = frozenset()) -> Result | None:
        out = {OURS, CEILING, *FLOORS, *self.aside, *without}
        peers = [r for r in self.results if r.walls and r.name not in out]
        return min(peers, key=lambda r: r.wall, default=None)

    def reference(self, against: str) -> float:
        """Seconds of what a goal compares with."""
        if against in (FASTEST, FASTEST_ZARR):
            found = self._fastest(OTHER_FORMATS if against == FASTEST_ZARR else frozenset())
            return found.wall if found else float("nan")
        if against == FLOOR:
            return self.floor
        result = self.result(against)
        return result.wall if result else float("nan")

    def ratio(self, against: str) -> float:
        """Ours over ``against``; NaN when either is missing."""
        return self.ours.wall / self.reference(against) if self.ours else float("nan")

    def met(self, goal: Goal) -> bool | None:
        """Whether ours holds ``goal``; ``None`` when it cannot be told."""
        ratio = self.ratio(goal.against)
        if ratio != ratio:
            return None
        return ratio <= goal.limit or self.ratio(FLOOR) <= CLOSE


@dataclass(slots=True)
class Workload:
    """The cases of one of S1 to S8, with what they show together."""

    id: str
    title: str
    note: str = ""
    cases: list[Case] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
