"""One process' use of an fsspec filesystem: made on first use, tried again when it may help."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.dirfs import DirFileSystem

from tensorstash.driver import Traffic, turn
from tensorstash.drivers import failures, loop
from tensorstash.drivers.file import foreign
from tensorstash.drivers.file.driver import FileDriver
from tensorstash.drivers.fsspec.options import Recipe
from tensorstash.errors import Invalid, StashError, TimedOut, Unavailable, Unsupported

T = TypeVar("T")
_log = logging.getLogger("tensorstash")
_FIRST_PAUSE = 0.1
_CLOSING_SECONDS = 2.0
_UNKNOWN: Any = object()


class FsspecClient:
    """A filesystem of this process' own, and what went through it."""

    def __init__(self, recipe: Recipe, timeout: float, serial: bool) -> None:
        self._recipe = recipe
        self._timeout = timeout
        self._guard = threading.RLock()
        self._serial = serial
        self._turn = threading.RLock()
        self._opened: tuple[Any, str] | None = None
        self._folder: Any = _UNKNOWN
        self.traffic = Traffic()

    def open(self) -> tuple[Any, str]:
        """The filesystem and the path in it (without a ``/`` at its end)."""
        with turn(self._guard):
            if self._opened is None:
                try:
                    fs, path = self._recipe.open()
                except StashError:
                    raise
                except ImportError as error:
                    # fsspec's own sentence names the package as its cause does, not itself.
                    name = error.name or getattr(error.__cause__, "name", None)
                    need = f"the package {name!r}: pip install {name}" if name else str(error)
                    raise Unsupported(f"{self._recipe.place!r} needs {need}") from error
                except (TypeError, ValueError) as error:
                    raise Invalid(
                        f"{self._recipe.place!r} cannot be opened with these options: "
                        f"{type(error).__name__}; see the exception it was raised from"
                    ) from error
                # Kept listings would hide what others store, and what other threads do. (The
                # filesystems that allow one call at a time forget theirs before each look.)
                for layer in () if self._serial else _layers(fs):
                    if hasattr(layer, "dircache"):
                        layer.dircache.use_listings_cache = False
                if fs.async_impl:
                    loop.current().at_exit(partial(_leave, weakref.ref(self)))
                self._opened = fs, fs._strip_protocol(path).rstrip("/")
            return self._opened

    @property
    def folder(self) -> FileDriver | None:
        """The folder of this machine that this is, if it is one."""
        fs, path = self.open()
        if self._folder is _UNKNOWN:
            self._folder = foreign.of_filesystem(fs, path)
        return self._folder  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Drop the filesystem; its own finalizers close what it had open."""
        self._opened = None

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """A method of the filesystem, within the time limit where it can be held to one."""
        fs, _ = self.open()
        inner = getattr(fs, "_" + name, None) if _layers(fs)[-1].async_impl else None
        if inner is not None:
            return sync(fs.loop, inner, *args, timeout=self._timeout, **options)
        with turn(self._turn) if self._serial else nullcontext():
            if self._serial and name in ("info", "ls"):
                fs.invalidate_cache()
            return getattr(fs, name)(*args, **options)

    def opens_files(self) -> bool:
        """Whether ``cat_file`` opens a file and reads from it as far as it is told."""
        kind = type(_layers(self.open()[0])[-1])
        return kind.cat_file is AbstractFileSystem.cat_file

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """What a coroutine of the filesystem's loop returns, within the time limit."""
        fs, _ = self.open()
        return sync(fs.loop, work, fs, *args, timeout=self._timeout)  # type: ignore[no-any-return]

    def ask(self, verb: str, key: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns; ``None`` when nothing is stored there for certain. What may
        pass is tried again until the time is up; everything else raises one of our errors."""
        end = time.monotonic() + self._timeout
        pause, attempt = _FIRST_PAUSE, 1
        while True:
            begun = time.perf_counter()
            try:
                answer = work()
            except StashError:
                raise
            except Exception as error:
                absent = failures.is_absence(error)
                self._note(verb, key, attempt, "absent" if absent else type(error).__name__, begun)
                if absent:
                    return None
                url = self._recipe.place
                place = url + key if url.endswith("/") else f"{url}/{key}"
                failed = failures.failure(verb, place, key, self._recipe.names[0], error)
                passing = isinstance(failed, Unavailable | TimedOut)
                if not passing or time.monotonic() + pause > end or attempt > 4:
                    raise failed from error
            else:
                self._note(verb, key, attempt, "ok", begun, answer)
                return answer
            time.sleep(random.uniform(pause / 2, pause))
            pause, attempt = pause * 3, attempt + 1

    def sent(self, nbytes: int) -> None:
        """Count bytes stored."""
        with turn(self._guard):
            self.traffic.bytes_written += nbytes

    def _note(
        self, verb: str, key: str, attempt: int, outcome: str, begun: float, answer: Any = None
    ) -> None:
        nbytes = len(answer) if isinstance(answer, bytes | memoryview | bytearray) else 0
        with turn(self._guard):
            self.traffic.requests += 1
            self.traffic.retries += attempt > 1
            self.traffic.bytes_read += nbytes
        if _log.isEnabledFor(logging.DEBUG):
            spent = 1e3 * (time.perf_counter() - begun)
            _log.debug(
                "%s %s: %s, %d bytes, %.1f ms, attempt %d",
                verb,
                key,
                outcome,
                nbytes,
                spent,
                attempt,
            )


def _layers(fs: Any) -> list[Any]:
    """The filesystem, and those below that it only changes the paths of."""
    layers = [fs]
    while isinstance(fs, DirFileSystem):
        layers.append(fs := fs.fs)
    return layers


async def _leave(client: weakref.ref[FsspecClient]) -> None:
    """At the end of the program, while the loop still runs, in which connections close."""
    if (alive := client()) is not None:
        before = asyncio.all_tasks()
        alive.forget()
        # Finalizers of filesystems close their sessions in tasks that nobody else waits for.
        if closing := asyncio.all_tasks() - before:
            await asyncio.wait(closing, timeout=_CLOSING_SECONDS)
        await asyncio.sleep(0)
