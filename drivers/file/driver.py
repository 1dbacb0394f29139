"""Keys to regular files below one folder."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, islice
from stat import S_ISLNK
from typing import Any, ClassVar, Literal, cast

from tensorstash.driver import (
    Buffer,
    Capabilities,
    Changed,
    Request,
    Span,
    Tag,
    check_key,
    check_prefix,
    check_size,
    flat,
)
from tensorstash.drivers.file import errors, reading, removal, writing
from tensorstash.drivers.file.in_place import InPlaceFiles, let_go
from tensorstash.drivers.file.links import FilesBelow, Links, leads_to_folder, loops
from tensorstash.drivers.posix import flock, partial
from tensorstash.drivers.posix.descriptor import Descriptor, opened
from tensorstash.errors import Denied, DriverError, Invalid, StashError
from tensorstash.urls import file_url

# Not blocking matters for one thing only: a FIFO in a hostile tree must not hang its reader. Links
# are not followed, so that those there are can be looked at, at no cost to files that are none.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
_SCRATCH = 65536
_SCRATCH_KEPT = 32 << 20
_local = threading.local()
_WHOLE = Span(0)
_TOGETHER = 1000  # files that are deleted under one lock


class FileDriver(InPlaceFiles, FilesBelow):
    """Keys are paths of files below ``root``; safe between threads, processes and, where
    the file system offers ``flock``, hosts.

    A tag is ``(inode, modification time in ns, size)``. ``list_dir`` may name a folder that
    no longer holds any key: directories go with ``delete_prefix``, not with ``delete``.
    """

    scheme = "file"
    capabilities = Capabilities(local=True, maps=True, in_place=True)
    _advice: ClassVar[Mapping[int, str]] = errors.ADVICE

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        fsync: bool = False,
        links: Literal["anywhere", "inside"] = "anywhere",
    ) -> None:
        """See ``connect``; a relative ``root`` is taken from the current directory, now."""
        path = os.fspath(root)
        if not path or "\0" in path:
            raise Invalid(f"{path!r} names no directory; give a path like file:///data/x")
        if links not in ("anywhere", "inside"):
            raise Invalid(f"links is 'anywhere' or 'inside', not {links!r}")
        self.root = os.path.abspath(path)
        self.fsync = fsync
        self._base = self.root.rstrip("/") + "/"
        self._links = Links(self.root, links == "inside")
        self._writes = False  # until it has put something; before, it removes nothing either

    @property
    def url(self) -> str:
        """``file:///abs/path``; of the path, only ``%`` is encoded."""
        return file_url(self.root)

    # -- reading ------------------------------------------------------------------

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value (or bytes ``span`` of it) as ``bytes``, with the tag of that version."""
        found = self.get_ranges(key, (_WHOLE if span is None else span,))
        return None if found is None else (found[0][0], found[1])

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Several parts of one version, all from one open file; :class:`Changed` when that
        is not version ``tag``."""
        found = self._open(key)
        if found is None:
            if tag is not None:
                raise Changed(key)
            return None
        file, status = found
        with file:
            try:
                version = writing.tag_of(status)
                if tag is not None and version != tag:
                    raise Changed(key)
                fd, size = file.fileno(), status.st_size
                return [reading.read(fd, *span.resolve(size)) for span in spans], version
            except OSError as error:
                raise self._failed("read", key, error) from error

    def get_into(self, key: str, out: memoryview) -> int | None:
        """Read a whole value straight into ``out``; returns its size, or ``None``."""
        found = self._descriptor(key)
        if found is None:
            return None
        file, linked = found
        with file:
            try:
                fd = file.fileno()
                size = 0 if linked else reading.read_attempt(fd, out)
                # A value that fills `out`, or ends where a file does, needs no look at what it is.
                if 0 < size <= len(out) and (size == len(out) or size == reading.end(fd)):
                    return size
                status = os.fstat(fd)
                if not reading.is_value(status, fd):
                    return None
                if status.st_size > len(out):
                    return status.st_size
                # A short read is not yet the end: a bad sector further on, a signal or the
                # kernel's 2 GiB cap look the same.
                done = min(size, status.st_size)
                if done:
                    os.lseek(fd, done, os.SEEK_SET)
                return done + reading.read_into(fd, out[done : status.st_size])
            except OSError as error:
                raise self._failed("read", key, error) from error

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """``(i, value)`` in order; whole values share one buffer, good until the next."""
        # Taken from the thread while in use, so that two readers in one thread never share it;
        # fresh memory for every call would cost a page fault each 4 KiB.
        scratch: memoryview = getattr(_local, "scratch", None) or memoryview(bytearray(_SCRATCH))
        _local.scratch = None
        for i, (key, span, _, most) in enumerate(requests):
            if span is not None:
                yield i, self.get(key, span)
                continue
            room = scratch if most is None or most >= len(scratch) else scratch[:most]
            size = self.get_into(key, room)
            if size is not None:
                check_size(key, size, most)
                if size > len(scratch):
                    value = self._read_whole(key, scratch, most)
                    scratch = scratch if value is None else memoryview(value.obj)
                    yield i, value
                    continue
            yield i, None if size is None else scratch[:size]
        # Not where the caller stops midway: it may still hold what was yielded last.
        if len(scratch) <= _SCRATCH_KEPT:
            _local.scratch = scratch

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """``(i, (value, tag))`` in order; how long a value is, is known before it is read."""
        for i, (key, span, unless, most) in enumerate(requests):
            if unless is not None and self.tag(key) == unless:
                yield i, (b"", unless)
                continue
            found = self._open(key)
            if found is None:
                yield i, None
                continue
            file, status = found
            with file:
                size = status.st_size
                if span is None:
                    check_size(key, size, most)
                part = (_WHOLE if span is None else span).resolve(size)
                try:
                    value = reading.read(file.fileno(), *part)
                except OSError as error:
                    raise self._failed("read", key, error) from error
            yield i, (value, writing.tag_of(status))

    def tag(self, key: str) -> Tag | None:
        """The tag of the stored version, from one ``stat``."""
        path, linked = self._base + check_key(key), False
        try:
            if self._links.inside:
                self._refuse_outside("read", key)
            status = os.stat(path, follow_symlinks=False)
            linked = S_ISLNK(status.st_mode)
            if linked:
                status = os.stat(self._target(key))
            return writing.tag_of(status) if reading.is_value(status, path) else None
        except Denied:
            raise
        except removal.ABSENT:
            self._absent(key, linked)
            return None
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error

    def modified(self, key: str) -> float | None:
        """When the file was last written."""
        return None if (tag := cast(Any, self.tag(key))) is None else tag[1] / 1e9

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store ``value`` atomically and return its tag; directories are made as needed."""
        if if_absent and if_tag is not None:
            raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
        path = self._base + check_key(key)
        folder, _, name = key.rpartition("/")
        self._refuse_ours(key, name)
        above = folder.rpartition("/")[0]
        if above:  # the folder itself is opened without following it
            self._refuse_linked(key, above)
        data = flat(value)
        try:
            top = "/" not in key
            tag = writing.put(
                path, data, key, self.fsync, if_absent=if_absent, if_tag=if_tag, top=top
            )
            self._writes = True
            return tag
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            raise self._unwritten("write", key, error) from error

    def clear_for(self, key: str) -> None:
        """For who writes ``key`` by other means: what is there for a link goes, and where the way
        there leads through one, :class:`~tensorstash.errors.Denied`."""
        self._refuse_linked(key, key.rpartition("/")[0])
        if os.path.islink(self._base + key):
            self.delete(key)

    def delete(self, key: str) -> None:
        """Remove the file, or the link. Its directory stays: removing that races with other
        writers."""
        self.delete_many((key,))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete each key; those beside each other under one lock."""
        apart = self._apart(keys)
        for folder, some in groupby(apart, lambda split: split[0][0]):
            while names := {name: key for (_, _, name), key in islice(some, _TOGETHER)}:
                try:
                    removal.unlink(self.root, folder, names, self.fsync)
                except DriverError:
                    raise
                except (OSError, UnicodeError) as error:
                    self._undeleted(next(iter(names.values())), error)

    def _apart(self, keys: Iterable[str]) -> Iterator[tuple[tuple[str, str, str], str]]:
        for key in keys:
            split = check_key(key).rpartition("/")
            self._refuse_ours(key, split[2])
            let_go(self._base + key)
            yield split, key

    def delete_prefix(self, prefix: str) -> None:
        """Remove the directory ``prefix`` and all below it; of the root, only what is in it. A
        link is removed, and nothing in its target. What others write meanwhile stays, in its
        directories."""
        if not (prefix and self.remove_link(prefix)):
            self._clear(prefix, everything=True)

    def prune(self, prefix: str) -> None:
        """Remove what killed writers left below ``prefix``, and the directories that hold nothing;
        not the root."""
        self._clear(check_prefix(prefix), everything=False)

    def remove_link(self, prefix: str) -> bool:
        """Remove the symbolic link that stands for the directory ``prefix``."""
        folder, _, name = check_prefix(prefix)[:-1].rpartition("/")
        if not name:
            return super().remove_link(prefix)
        try:
            return removal.unlink_link(self.root, folder, name, self.fsync)
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            self._undeleted(prefix, error)
            return False
        finally:
            self._links.forget()

    def linked(self, prefix: str) -> str | None:
        """The first symbolic link on the way to the directory ``prefix``."""
        try:
            link = self._links.judge(check_prefix(prefix)[:-1]).link
        except (OSError, UnicodeError) as error:
            raise self._failed("look at", prefix, error) from error
        return None if link is None else link[len(self._base) :] + "/"

    def kept(self, key: str) -> str | None:
        """Names of locks, and of puts in progress; those of the directories above the root are
        listed by nobody here, but for its own."""
        names = [os.path.basename(self.root), *key.split("/")]
        return next((name for name in names if name and partial.is_ours(name)), None)

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, in no order."""
        return self._walk(check_prefix(prefix))

    def taken(self, prefix: str = "") -> Iterator[str]:
        """Also links that lead nowhere, and what is no file."""
        return self._walk(check_prefix(prefix), odd=True)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """``(key, bytes stored)`` of every key below ``prefix``."""
        for key in self.list(prefix):
            try:
                yield key, os.stat(self._base + key).st_size
            except FileNotFoundError:  # deleted since it was listed
                continue
            except OSError as error:
                raise self._failed("look at", key, error) from error

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Files and directories directly below ``prefix``, from one directory scan."""
        keys: list[str] = []
        folders: list[str] = []
        for name, is_folder in self._scan(check_prefix(prefix)):
            (folders if is_folder else keys).append(name)
        return sorted(keys), sorted(folders)

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> flock.LockFile:
        """Hold the name ``key`` alone among all processes; released when its holder dies.

        Waits at most ``timeout`` seconds (``None``: for ever), then raises
        :class:`~tensorstash.errors.TimedOut`, which names the holder. Readers and puts are not
        held up.
        """
        # A file of its own, since a flock belongs to an inode: the value's inode changes
        # while its holder publishes, and the directory's is what every conditional put takes.
        _, folder, name = self._place(key)
        path = os.path.join(folder, partial.lock_name(name))
        take = functools.partial(self._take_lock, path, folder, key)
        return flock.LockFile(path, key, self.url, timeout, take)

    # -- within -------------------------------------------------------------------

    def _clear(self, prefix: str, *, everything: bool) -> None:
        let_go(self._base + prefix)
        try:
            removal.clear(self.root, prefix[:-1], self.fsync, everything=everything)
        except DriverError:
            raise
        except (OSError, UnicodeError) as error:
            raise self._unwritten("delete", prefix, error) from error

    def _open(self, key: str) -> tuple[Any, os.stat_result] | None:
        """The regular file at ``key``, open, and what it is."""
        found = self._descriptor(key)
        if found is None:
            return None
        file, _ = found
        try:
            status = os.fstat(file.fileno())
            if reading.is_value(status, file.fileno()):
                return file, status
        except OSError as error:
            raise self._failed("read", key, error) from error
        return None

    def _read_whole(self, key: str, scratch: memoryview, most: int | None) -> memoryview | None:
        """A value in ``scratch``, or in larger memory; as long as it was when it was opened."""
        found = self._open(key)
        if found is None:
            return None
        file, status = found
        with file:
            size = status.st_size
            check_size(key, size, most)
            if size > len(scratch):
                scratch = memoryview(bytearray(max(size, 2 * len(scratch))))
            try:
                return scratch[: reading.read_into(file.fileno(), scratch[:size])]
            except OSError as error:
                raise self._failed("read", key, error) from error

    def _descriptor(self, key: str) -> tuple[Any, bool] | None:
        """Whatever is at ``key``, open, and whether a link led there."""
        path, linked = self._base + check_key(key), False
        try:
            if self._links.inside:
                self._refuse_outside("read", key)
            try:
                return opened(path, _READ), False
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            linked = True
            return opened(self._target(key), _READ & ~os.O_NOFOLLOW), True
        except Denied:
            raise
        except removal.ABSENT:
            self._absent(key, linked)
            return None
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error

    def _absent(self, key: str, linked: bool) -> None:
        """Nothing is at ``key``; unless a link on the way there, or there (``linked``), leads
        nowhere, and then it is not known what is."""
        try:
            if not linked and self._links.judge(key.rpartition("/")[0]).link is None:
                return
            link = self._links.dangling(key)
        except (OSError, UnicodeError) as error:
            raise self._failed("read", key, error) from error
        if link is not None:
            raise DriverError(
                f"cannot read {self._base + key!r}: the symbolic link {link!r} leads nowhere; "
                "bring back what it leads to, or remove the link",
                key=key,
                driver=self.scheme,
            )

    def _target(self, key: str) -> str:
        """Where the link at ``key`` leads, if it may be read through."""
        path = self._base + key
        if self._links.inside and self._links.is_outside(path):
            raise self._outside("read", key, path)
        return path

    def _refuse_outside(self, verb: str, key: str) -> None:
        folder = key.rpartition("/")[0]
        # Asked again before it is refused: the link may have been taken away since.
        if self._links.judge(folder).outside:
            self._links.forget()
            verdict = self._links.judge(folder)
            if verdict.outside:
                raise self._outside(verb, key, verdict.link)

    def _outside(self, verb: str, key: str, link: str | None) -> Denied:
        return Denied(
            f"cannot {verb} {self._base + key!r}: the symbolic link {link!r} leads out of "
            f"{self.root!r}, which links='inside' refuses; put a copy in its place, or open "
            "without that option",
            key=key,
            driver=self.scheme,
        )

    def _place(self, key: str) -> tuple[str, str, str]:
        """``(path, directory, name)`` of a key that may be written."""
        path = self._base + check_key(key)
        within, _, name = key.rpartition("/")
        self._refuse_ours(key, name)
        self._refuse_linked(key, within)
        return path, path.rpartition("/")[0] or "/", name

    def _refuse_ours(self, key: str, name: str) -> None:
        if name[0] == "." and partial.is_ours(name):
            why = f"{self.scheme}:// keeps for itself; use another"
            raise Invalid(f"key {key!r} is a name that {why}")

    def _refuse_linked(self, key: str, folder: str) -> None:
        try:
            link = self._links.judge(folder).link
            if link is not None:  # asked again, as above
                self._links.forget()
                link = self._links.judge(folder).link
        except (OSError, UnicodeError) as error:
            raise self._failed("write", key, error) from error
        if link is not None:
            raise self._through("write", key, link)

    def _through(self, verb: str, key: str, link: str) -> Denied:
        return Denied(
            f"cannot {verb} {self._base + key!r}: {link!r} is a symbolic link, and what it leads "
            "to is not written through it; open that place itself, or replace the link with "
            "overwrite=True",
            key=key,
            driver=self.scheme,
        )

    def _unwritten(self, verb: str, key: str, error: OSError | UnicodeError) -> StashError:
        """What to raise for an error that may come from a link that was not followed."""
        self._links.forget()
        if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.ELOOP):
            with suppress(OSError):
                link = self._links.judge(key.rstrip("/").rpartition("/")[0]).link
                if link is not None:
                    return self._through(verb, key, link)
        return self._failed(verb, key, error)

    def _undeleted(self, key: str, error: OSError | UnicodeError) -> None:
        """Raise for ``error``, unless it says that there was nothing to delete."""
        failed = self._unwritten("delete", key, error)
        if isinstance(failed, Denied) or not isinstance(error, removal.ABSENT):
            raise failed from error

    def _take_lock(self, path: str, folder: str, key: str) -> Descriptor | None:
        try:
            while True:
                try:
                    return flock.take_file(path, wait=False)
                except FileNotFoundError:
                    writing.make_folder(folder, self.fsync)
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOLCK:
                raise writing.no_lock(path) from error
            raise self._failed("lock", key, error) from error

    def _walk(self, prefix: str, odd: bool = False) -> Iterator[str]:
        below = [prefix]
        while below:
            prefix = below.pop()
            for name, is_folder in self._scan(prefix, odd):
                if is_folder:
                    below.append(f"{prefix}{name}/")
                else:
                    yield prefix + name

    def _scan(self, prefix: str, odd: bool = False) -> Iterator[tuple[str, bool]]:
        """``(name, is a directory)`` of what lies directly below ``prefix``."""
        try:
            if prefix and self._links.inside:
                self._refuse_outside("list", prefix)
            left = []
            with os.scandir(self._base + prefix) as entries:
                for entry in entries:
                    name = entry.name
                    if "\\" in name:
                        continue  # no key may hold it
                    if entry.is_symlink() and loops(entry.path):
                        if odd:
                            yield name, False
                        continue
                    if leads_to_folder(entry):
                        yield name, True
                    elif name[0] == "." and partial.is_ours(name):
                        left.append(name)
                    elif odd or entry.is_file():
                        yield name, False
            if left and self._writes:
                removal.sweep(self.root, prefix[:-1], left)
        except Denied:
            raise
        except removal.ABSENT:
            self._absent(prefix[:-1], linked=True)
        except (OSError, UnicodeError) as error:
            raise self._failed("list", prefix, error) from error

    def _failed(self, verb: str, key: str, error: OSError | UnicodeError) -> DriverError | Invalid:
        if isinstance(error, UnicodeError):
            return Invalid(f"key {key!r} cannot be a file name; it has half a surrogate pair")
        return errors.failure(verb, self._base + key, key, error, self.scheme, self._advice)
