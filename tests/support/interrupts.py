"""Interrupts at every place of the code, one after another.

:func:`places` runs an operation once and notes each distinct place of our code that it passes: at
each call, line and return, and right before and after each function of C that our code calls, such
as ``os.open`` or ``Lock.acquire``. :func:`interrupted` runs it again and raises
``KeyboardInterrupt`` when it first comes to one of them.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import tensorstash

_ROOT = os.path.dirname(os.path.realpath(tensorstash.__file__)) + "/"
_DRIVERS = os.path.realpath(_ROOT + "drivers") + "/"
_CODECS = os.path.realpath(_ROOT + "codecs") + "/"


class Place(NamedTuple):
    """A place in our code: ``event`` is what happens there, ``name`` the function of C."""

    file: str
    line: int
    event: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.event} {self.name}".rstrip()


_names: dict[str, str | None] = {}


def _file(name: str) -> str | None:
    """A file of ours by a short name; ``None`` for all others."""
    if name not in _names:
        path = os.path.realpath(name)
        _names[name] = None
        for root, short in ((_DRIVERS, "drivers/"), (_CODECS, "codecs/"), (_ROOT, "")):
            if path.startswith(root):
                _names[name] = short + path.removeprefix(root)
                break
    return _names[name]


@contextmanager
def _watched(visit: Callable[[Place], None]) -> Iterator[None]:
    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = _file(frame.f_code.co_filename)
        if file is None:
            return None
        if event in ("call", "line", "return"):
            visit(Place(file, frame.f_lineno, event))
        return trace

    def profile(frame: FrameType, event: str, function: Any) -> None:
        if event in ("c_call", "c_return") and function not in (sys.settrace, sys.setprofile):
            file = _file(frame.f_code.co_filename)
            if file is not None:
                name = getattr(function, "__qualname__", "") or type(function).__name__
                visit(Place(file, frame.f_lineno, event, name))

    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
        sys.setprofile(None)


def places(operation: Callable[[], Any]) -> list[Place]:
    """Every place that the operation passes in this thread, in order, once each."""
    found: dict[Place, None] = {}
    with _watched(lambda place: found.setdefault(place, None)):
        operation()
    return [*found]


def interrupted(operation: Callable[[], Any], at: Place) -> bool:
    """Run it with an interrupt at its first visit of ``at``; whether that came out of it. Where it
    does not, the place was not passed this time, or is in a finalizer."""
    hit = False

    def visit(place: Place) -> None:
        nonlocal hit
        if place == at and not hit:
            hit = True
            raise KeyboardInterrupt

    before, sys.unraisablehook = sys.unraisablehook, _quiet
    try:
        with _watched(visit):
            next(_apart(operation))
    except KeyboardInterrupt:
        return True
    finally:
        sys.unraisablehook = before
    return False


def _apart(operation: Callable[[], Any]) -> Iterator[Any]:
    # Where an interrupt is raised at the line of an "except", which only a tracer can do, CPython
    # 3.11 keeps what was about to be handled until the end of a generator, or of the thread.
    yield operation()


def _quiet(told: Any) -> None:
    """Python drops what a finalizer raises, and says so; an interrupt there is what we want."""
    if not isinstance(told.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(told)


@contextmanager
def uncollected(now: bool = True) -> Iterator[None]:
    """Without the garbage collector, and with what it found before (``now``) gone: what is let go
    of here is gone at once, or a cycle keeps it."""
    if now:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def descriptors() -> list[str]:
    """What this process has open of files and folders."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith("/") and not target.startswith("/proc/"):
            found.append(target)
    return sorted(found)


def own_threads() -> list[str]:
    """Threads of ours that serve one operation, and not the whole process."""
    return sorted(
        thread.name
        for thread in threading.enumerate()
        if thread.name in ("tensorstash-lease", "tensorstash-feed")
    )


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it comes to hold; the time is a guard, not a measure."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def in_thread(work: Callable[[], Any], seconds: float = 30) -> Any:
    """What ``work`` returns, from another thread; fails where that hangs."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "another thread hangs"
    if errors:
        raise errors[0]
    return results[0]


def leftovers(folder: Path) -> list[str]:
    """Files below ``folder`` that are no values: locks, puts in progress."""
    return sorted(
        name
        for _, _, names in os.walk(folder)
        for name in names
        if name.endswith((".partial", ".lock", ".part"))
    )
