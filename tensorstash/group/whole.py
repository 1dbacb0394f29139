"""What a group does with whole members: rename and copy them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..create import check_above
from ..driver import located
from ..errors import NotFound
from ..metadata import node
from ..trees.copying import Place, copy_tree
from ..trees.moving import move_tree

if TYPE_CHECKING:
    from .group import Group


class WholeMembers:
    """Renaming and copying within a group, as its handle does."""

    def rename(self: Group, old: str, new: str, *, overwrite: bool = False) -> None:  # type: ignore[misc]
        """Give a member another name, or another place below this group, with all below it.

        In one step where the driver can rename; else it is copied, compared and deleted, as
        ``tensorstash.move`` explains. Groups above the new name that are missing are created.

        Args:
            old: its path from here.
            new: the path from here that it shall have.
            overwrite: replace the array or group that is there.

        Raises:
            NotFound: there is no ``old``.
            AlreadyExists: something is stored at ``new``, and ``overwrite`` is false.
            Invalid: one lies in the other, ``new`` lies in an array, or either is a field of
                records.
            ReadOnly: the group was opened for reading.

        >>> g = stash.create_group({})
        >>> x = g.create("raw/x", 3, "int8")
        >>> g.rename("raw/x", "done/y")
        >>> [path for path, member in g.walk()]
        ['done', 'done/y', 'raw']
        """
        source, target = self._ends(old, new)
        move_tree(source, target, budget=self.settings.memory, overwrite=overwrite)

    def copy(self: Group, source: str, target: str, *, overwrite: bool = False) -> None:  # type: ignore[misc]
        """Copy a member within this group, with all below it; to other places copies
        ``tensorstash.copy``.

        Groups above the new name that are missing are created.

        Args:
            source: its path from here.
            target: the path from here that the copy shall have.
            overwrite: replace the array or group that is there.

        Raises:
            NotFound: there is no ``source``.
            AlreadyExists: something is stored at ``target``, and ``overwrite`` is false.
            Invalid: one lies in the other, ``target`` lies in an array, or in records.
            ReadOnly: the group was opened for reading.

        >>> g = stash.create_group({})
        >>> x = g.create("raw/x", 3, "int8")
        >>> g.copy("raw", "backup")
        >>> [path for path, member in g.walk()]
        ['backup', 'backup/x', 'raw', 'raw/x']
        """
        one, other = self._ends(source, target)
        copy_tree(one, other, budget=self.settings.memory, overwrite=overwrite)

    def _ends(self: Group, old: str, new: str) -> tuple[Place, Place]:  # type: ignore[misc]
        self._open(write=True)
        source, target = self._below(old), self._below(new)
        if not node.load_any(self.driver, source):
            raise NotFound(f"no {old!r} in {located(self.driver, self.path)}")
        check_above(self.driver, target, overwrite=True, in_records=False)
        return Place(self.driver, source), Place(self.driver, target)
