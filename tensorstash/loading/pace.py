"""Whether threads read blocks sooner than one alone: found out by trying, not assumed."""

from __future__ import annotations

from statistics import median

_SOME = 8  # jobs, by one thread alone and then by each of several
_WORTH = 0.8  # of the time: less gain than that is not worth the processors it takes


class Pace:
    """Times some jobs done by one thread, and some by ``threads`` at once, and decides.

    Threads hand Python's lock to each other several times for every chunk. Where decoding is
    cheap that takes longer than decoding, by how much depends on the machine and on who else
    wants the lock, and one thread is as fast with half the work; where it is dear, or files come
    from a disk, threads win. ``decided`` says so without trying. For one thread to use.
    """

    def __init__(self, threads: int, decided: bool) -> None:
        self.together = decided and threads > 1
        self._threads = threads
        self._alone: list[float] = []
        self._others: list[float] = []
        self._open = not decided and threads > 1

    def took(self, seconds: float) -> None:
        """A job took so long, done as :attr:`together` had it."""
        if not self._open:
            return
        if not self.together:
            self._alone.append(seconds)
            self.together = len(self._alone) == _SOME
            return
        self._others.append(seconds)
        if len(self._others) == _SOME * self._threads:
            # The first ones were begun while the threads were, and the middle bears a few such.
            each = median(self._others) / self._threads
            self.together = each < _WORTH * median(self._alone)
            self._open = False
