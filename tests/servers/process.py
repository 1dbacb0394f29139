"""A server program that lives no longer than the test process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Linux kills the program when the thread that started it ends: pytest interrupted or killed leaves
# no orphan. Elsewhere the finalizer has to do. `-I -S`: this interpreter starts in 10 ms.
_LAUNCHER = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the tests are gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""

_starters: dict[int, ThreadPoolExecutor] = {}


def _in_lasting_thread(work: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """``work()`` in a thread that ends with the process, whichever thread asks for it."""
    starter = _starters.setdefault(os.getpid(), ThreadPoolExecutor(1, "test-servers"))
    return starter.submit(work).result()


class Process:
    """A running program: ready when made, gone when closed or when the test process is gone.

    ``command`` is what to run (in ``folder``, a fresh temporary one by default), ``ready`` says
    whether it serves. Raises ``RuntimeError`` with the end of its log if it ends early or is not
    ready within ``seconds``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        ready: Callable[[], bool],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        seconds: float = 30,
    ) -> None:
        self.command = [str(word) for word in command]
        self.folder = folder or new_folder()
        self.log = self.folder / f"{Path(self.command[0]).name}.log"
        self._ready = ready
        self._environment = {**os.environ, **(environment or {})}
        self._seconds = seconds
        self._running: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, _finish, self._running, self.folder, os.getpid())
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the program as last started."""
        return self._running[-1].pid

    @property
    def alive(self) -> bool:
        """Whether the program runs."""
        return bool(self._running) and self._running[-1].poll() is None

    def start(self) -> None:
        """Start the program, on the same port and folder as before; return when it serves."""
        end = time.monotonic() + self._seconds
        self._running[:] = [_in_lasting_thread(self._popen)]
        while not (self.alive and self._ready()):
            if not self.alive or time.monotonic() > end:
                ended = f"ended with {self._running[-1].poll()}" if not self.alive else "not ready"
                self.kill()
                raise RuntimeError(f"{' '.join(self.command)}: {ended}; its log:\n{self.tail()}")
            time.sleep(0.02)

    def _popen(self) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *self.command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops us in order
            )

    def stop(self) -> None:
        """Ask the program to end, and wait until it has; ``start`` starts it again."""
        _end(self._running, signal.SIGTERM)

    def kill(self) -> None:
        """``kill -9``; ``start`` starts the program again."""
        _end(self._running, signal.SIGKILL)

    def restart(self) -> None:
        """``kill -9`` and start again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let the program stand still: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen program go on."""
        os.kill(self.pid, signal.SIGCONT)

    def tail(self, lines: int = 20) -> str:
        """The last lines of what the program wrote."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Kill the program and remove its folder."""
        self._finalizer()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def new_folder() -> Path:
    """A fresh temporary folder, with a path short enough for a unix socket in it."""
    return Path(tempfile.mkdtemp(prefix="stash-"))


def _end(running: list[subprocess.Popen[bytes]], how: signal.Signals) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _finish(running: list[subprocess.Popen[bytes]], folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has a copy of us, but the server is not its own
        _end(running, signal.SIGKILL)
        running.clear()
        shutil.rmtree(folder, ignore_errors=True)
