"""All nodes of a tree, with their documents as they are stored, and the keys of their chunks: for
who copies what is there without decoding it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from operator import ge

from ..driver import Buffer, Driver, Request, Tag, located
from ..errors import Corrupt, Invalid, NotFound, Unsupported
from ..metadata import mark, zarr2, zarr3
from ..metadata.belongings import DOCUMENTS
from ..metadata.consolidated import Members, is_member_path
from ..metadata.document import GroupDocument
from ..metadata.mark import Layout
from ..metadata.node import Content
from ..metadata.spec import ArraySpec
from .patterns import Choice

NODES = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP)
"""Documents that say that there is a node, the one that counts first."""

_AT_ONCE = 256


@dataclass(frozen=True)
class Member:
    """A node of the tree. ``path``: from its root; empty, or ending in ``/``. ``files``: its
    documents as they are stored, by name. ``tag``: of the first of them. ``content`` is ``None``
    where nobody here can read it, as with codecs that are not known; then ``layouts`` say all the
    same which keys are its chunks. ``is_field``: it lies in records, whose document comes first."""

    path: str
    files: Mapping[str, bytes]
    tag: Tag | None
    layouts: tuple[Layout, ...]
    content: Content | None
    is_field: bool = False

    @property
    def document(self) -> str:
        """The name of the document that makes it a node."""
        return next(name for name in NODES if name in self.files)

    @property
    def is_group(self) -> bool:
        """Whether members may lie below it."""
        if self.content is not None:
            return isinstance(self.content, GroupDocument)
        return mark.is_group(mark.loaded(self.files.get(zarr3.KEY)))

    @property
    def is_records(self) -> bool:
        """Whether what lies below it are fields."""
        return isinstance(self.content, GroupDocument) and mark.is_records(self.content.attributes)

    def holds(self, rest: str) -> bool:
        """Whether a chunk within the shape is at ``rest``, below the node."""
        if not isinstance(self.content, ArraySpec):
            return any(layout.explains(rest) for layout in self.layouts)
        spec = self.content
        index = spec.keys.index(rest, spec.ndim)
        return index is not None and not any(map(ge, index, spec.grid.counts(spec.shape)))


Tree = dict[str, Member]
"""The members by path; those above come before those below them."""


class Inside(Exception):
    """What was put at the target shows in the source."""


def look(driver: Driver, at: str, choice: Choice, probe: str = "") -> Tree:
    """What is stored at ``at`` (empty, or ending in ``/``) and below: of that the nodes that are
    wanted, those above them, and what lies in wanted records. :class:`Inside` where a key is named
    ``probe``.

    :class:`~tensorstash.errors.NotFound` where nothing is;
    :class:`~tensorstash.errors.Corrupt` where a node is damaged, or not whole."""
    names = _listed(driver, at, probe) if driver.capabilities.lists else _shown(driver, at)
    tree: Tree = {}
    choices = {"": choice}
    todo = iter(sorted(names, key=lambda path: path.split("/")))
    while paths := [*islice(todo, _AT_ONCE)]:
        _take(driver, at, paths, names, tree, choices)
    if "" not in tree:
        raise NotFound(f"no Zarr array, group or records at {located(driver, at)}; check the path")
    _check_filter(driver, at, tree[""], choice)
    kept = {""}
    for path, member in tree.items():
        if member.is_field or choices[path].is_wanted:
            parts = path.split("/")[:-1]
            kept.update("/".join(parts[:k]) + "/" for k in range(1, len(parts) + 1))
    return {path: member for path, member in tree.items() if path in kept}


def chunks(driver: Driver, at: str, tree: Tree, probe: str = "") -> Iterator[str]:
    """Keys of the chunks of ``tree`` that are stored, without ``at`` before them; where the driver
    cannot list, of all that there may be. :class:`Inside` where a key is named ``probe``."""
    if not driver.capabilities.lists:
        yield from _possible(driver, at, tree)
        return
    last: Member | None = None
    for key in driver.list(at):
        rest = key[len(at) :]
        if probe and rest.endswith(probe):
            raise Inside
        if last is None or not rest.startswith(last.path) or not last.path:
            last = _array_above(rest, tree)
        if last is not None and last.holds(rest[len(last.path) :]):
            yield rest


def _array_above(rest: str, tree: Tree) -> Member | None:
    path = ""
    while (member := tree.get(path)) is not None:
        if member.layouts:
            return member
        name, slash, _ = rest[len(path) :].partition("/")
        if not slash:
            return None
        path = f"{path}{name}/"
    return None


def _possible(driver: Driver, at: str, tree: Tree) -> Iterator[str]:
    for path, member in tree.items():
        spec = member.content
        if isinstance(spec, ArraySpec):
            for index in product(*map(range, spec.grid.counts(spec.shape))):
                yield path + spec.keys.key(index)
        elif member.layouts:
            raise Unsupported(
                f"{located(driver, at + path)} cannot be copied: it uses what is not known here, "
                f"and {driver.scheme}:// cannot list its chunks"
            )


def _listed(driver: Driver, at: str, probe: str) -> dict[str, list[str]]:
    """The names of the documents at each path that has any."""
    found: dict[str, list[str]] = {}
    for key in driver.list(at):
        folder, slash, name = key[len(at) :].rpartition("/")
        if name in DOCUMENTS:
            found.setdefault(folder + slash, []).append(name)
        elif probe and name == probe:
            raise Inside
    return found


def _shown(driver: Driver, at: str) -> dict[str, list[str]]:
    """As the consolidated metadata of the root shows it."""
    root = _documents(driver, at, {"": list(DOCUMENTS)})[""]
    if not root:
        return {}
    content = _member(driver, at, "", root)
    names = {"": [*root]}
    if content is not None and isinstance(content.content, GroupDocument):
        group = content.content
        if group.consolidated is None:
            raise Invalid(
                f"{driver.scheme}:// cannot list what is in {located(driver, at)}, and there is no "
                "consolidated metadata that says so; consolidate() it where it is written, or "
                "copy its arrays one by one"
            )
        below = [zarr3.KEY] if group.zarr_format == 3 else [*DOCUMENTS[1:4]]
        names.update((f"{path}/", below) for path in Members.of(group.consolidated))
    return names


def _documents(
    driver: Driver, at: str, names: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, tuple[Buffer, Tag]]]:
    places = [(path, name) for path, some in names.items() for name in some]
    found: dict[str, dict[str, tuple[Buffer, Tag]]] = {path: {} for path in names}
    most = driver.metadata_limit
    asked = (Request(at + path + name, most=most) for path, name in places)
    for i, pair in driver.get_many_tagged(asked):
        if pair is not None:
            path, name = places[i]
            found[path][name] = pair
    return found


def _take(
    driver: Driver,
    at: str,
    paths: list[str],
    names: Mapping[str, list[str]],
    tree: Tree,
    choices: dict[str, Choice],
) -> None:
    """Add those of ``paths`` that are nodes to ``tree``: none below an array, below what is left
    out, or below what is no node."""
    found = _documents(driver, at, {path: names[path] for path in paths})
    for path in paths:
        above = None
        if path:
            parent, _, name = path[:-1].rpartition("/")
            above = tree.get(f"{parent}/" if parent else "")
            if path in tree:  # a field that its records have shown
                tree[path] = replace(tree[path], files=_files(found[path]))
                continue
            if above is None or not above.is_group or not is_member_path(name):
                continue
            inside = above.is_records or above.is_field
            choice = choices[above.path]
            choices[path] = choice if inside else choice.below(name)
            if choices[path].is_left_out or not (
                inside or choices[path].is_wanted or choices[path].may_hold
            ):
                continue
            if inside:
                continue  # nothing that the records know
        member = _member(driver, at, path, found[path])
        if member is None:
            continue
        if member.is_records and path and not choices[path].is_wanted:
            continue
        tree[path] = member
        if member.is_records:
            for field in _fields(member):
                tree[field.path] = field


def _fields(records: Member) -> Iterator[Member]:
    """What lies in records, by what their document says: own documents come after that."""
    document = mark.loaded(records.files[zarr3.KEY])
    described = {**_mapping(document.get("consolidated_metadata"), "metadata")}
    own = document.get("attributes", {}).get("tensorstash")
    described |= _mapping(own, "members")
    for path in sorted(described, key=lambda path: path.split("/")):
        found = described[path]
        layouts = mark.layouts_of(found) if not mark.is_group(found) else ()
        try:
            content: Content | None = zarr3.parse_document(found)[1]
        except (Invalid, Unsupported):
            content = None
        yield Member(f"{records.path}{path}/", {}, None, layouts, content, is_field=True)


def _mapping(value: object, name: str) -> dict[str, dict[str, object]]:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    return {path: each for path, each in found.items() if isinstance(each, dict)}


def _files(found: Mapping[str, tuple[Buffer, Tag]]) -> dict[str, bytes]:
    return {name: bytes(pair[0]) for name, pair in found.items()}


def _member(
    driver: Driver,
    at: str,
    path: str,
    found: Mapping[str, tuple[Buffer, Tag]],
) -> Member | None:
    """The node with these documents; ``None`` where they are none of Zarr's."""
    first = next((name for name in NODES if name in found), None)
    if first is None:
        return None
    where = located(driver, at + path)
    data, tag = found[first]
    document = mark.loaded(data)
    if not mark.is_zarr(data, document):
        return None
    advice = "" if not path else "; or leave it out with exclude="
    unfinished = mark.mark_in(document)
    if unfinished is not None:
        raise Corrupt(f"{where} is {unfinished.advice}{advice}", key=at + path + first)
    if not document:
        raise Corrupt(
            f"{where} has metadata that is damaged; restore it, or delete it{advice}",
            key=at + path + first,
        )
    keep = (zarr3.KEY,) if first == zarr3.KEY else DOCUMENTS[1:]
    files = {name: bytes(found[name][0]) for name in keep if name in found}
    if first != zarr2.GROUP:
        files.pop(zarr2.CONSOLIDATED, None)
    if first == zarr2.ARRAY:
        files.pop(zarr2.GROUP, None)
    try:
        content: Content | None = _parsed(first, files)
    except (Invalid, Unsupported):
        content = None
    except Corrupt as error:
        raise Corrupt(f"in {where}: {error}{advice}", key=at + path + first) from error
    layouts: tuple[Layout, ...] = ()
    if first == zarr2.ARRAY or not (first == zarr2.GROUP or mark.is_group(document)):
        layouts = mark.layouts_of(document, v2=first == zarr2.ARRAY)
        if not layouts:
            raise Corrupt(
                f"{where} has metadata that says not where its chunks are; restore it{advice}",
                key=at + path + first,
            )
    return Member(path, files, tag, layouts, content)


def _parsed(first: str, files: Mapping[str, bytes]) -> Content:
    if first == zarr3.KEY:
        return zarr3.parse(files[first])[1]
    if first == zarr2.ARRAY:
        return zarr2.parse_array(files[first], files.get(zarr2.ATTRS), allow_pickle=None)
    copied = files.get(zarr2.CONSOLIDATED)
    return zarr2.parse_group(files[first], files.get(zarr2.ATTRS), copied)


def _check_filter(driver: Driver, at: str, root: Member, choice: Choice) -> None:
    if (choice.include is not None or choice.exclude) and (not root.is_group or root.is_records):
        kind = "records" if root.is_records else "an array"
        raise Invalid(
            f"include= and exclude= choose members of a group, and {located(driver, at)} is "
            f"{kind}, copied whole or not at all"
        )
