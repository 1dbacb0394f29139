"""Moving trees: in one step where the driver can, else copied, compared, and only then deleted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

from ..create import check_above
from ..driver import Driver, Request
from ..errors import Conflict, Corrupt, ReadOnly
from ..memory import Budget
from ..metadata import node, trailer, zarr2
from ..metadata.belongings import Belongings
from ..metadata.belongings import look as look_at_all
from ..metadata.copies import dropped
from ..metadata.document import GroupDocument
from ..metadata.unfinished import Alone, claim, mark_at, remove, what_is_unfinished
from ..wrapper import unwrapped
from .apart import apart_from, refuse_inside
from .copying import Bar, Place, bytes_of, check_apart, copy_tree
from .deleting import refuse_if_field
from .members import Tree, chunks, look
from .patterns import Choice

_AT_ONCE = 64


def move_tree(
    source: Place,
    target: Place,
    *,
    budget: Budget,
    overwrite: bool = False,
    bar: Bar | None = None,
) -> None:
    """Move the array, group or records at ``source``, with all below, to ``target``. One of the
    two is whole at every instant, and the other whole, marked or absent."""
    first = _check(source, target)
    left = mark_at(source.driver, source.path)
    if left is not None and left.what == "move":
        if left.target != str(target) or not node.load_any(target.driver, target.path):
            raise Corrupt(
                f"{source} is what is left of what was moved to {left.target}; if that is there, "
                "delete the rest here, or repeat that move",
                key=source.path,
            )
        _remove(source, target)
        return
    unfinished = what_is_unfinished(target.driver, target.path) == "copy"
    there = node.load_any(target.driver, target.path)
    if there and not (overwrite or unfinished):
        raise node.exists_already(target.driver, target.path)

    def stays(found: Belongings) -> bool:
        if found.what is None and found.documents and not overwrite:  # another was first
            raise node.exists_already(target.driver, target.path)
        return refuse_if_field(found)

    if _rename(source, target, first, there, stays):
        return
    look_at_all(source.driver, source.path)  # other programs' files, which would not be deleted
    tree = copy_tree(source, target, budget=budget, overwrite=there, spare=stays, bar=bar)
    _compare(source, target, tree, budget)
    _remove(source, target)


def _check(source: Place, target: Place) -> str:
    """The key of the source's own document, if it may be moved there."""
    present = node.present(source.driver, source.path)
    if not present:
        node.require(source.driver, source.path)  # raises
    for place in (source, target):
        if not place.driver.capabilities.writable:
            raise ReadOnly(f"{source} cannot be moved to {target}: {place} is read-only")
    check_above(source.driver, source.path, overwrite=True)
    node.check_place(target.driver, target.path)
    refuse_inside(source.driver, present[0], target.driver, target.path)
    data = source.driver.get(present[0])
    found = Belongings(source.driver, source.path, {})
    found.is_field = data is not None and trailer.decode(bytes(data)).field
    refuse_if_field(found)
    return present[0]


def _rename(
    source: Place, target: Place, first: str, there: bool, stays: Callable[[Belongings], bool]
) -> bool:
    """Whether it was moved in one step."""
    if type(unwrapped(source.driver)) is not type(unwrapped(target.driver)):
        return False
    if source.driver is target.driver and target.path.startswith(source.path):
        return False  # what copies says why
    if there:
        check_apart(source, target)
        apart = apart_from(source.driver, first)

        def spare(found: Belongings) -> bool:
            return stays(found) or apart(found)

        node.delete(target.driver, target.path, spare=spare)
    v2 = first.rpartition("/")[2] in (zarr2.ARRAY, zarr2.GROUP)
    kind = GroupDocument(zarr_format=2 if v2 else 3)
    with (
        Alone(source.driver, node.locked(source.driver, source.path)) as check,
        dropped(source.driver, source.path),
        dropped(target.driver, target.path),
    ):
        if what_is_unfinished(source.driver, source.path) is not None:
            return False
        node.make_ancestors(target.driver, target.path, kind, drops=True)
        check()
        if not source.driver.rename(source.path, target.driver, target.path):
            return False
    target.driver.prune(target.path)
    return True


def _remove(source: Place, target: Place) -> None:
    """Delete what was moved."""
    with Alone(source.driver, node.locked(source.driver, source.path)) as check:
        made = claim(
            *(source.driver, source.path, "move", check),
            spare=refuse_if_field,
            target=str(target),
        )
        assert made is not None
        remove(made)
    source.driver.prune(source.path)
    if not source.path:
        source.driver.remove_root()


def _compare(source: Place, target: Place, tree: Tree, budget: Budget) -> None:
    """:class:`~tensorstash.errors.Conflict` where the copy is not what is stored now."""
    if look(target.driver, target.path, Choice()).keys() != tree.keys():
        raise _differs(source, target, "its members")
    each = 2 * max(map(bytes_of, tree.values()))
    keys = chunks(source.driver, source.path, tree)
    while batch := [*islice(keys, _AT_ONCE)]:
        while batch:
            where: Callable[[], str] = partial(str, target)
            with budget.share("in_flight", each, len(batch), each, where) as units:
                some, batch = batch[:units], batch[units:]
                before = _read(source.driver, source.path, some)
                after = _read(target.driver, target.path, some)
                for key, one, other in zip(some, before, after, strict=True):
                    if one != other:
                        raise _differs(source, target, key)


def _read(driver: Driver, at: str, keys: list[str]) -> list[bytes | None]:
    found: list[bytes | None] = [None] * len(keys)
    for i, value in driver.get_many(Request(at + key) for key in keys):
        found[i] = None if value is None else bytes(value)
    return found


def _differs(source: Place, target: Place, what: str) -> Conflict:
    return Conflict(
        f"{source} was changed while it was moved ({what}), so it was not deleted; {target} is a "
        "copy of what was there before: stop who writes, and move again with overwrite=True"
    )
