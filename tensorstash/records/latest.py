"""The records' document as it was last seen: what their table and the handles on single fields
share. It knows neither, so that a handle that is let go of is gone at once."""

from __future__ import annotations

from collections.abc import Callable

from ..driver import Driver, located
from ..engine.look import Found, Look
from ..errors import Conflict, NotFound, StashError
from ..metadata import zarr3
from ..metadata.spec import ArraySpec, difference
from . import grow
from .catalog import Catalog
from .schema import Fields


class Latest:
    """``now``: the document, as who looked last has seen it; which need not be what is gone by."""

    def __init__(self, driver: Driver, path: str, now: Catalog) -> None:
        self.driver = driver
        self.path = path
        self.now = now

    def seen(self) -> Catalog:
        """The document as it is now. One request that moves no bytes, while it is the one that was
        last seen."""
        now = self.now
        if now.tag is None or self.driver.tag(self.path + zarr3.KEY) != now.tag:
            now = self.now = grow.load(self.driver, self.path, now)
        return now

    def ask(self, verify: Callable[[Catalog], None]) -> Look:
        """The same, to be asked for together with what a call reads; another document than the one
        last seen is given to ``verify``."""
        known = self.now

        def changed(found: Found) -> None:
            self.now = now = grow.load(self.driver, self.path, known, found)
            verify(now)

        return Look(self.driver, self.path + zarr3.KEY, known.tag, changed)

    def changed(self, name: str, what: str | None, now: Catalog) -> StashError:
        """The error about a field that is another one by now, or none."""
        where = located(self.driver, self.path)
        if what is None:
            return gone(where, name, now.fields)
        return Conflict(
            f"field {name!r} of {where} was replaced since it was opened: {what}; refresh(), "
            "or open it again"
        )


class FieldGuard:
    """Tells whether the array ``name`` is the one that its handle knows, by the records' document:
    the array's own one follows late."""

    def __init__(self, latest: Latest, name: str) -> None:
        self._latest = latest
        self._name = name
        self._same: tuple[ArraySpec, Catalog] | None = None

    def check(self, spec: ArraySpec) -> None:
        """See :class:`~tensorstash.engine.look.Guard`."""
        self._compare(spec, self._latest.seen())

    def look(self, spec: ArraySpec) -> Look:
        """See :class:`~tensorstash.engine.look.Guard`."""
        self._compare(spec, self._latest.now)
        return self._latest.ask(lambda now: self._compare(spec, now))

    def _compare(self, spec: ArraySpec, now: Catalog) -> None:
        same = self._same
        if same is not None and same[0] is spec and same[1] is now:
            return
        other = now.specs.get(self._name)
        what = None if other is None else difference(spec, other)
        if other is None or what is not None:
            raise self._latest.changed(self._name, what, now)
        self._same = spec, now


def gone(where: str, name: str, fields: Fields) -> NotFound:
    """The error about a field that a view has and the records have no more."""
    known = ", ".join(map(repr, fields))
    return NotFound(
        f"{where} has no field {name!r} any more; there are: {known}; make the view again"
    )
