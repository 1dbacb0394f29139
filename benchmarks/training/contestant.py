"""Who takes part: a library, used in one way."""

from __future__ import annotations

import importlib.util


class Contestant:
    """What every kind of contestant tells of itself."""

    library: str
    variant: str
    modules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Library and variant."""
        return f"{self.library}: {self.variant}"

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        absent = [m for m in self.modules if importlib.util.find_spec(m) is None]
        return f"{', '.join(absent)} not installed" if absent else ""
