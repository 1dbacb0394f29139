"""Groups: named children below a path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Unpack

from ..array import Array
from ..attributes import Attributes
from ..create import as_values, check_above, create_at, make_spec, save_at
from ..driver import Driver, Tag, located
from ..errors import (
    AlreadyExists,
    Closed,
    Conflict,
    Corrupt,
    DriverError,
    Invalid,
    NotFound,
    ReadOnly,
    StashError,
    TimedOut,
    Unavailable,
    Unsupported,
)
from ..handle import Settings
from ..metadata import copies, node, zarr2, zarr3
from ..metadata.consolidated import Members, member_path
from ..metadata.document import GroupDocument, as_plain
from ..metadata.mark import is_records
from ..metadata.spec import ArraySpec
from ..options import LayoutOptions, shown
from .assign import assign
from .consolidate import documents, put_copy
from .tree import Branch, draw
from .whole import WholeMembers

_TRIES = 10


class Group(WholeMembers):
    """A handle on a stored group: ``g["raw/image"]`` opens a member, an array or a group.

    ``"raw" in g``, ``len(g)`` and iteration are about the direct members, and ``del g[name]``
    deletes one with everything below it. Opened for reading, a group with consolidated metadata
    knows all its members without looking at them; an array's own metadata is looked at when it is
    first read. Before a handle changes anything below this group, it deletes the consolidated
    metadata of the groups on the way.

    Raises:
        NotFound: ``g[name]`` is not there. Invalid: ``name`` cannot name a member. ReadOnly: a
        change, and the group was opened for reading. Closed: the handle was closed.

    >>> g = stash.create_group("memory://groups")
    >>> g.create("raw/image", (64, 64), "uint8")[...] = 1
    >>> g.keys(), g["raw"].keys()
    (['raw'], ['image'])
    """

    def __init__(
        self, driver: Driver, path: str, settings: Settings, document: GroupDocument | None = None
    ) -> None:
        """Made by ``open_group`` and ``create_group``."""
        self.driver = driver
        self.path = path
        self.settings = settings
        self._document = document
        self._closed = False
        self._publishes = False
        """A group above is of records, whose document is what publishes their fields."""

    @property
    def document(self) -> GroupDocument:
        """The metadata, as this handle knows it."""
        if self._document is None:
            self.refresh()
        assert self._document is not None
        return self._document

    @property
    def attrs(self) -> Attributes:
        """The user's attributes: a mapping of type ``Attributes``, whose changes are stored at
        once."""
        return Attributes(self)

    def attributes(self) -> Mapping[str, Any]:
        """The attributes in the metadata; use ``attrs`` to change them."""
        return self.document.attributes

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """2 or 3: what new members are stored as."""
        return self.document.zarr_format

    # -- members ----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Array | Group:
        self._open()
        path = self._below(name)
        found = self._member(name.strip("/"), path)
        if found is None:
            known = ", ".join(repr(known)[1:-1] for known in islice(self, 8))
            where = located(self.driver, self.path)
            raise NotFound(f"no {name!r} in {where}; it holds: {known or 'nothing'}")
        return self._handle(path, *found)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a member, or something that keeps us from looking."""
        self._open()
        if not isinstance(name, str):
            return False
        try:
            path = self._below(name)
        except Invalid:
            return False
        members = self._consolidated()
        if members is not None:
            return name.strip("/") in members
        try:
            return node.load_any(self.driver, path)
        except (TimedOut, Unavailable):
            raise
        except DriverError:  # refused: of this member alone
            return True

    def __iter__(self) -> Iterator[str]:
        """Names of the direct members, sorted; of those too that cannot be opened."""
        members = self._consolidated()
        if members is not None:
            self._open()
            return members.names()
        return (name for name, _ in self._each())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys(self) -> list[str]:
        """Return the names of the direct members, sorted, also of those that cannot be opened.

        Returns:
            A new list of names.

        >>> stash.create_group({}).keys()
        []
        """
        return list(iter(self))  # of the group itself list() asks the length first, which looks too

    def items(self) -> Iterator[tuple[str, Array | Group]]:
        """Iterate over the direct members, sorted by name.

        A member that cannot be opened raises when its turn comes; to skip it, go through
        :meth:`keys` and open each.

        Returns:
            An iterator over ``(name, handle)``, each handle an array or a group.

        Raises:
            Corrupt, Unsupported: the metadata of a member cannot be used.

        >>> g = stash.create_group({})
        >>> a = g.create("x", 3, "int8")
        >>> [(name, member.shape) for name, member in g.items()]
        [('x', (3,))]
        """
        for name, member in self._each():
            if isinstance(member, StashError):
                raise member
            yield name, member

    def arrays(self) -> dict[str, Array]:
        """Return the direct members that are arrays, by name.

        Returns:
            A new dict of handles.

        Raises:
            Corrupt, Unsupported: the metadata of a member, of whichever kind, cannot be used.

        >>> g = stash.create_group({})
        >>> x = g.create("x", 3, "int8")
        >>> list(g.arrays())
        ['x']
        """
        return {name: member for name, member in self.items() if isinstance(member, Array)}

    def groups(self) -> dict[str, Group]:
        """Return the direct members that are groups, by name.

        Returns:
            A new dict of handles.

        Raises:
            Corrupt, Unsupported: the metadata of a member, of whichever kind, cannot be used.

        >>> g = stash.create_group({})
        >>> x = g.create_group("x")
        >>> list(g.groups())
        ['x']
        """
        return {name: member for name, member in self.items() if isinstance(member, Group)}

    def walk(self) -> Iterator[tuple[str, Array | Group]]:
        """Iterate over every member below, depth first.

        Returns:
            An iterator over ``(path, handle)``, with paths counted from this group.

        Raises:
            Corrupt, Unsupported: the metadata of a member cannot be used, when its turn comes.

        >>> g = stash.create_group({})
        >>> x = g.create("raw/x", 3, "int8")
        >>> [path for path, member in g.walk()]
        ['raw', 'raw/x']
        """
        members = self._consolidated()
        if members is not None:
            self._open()
            for path in members:
                yield path, self._opened(path, f"{self.path}{path}/")
            return
        above = [("", self.items())]
        while above:
            prefix, items = above[-1]
            for name, member in items:
                yield prefix + name, member
                if isinstance(member, Group):
                    above.append((f"{prefix}{name}/", member.items()))
                    break
            else:
                above.pop()

    def tree(self) -> str:
        """Draw all members below as a tree; at those that cannot be opened it says why.

        Returns:
            The text of the tree, one member a line.

        >>> g = stash.create_group({})
        >>> x = g.create("raw/x", 3, "int8")
        >>> print(g.tree())  # doctest: +ELLIPSIS
        memory://...
        └── raw
            └── x (3,) int8
        """
        return "\n".join([located(self.driver, self.path), *draw(self._branch())])

    # -- changing ---------------------------------------------------------------------------

    @shown(LayoutOptions, make_spec, zarr_format="that of the group")
    def create(
        self,
        name: str,
        shape: int | Sequence[int] | None = None,
        dtype: Any = None,
        *,
        data: Any = None,
        overwrite: bool = False,
        **how: Unpack[LayoutOptions],
    ) -> Array:
        """Create an array below this group, with the groups above it that are missing.

        Args:
            name: its path from here, such as ``"raw/image"``.
            shape: the length of each axis; one integer for an array of one axis.
            dtype: the type of the elements, as NumPy takes it, or a name such as ``"bfloat16"``.
            data: all values, as for ``tensorstash.save``; of their shape and dtype unless these are
                given. Readers refuse the array until it is whole.
            overwrite: replace the array or group that is there.
            zarr_format: that of the group; no other is possible.
            chunks, shards, codecs, fill_value, dimension_names, attributes, key_encoding,
                separator, order, filters, in_place: as ``tensorstash.create`` explains.

        Returns:
            A handle on the new array, with the settings of this one.

        Raises:
            AlreadyExists: something is stored there, and ``overwrite`` is false.
            Invalid: an argument is wrong, the values do not fit, the place lies in an array, or
                holds a field of records.
            ReadOnly: the group was opened for reading.

        >>> g = stash.create_group({})
        >>> g.create("raw/image", (64, 64), "uint8", chunks=32)[...] = 1
        >>> int(g["raw/image"][5, 5])
        1
        """
        self._open(write=True)
        path = self._below(name)
        node.check_place(self.driver, path)
        if how.setdefault("zarr_format", self.zarr_format) != self.zarr_format:
            raise Invalid(
                f"{located(self.driver, self.path)} is a group of Zarr v{self.zarr_format} and "
                "holds members of that format only; leave zarr_format out"
            )
        values = None
        if data is not None:
            values, dtype = as_values(data, shape, dtype)
            shape = values.shape
        spec = make_spec(shape, dtype, **how)
        check_above(self.driver, path, self.zarr_format, overwrite, known=self.path)
        if values is None:
            return create_at(self.driver, path, spec, self.settings, overwrite=overwrite)
        return save_at(self.driver, path, spec, self.settings, values, overwrite=overwrite)

    def create_group(
        self, name: str, attributes: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> Group:
        """Create a group below this one, with the groups above it that are missing.

        Args:
            name: its path from here, such as ``"raw/images"``.
            attributes: the first user attributes, a dict of what JSON can hold.
            overwrite: replace the array or group that is there, with everything below it.

        Returns:
            A handle on the new group, with the settings of this one.

        Raises:
            AlreadyExists: something is stored there, and ``overwrite`` is false.
            Invalid: the name or an attribute cannot be stored, or the place lies in an array.
            ReadOnly: this group was opened for reading.

        >>> stash.create_group({}).create_group("raw", {"unit": "mm"}).attrs
        {'unit': 'mm'}
        """
        self._open(write=True)
        path = self._below(name)
        node.check_place(self.driver, path)
        check_above(self.driver, path, self.zarr_format, overwrite, known=self.path)
        document = GroupDocument(as_plain(dict(attributes or {})), zarr_format=self.zarr_format)
        node.create(self.driver, path, document, overwrite=overwrite)
        return Group(self.driver, path, self.settings, document)

    def require_group(self, name: str) -> Group:
        """Return the group of that name, and create it when it is not there.

        Args:
            name: its path from here.

        Returns:
            A handle on the group, with the settings of this one.

        Raises:
            Invalid: an array has that name, or the name cannot be stored.
            ReadOnly: it is not there, and this group was opened for reading.

        >>> g = stash.create_group({})
        >>> g.require_group("raw").path, g.require_group("raw").path
        ('raw/', 'raw/')
        """
        if name not in self:
            try:
                return self.create_group(name)
            except AlreadyExists:
                pass
        found = self[name]
        if not isinstance(found, Group):
            raise Invalid(f"{name!r} is an array, not a group")
        return found

    def __setitem__(self, name: str, value: Any) -> None:
        """Store a whole array, new or in place of an array; of a handle with its layout."""
        self._open(write=True)
        assign(self, self._below(name), value)

    def __delitem__(self, name: str) -> None:
        """Delete a member and everything below it."""
        self._open(write=True)
        if name not in self:
            raise NotFound(f"no {name!r} in {located(self.driver, self.path)}")
        path = self._below(name)
        check_above(self.driver, path, None, overwrite=True, known=self.path)
        node.delete(self.driver, path)

    def consolidate(self) -> None:
        """Copy the metadata of every member into this group's own: opening all costs one read.

        Whoever changes something below through a handle that was opened at this group, or above
        it, deletes the copy first: consolidate again afterwards. Other libraries may leave the
        copy out of date.

        Raises:
            Conflict: others go on changing members meanwhile; then there is no copy.
            ReadOnly: the group was opened for reading.

        >>> place = {}
        >>> g = stash.create_group(place)
        >>> a = g.create("x", 3, "int8")
        >>> g.consolidate()
        >>> stash.open_group(place).keys()
        ['x']
        """
        self._open(write=True)
        copies.expect(self.driver)
        found = self._found()
        for _ in range(_TRIES):
            put_copy(self, found)
            before, found = found, self._found()
            if zarr3.encode(found) == zarr3.encode(before):
                self.refresh()
                return
        put_copy(self, None)
        raise Conflict(
            f"members of {located(self.driver, self.path)} are changed by others without a break; "
            "consolidate when they are done"
        )

    def _found(self) -> dict[str, Any]:
        """The documents of all members as they are stored now, as a copy has them."""
        members = dict(Group(self.driver, self.path, replace(self.settings, mode="r+")).walk())
        return documents(self, members)

    # -- the handle -------------------------------------------------------------------------

    def refresh(self) -> Group:
        """Read the stored metadata again, as others may have changed it.

        Returns:
            This handle.

        Raises:
            NotFound: the group was deleted.
            Conflict: an array, or a group of another format, took its place.

        >>> g = stash.create_group({})
        >>> g.refresh() is g
        True
        """
        self._open()
        if self._document is None:
            content = node.require(self.driver, self.path).content
        else:
            content = node.reread(self.driver, self.path, self._document).content
        if not isinstance(content, GroupDocument):
            where = located(self.driver, self.path)
            raise Invalid(f"{where} is an array; open it with open()")
        self._document = content
        return self

    def close(self) -> None:
        """Refuse further use of this handle. Nothing else needs closing.

        >>> with stash.create_group({}) as g:
        ...     g.attrs["model"] = "small"
        """
        self._closed = True

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Group, (self.driver, self.path, self.settings)

    def __repr__(self) -> str:
        return f"<tensorstash.Group at {located(self.driver, self.path)}>"

    # -- inside -----------------------------------------------------------------------------

    def _content(self) -> GroupDocument | None:
        return self._document

    def _below(self, name: str) -> str:
        return f"{self.path}{member_path(name)}/"

    def _each(self) -> Iterator[tuple[str, Array | Group | StashError]]:
        """Names and handles of the direct members, sorted; an error where one cannot be read."""
        self._open()
        members = self._consolidated()
        if members is not None:
            for name in members.names():
                try:
                    yield name, self._opened(name, f"{self.path}{name}/")
                except (Corrupt, Invalid, Unsupported) as error:
                    yield name, error
            return
        _, folders = self.driver.list_dir(self.path)
        paths = [f"{self.path}{name}/" for name in folders]
        pickled = self.settings.allow_pickle
        for path, found in node.load_each(self.driver, paths, allow_pickle=pickled):
            name = path[len(self.path) : -1]
            if isinstance(found, StashError):
                yield name, found
            else:
                yield name, self._handle(path, found.content, found.tag)

    def _handle(self, path: str, content: node.Content, tag: Tag | None) -> Array | Group:
        """``tag``: of the member's own document, which said so; ``None``: a copy of it did."""
        publishes = self._publishes or is_records(self.document.attributes)
        if isinstance(content, ArraySpec):
            made = Array(self.driver, path, self.settings, content, tag=tag)
            # A field of records is what their document says, and its own comes after that.
            made.copied = tag is None and not publishes
            if tag is None and publishes and not self.driver.tag(node.lock_key(path, content)):
                made.watch(False)  # there is nothing to look at
            return made
        group = Group(self.driver, path, self.settings, content)
        group._publishes = publishes
        return group

    def _consolidated(self) -> Members | None:
        members = self.document.consolidated if self.settings.mode == "r" else None
        return None if members is None else Members.of(members)

    def _opened(self, name: str, path: str) -> Array | Group:
        """A member of which there is consolidated metadata."""
        found = self._member(name, path)
        assert found is not None
        return self._handle(path, *found)

    def _member(self, name: str, path: str) -> tuple[node.Content, Tag | None] | None:
        members = self._consolidated()
        if members is None:
            found = node.load(self.driver, path, allow_pickle=self.settings.allow_pickle)
            return None if found is None else (found.content, found.tag)
        if name not in members:
            return None
        try:
            document = members[name]
            if self.zarr_format == 2:
                pickled = self.settings.allow_pickle
                kind, content = zarr2.parse_documents(document, allow_pickle=pickled)
            else:
                kind, content = zarr3.parse_document(document)
        except (Invalid, Unsupported) as error:
            where = located(self.driver, path)
            raise type(error)(f"in the consolidated metadata of {where}: {error}") from error
        if kind == "group":
            below = members.below(name)
            format_ = content.zarr_format
            content = GroupDocument(content.attributes, below, format_, content.document)
        return content, None

    def _branch(self) -> Branch:
        members = self._each()
        while True:
            try:
                name, member = next(members)
            except StopIteration:
                return
            except DriverError as error:
                if isinstance(error, TimedOut | Unavailable):
                    raise
                yield f"({type(error).__name__}: cannot be listed)", "", None
                return
            if isinstance(member, Group):
                yield name, "", member._branch()
            elif isinstance(member, Array):
                yield name, f"{member.shape} {member.dtype}", None
            else:  # must not hide the others
                yield name, f"({type(member).__name__}: cannot be opened)", None

    def _open(self, write: bool = False) -> None:
        if self._closed:
            where = located(self.driver, self.path)
            raise Closed(f"this handle on {where} is closed; open it again")
        if write and self.settings.mode == "r":
            where = located(self.driver, self.path)
            raise ReadOnly(f'{where} was opened for reading; open it with mode="r+" to write')
