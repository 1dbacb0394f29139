"""What keeps a holder whose lease ended, unnoticed by itself, from changing what others stored.

Where a lock is a lease (:attr:`~tensorstash.driver.Capabilities.leases`), its holder may be
stopped between any two steps, others have the lock meanwhile, and it goes on. So:

* every put and delete of a holder is conditional on that object's own version;
* a new holder changes the metadata document before it changes any chunk that an older one may
  have stored or may yet store (it *closes the door*): from then on no older one can publish;
* a version that was learned before the door was closed is no newer holder's, and one that was
  learned later counts only if the document is still ours, as the server says;
* what a holder stores beyond the edge it stores even where it is all fill, so that a late put on
  the condition that nothing is there comes to nothing;
* how far appends may reach that closed the door and never published stays in the document
  (:mod:`~tensorstash.metadata.trailer`), for whoever makes that room visible without storing
  anything in it.

See docs/decisions/0020-fencing.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..driver import Buffer, Check, Driver, Tag, pause
from ..errors import Conflict, StashError
from ..metadata.copies import dropped
from ..metadata.node import Content, Node, lock_key, put, reread, update

_Result = TypeVar("_Result")

_TRIES = 200


class Moved(Exception):
    """Another holder changed the document before ours changed anything. Internal: begin again."""


def until_alone(check: Check, work: Callable[[], _Result]) -> _Result:
    """``work`` until no other holder of the lock, who had not ended, published in between."""
    while True:
        try:
            return work()
        except Moved:
            check()


class Fence:
    """A holder's lock on the node at ``path``, which was read as ``node`` under it. Called before
    each put, as the lock's ``check``.

    ``eager``: the door is closed before the first put, in place of the second look at the document
    that publishing would need. Else only where :meth:`close` is called: by whoever meets what
    another may have stored.
    """

    def __init__(
        self,
        driver: Driver,
        path: str,
        node: Node,
        check: Check,
        *,
        eager: bool = True,
    ) -> None:
        self.driver = driver
        self.path = path
        self.node = node
        self.leased = driver.capabilities.leases
        self.eager = eager
        self.closed = False
        self.strict = eager  # whether the lock's clock may have stood still
        self.reach: Sequence[int] = ()
        self._landed: list[tuple[str, Tag, Buffer]] = []
        self._kept = False
        self._newer: Node | None = None  # the document of another, once it was seen
        self._check = check
        self._before = node.trailer
        self._like = node.content
        self._guard = threading.Lock()

    def __call__(self) -> None:
        """Before a put: :class:`~tensorstash.errors.Conflict` when the lock was lost."""
        if self._newer is not None:
            raise self.lost() if self.closed else Moved()
        if self.leased and not self.closed and (self.eager or self.node.trailer.open):
            self.close()
        else:
            self._check()

    def close(self) -> None:
        """No older holder publishes after this. :class:`Moved` if one did before."""
        with self._guard:
            if self.closed or not self.leased:
                return
            self._check()
            trailer = self.node.trailer.next(open=True, reach=self.reach)
            for attempt in range(_TRIES):
                try:
                    self.node = put(self.driver, self.path, self.node, self.node.content, trailer)
                except Conflict:
                    self._adopt(self._read(), Moved())
                    pause(attempt)
                else:
                    self.closed = True
                    return
            raise self._busy()

    def settle(self) -> None:
        """Between reading chunks and putting them on condition of what was read: that was no newer
        holder's."""
        if self.closed and self.strict:
            self.verify()
        else:
            self()

    def verify(self) -> None:
        """:class:`~tensorstash.errors.Conflict` unless the document is still ours, as the server
        has it."""
        with self._guard:
            self._adopt(self._read(), self.lost())

    def publish(
        self,
        change: Callable[[Any], Content],
        text: Callable[[Content], bytes | None] | None = None,
    ) -> Node:
        """Store ``change`` of the document, unless another holder changed it since. What others
        did to the rest of it meanwhile is kept. ``text``: see
        :func:`~tensorstash.metadata.node.put`."""
        if not self.leased:
            like, known = self._like, self.node
            return update(self.driver, self.path, change, like=like, known=known, text=text)
        with self._guard:
            for attempt in range(_TRIES):
                content = change(self.node.content)
                trailer = self._before.next(open=False, kept=self._kept)  # our own append has ended
                try:
                    with dropped(self.driver, self.path, content.zarr_format):
                        published = put(self.driver, self.path, self.node, content, trailer)
                except Conflict:
                    self._adopt(self._read(), self.lost())
                    pause(attempt)
                else:
                    self.node, self.closed = published, True
                    return published
            raise self._busy()

    def landed(self, key: str, before: tuple[Buffer, Tag], tag: Tag) -> None:
        """What was read as ``before`` is now ``tag``: to be taken back if the document turns out to
        be another's. Only where that may be: tags follow from the bytes, or :meth:`close` was not
        called and the lock's own clock stood still."""
        if tag != before[1] and (self.driver.capabilities.content_tags or not self.eager):
            with self._guard:
                self._landed.append((key, tag, before[0]))
                if self._newer is not None:  # another thread has learned of it meanwhile
                    self._take_back(self._newer)

    def adopted(self) -> None:
        """What is stored beyond the edge, by another holder, is byte for byte what we store: it is
        not to be taken back any more."""
        self._kept = True

    def lost(self) -> Conflict:
        """The error of a holder that was late."""
        key = lock_key(self.path, self.node.content)
        return Conflict(
            f"the lock of {key!r} at {self.driver.url} was lost to another writer, which changed "
            "the array since; nothing of this call is seen; do it again",
            key=key,
        )

    # -- within -------------------------------------------------------------------

    def _read(self) -> Node:
        return reread(self.driver, self.path, self._like)

    def _adopt(self, now: Node, otherwise: Exception) -> None:
        """Go on from ``now`` where only others than holders changed the document."""
        same = now.tag == self.node.tag or (
            now.trailer == self.node.trailer and _shape(now) == _shape(self.node)
        )
        if not same:
            self._newer = now
            self._take_back(now)
            raise otherwise
        self.node = now

    def _take_back(self, now: Node) -> None:
        if now.trailer.kept and not self.node.trailer.kept:
            return  # what we stored may be theirs by now, byte for byte
        while self._landed:
            key, tag, before = self._landed.pop()
            try:
                self.driver.put(key, before, if_tag=tag)
            except StashError:  # it was changed since, or cannot be reached
                continue

    def _busy(self) -> Conflict:
        key = lock_key(self.path, self.node.content)
        return Conflict(
            f"the metadata at key {key!r} is changed by others without a break", key=key
        )


def _shape(node: Node) -> object:
    return getattr(node.content, "shape", None)
