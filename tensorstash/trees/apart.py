"""Whether two places are one, or one lies in the other, by whatever name."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from ..driver import Buffer, Driver, Request, Span, located, pause
from ..errors import Conflict, Invalid
from ..metadata import trailer
from ..metadata.belongings import PROBE, Belongings

_TRIES = 200


def refuse_inside(source: Driver, key: str, target: Driver, path: str) -> None:
    """:class:`~tensorstash.errors.Invalid` where the node whose document is at ``key`` of
    ``source`` is, by name, what is stored at ``path`` of ``target``, or lies in that: whoever
    replaces it would delete what it copies."""
    above = located(target, path).rstrip("/") + "/"
    at, _, name = key.rpartition("/")
    below = located(source, at).rstrip("/") + "/"
    if below.startswith(above):
        # Drivers on different dicts have one URL; a stored version is only in one place.
        tag = target.tag(path + below[len(above) :].lstrip("/") + name)
        if tag is not None and tag == source.tag(key):
            raise Invalid(f"{below[:-1]} cannot be copied over itself; copy it elsewhere first")


def apart_from(source: Driver, key: str) -> Callable[[Belongings], bool]:
    """What :func:`~tensorstash.metadata.unfinished.claim` is to ask before it marks anything, for
    who reads the node whose document is at ``key`` of ``source`` meanwhile. It raises
    :class:`~tensorstash.errors.Invalid` where that is among what would be deleted.

    Names do not tell: links, several names of one server, a driver around another's folder. So
    the place is asked. Where a document below it may be the source's own, a key that no cache can
    know is put beside that and beside a chunk, and looked for at the source."""
    path, slash, name = key.rpartition("/")
    here = path + slash

    def spare(found: Belongings) -> bool:
        for document in _alike(source, key, found):
            root = document.removesuffix(name)
            if any(_is_seen(source, here, found.driver, root, at) for at in _at(found, root)):
                raise Invalid(
                    f"{located(source, path)} cannot be copied over itself: what is stored at "
                    f"{located(found.driver, root)} is the same by another name, or by a link; "
                    "copy it elsewhere first"
                )
        return False

    return spare


def _alike(source: Driver, key: str, found: Belongings) -> list[str]:
    """The documents that may be the source's: those that differ from it are another's, unless it
    was changed while they were read."""
    name = key.rpartition("/")[2]
    keys = [each for each in found.documents if each.rpartition("/")[2] == name]
    if not keys:
        return []
    for attempt in range(_TRIES):
        before = _document(source, key)
        most = Span(0, found.driver.metadata_limit)
        pairs = found.driver.get_many_tagged(Request(each, most) for each in keys)
        alike = [keys[i] for i, pair in pairs if pair is not None and _may_be(before, pair[0])]
        if alike or _document(source, key) == before:
            return alike
        pause(attempt)
    raise Conflict(
        f"{located(source, key.rpartition('/')[0])} is changed by others without a break; "
        "repeat the call",
        key=key,
    )


def _at(found: Belongings, root: str) -> list[str]:
    """Folders of the array at ``root``, from there: its own, and one of chunks, which may be
    another array's too, by a link; but none that goes without what it leads to."""
    chunk = next((each for each in found.chunks if each.startswith(root)), root)
    folder = chunk[: chunk.rfind("/") + 1]
    shared = folder != root and found.driver.linked(folder) is None
    return ["", folder[len(root) :]] if shared else [""]


def _is_seen(source: Driver, here: str, target: Driver, root: str, folder: str) -> bool:
    """Whether what is put in a folder of the target is in that folder of the source."""
    token = secrets.token_hex(8)
    probe = f"{folder}{PROBE}{token}"
    try:
        target.put(root + probe, token.encode())
        seen = source.get_tagged(here + probe)
        return seen is not None and bytes(seen[0]) == token.encode()
    finally:
        target.delete(root + probe)


def _document(source: Driver, key: str) -> bytes:
    found = source.get_tagged(key)
    if found is None:
        raise Conflict(
            f"the array at {located(source, key.rpartition('/')[0])} was replaced or deleted "
            "meanwhile; nothing was copied",
            key=key,
        )
    return bytes(found[0])


def _may_be(one: bytes, other: Buffer) -> bool:
    """Whether two documents can be one: of one identity, or where there is none, the same."""
    identity = trailer.decode(one).identity
    return identity == trailer.decode(other).identity if identity else one == bytes(other)
