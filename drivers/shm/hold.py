"""Folders that are there for as long as some process holds them.

A holder has a shared ``flock`` on the folder. The kernel drops it when the last process that has
it open ends, however that ends. Whoever can lock the folder alone knows that nobody holds it, and
removes it: the last holder as it lets go, or, where that was killed, whoever comes next.

A forked child shares the open file of its parent, and so holds what its parent held until both
have closed it. Hence a hold ends by closing; unlocking would end it for both.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shutil
import threading
import time
import weakref
from contextlib import suppress

from tensorstash.cached import PerProcess
from tensorstash.driver import turn
from tensorstash.drivers.file.in_place import let_go
from tensorstash.drivers.posix.descriptor import Descriptor, opened

_PAUSE = 0.001  # seconds until whoever removes a folder has renamed it
_PATIENCE = 10.0  # seconds until whoever does not is taken for stopped
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_guards = PerProcess(threading.Lock)
_holds: weakref.WeakValueDictionary[str, Hold] = weakref.WeakValueDictionary()
_ends_in = 0  # the process whose end was arranged for


class Hold:
    """This process' hold on ``folder``; it ends when nothing refers to it, or with the process."""

    def __init__(self, folder: str) -> None:
        """Made by :func:`take`."""
        self.folder = folder
        self._file = file = _open_held(folder)
        self.inode = os.fstat(file.fileno()).st_ino
        weakref.finalize(self, _release, file, folder).atexit = False  # see _arrange_end

    def release(self) -> None:
        """Let go, and remove the folder when nobody else holds it. Once is enough."""
        _release(self._file, self.folder)


CONTENT = "values"
"""All that may be in such a folder: one that has something else in it is not ours to remove."""


def take(folder: str, beside: str, prefix: str) -> Hold:
    """Hold ``folder``, which is made when nobody holds it: it is empty then. What this user has
    under names with ``prefix`` ``beside`` it, and nobody holds, is removed. Raises ``OSError``:
    ``PermissionError`` when the folder belongs to somebody else, ``FileExistsError`` when
    something else is in it."""
    with turn(_guards.here()):
        found = _holds.get(folder)
        if found is None:
            _arrange_end()
            _sweep(beside, prefix)
            found = _holds[folder] = Hold(folder)
        return found


def _sweep(folder: str, prefix: str) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [*entries]:
            if entry.name.startswith(prefix):
                _remove_unheld(entry.path)


def _open_held(folder: str) -> Descriptor:
    gives_up = time.monotonic() + _PATIENCE
    while time.monotonic() < gives_up:
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        try:
            file = Descriptor(folder, _DIRECTORY)
        except FileNotFoundError:
            continue  # removed since
        held = False
        try:
            held = _share(file.fileno(), folder)
            if held:
                return file
        finally:
            if not held:
                file.close()  # now, for a notebook keeps what it shows of an error
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)


def _share(fd: int, folder: str) -> bool:
    """Lock the open folder, empty or held by others, with them; ``False``: it has to be opened
    again."""
    if os.fstat(fd).st_uid != os.geteuid():
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), folder)
    if _lock(fd, fcntl.LOCK_EX) and os.listdir(fd):
        if not _remove(fd, folder):  # left by holders that were killed
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), folder)
        return False
    # The folder may have been removed between its opening and its locking.
    return _lock(fd, fcntl.LOCK_SH) and _is_at(fd, folder)


def _release(file: Descriptor, folder: str) -> None:
    with suppress(OSError, ValueError):
        file.fileno()  # ValueError: it was released before
        let_go(folder)  # or files that are kept open would keep their memory
        file.close()
        _remove_unheld(folder)


def _remove_unheld(folder: str) -> None:
    with suppress(OSError), opened(folder, _DIRECTORY) as file:
        fd = file.fileno()
        mine = os.fstat(fd).st_uid == os.geteuid()
        if mine and _lock(fd, fcntl.LOCK_EX):
            _remove(fd, folder)


def _remove(fd: int, folder: str) -> bool:
    """Remove a folder that is locked alone: first its name, so that another may have it at once.
    Whether it was one of ours."""
    if not {*os.listdir(fd)} <= {CONTENT}:
        return False
    if _is_at(fd, folder):
        condemned = f"{folder}.{os.getpid()}-{time.time_ns():x}.gone"
        os.rename(folder, condemned)
        shutil.rmtree(condemned, ignore_errors=True)
    return True


def _lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, folder: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


# -- the end of the process ----------------------------------------------------------------------


def _arrange_end() -> None:
    """Let go when this process ends, after its own children have ended. Children of
    multiprocessing end without ``atexit``, so it is asked; others end with nothing else."""
    global _ends_in
    if _ends_in == os.getpid():
        return
    from multiprocessing import util  # costs milliseconds, so not before it is needed

    if not _ends_in:
        util.register_after_fork(Hold, _arrange_again)
        atexit.register(_end_unarranged)
    util.Finalize(None, _end, exitpriority=-1000)
    _ends_in = os.getpid()


def _arrange_again(_: object) -> None:
    # A forked child of multiprocessing has forgotten what its parent arranged.
    _arrange_end()


def _end_unarranged() -> None:
    if _ends_in != os.getpid():
        _end()


def _end() -> None:
    for hold in [*_holds.values()]:
        hold.release()
