"""A process for each library, which does one thing at a time, when it is told to.

Libraries for training start threads, take names in shared memory and set global switches: in one
process they would disturb each other. A child keeps what it has opened from one call to the next.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")
State = dict[Any, Any]
"""What a child keeps between calls; each task gets it first."""


class Failed(Exception):
    """A library did not do what it was told to; says what it said."""


class Child:
    """One process, held to ``cores`` cores: that is the bound for whatever threads it starts."""

    def __init__(self, log: Path, cores: int, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "numpy"])  # else every child spends seconds on it
        self._pipe, other = context.Pipe()
        arguments = (other, str(log), cores, dict(environment or {}))
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        other.close()

    def call(self, task: str, *arguments: Any, seconds: float = 600) -> Any:
        """What ``module:function(state, *arguments)`` answers in the child."""
        self.send(task, *arguments)
        return self.answer(seconds)

    def send(self, task: str, *arguments: Any) -> None:
        """Let it begin; :meth:`answer` waits for the end."""
        try:
            self._pipe.send((task, arguments))
        except OSError as error:
            raise Failed(f"its process is gone ({self._process.exitcode})") from error

    def answer(self, seconds: float = 600) -> Any:
        """What the task that was sent last answers."""
        try:
            if not self._pipe.poll(seconds):
                self.close()
                raise Failed(f"hangs: nothing came for {seconds:.0f} s")
            done, what = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Failed(f"crashed ({_ended(self._process.exitcode)})") from error
        if not done:
            raise Failed(what)
        return what

    def close(self) -> None:
        """End the process, and those that it has started."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive() and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit {code}"


def _serve(pipe: Connection, log: str, cores: int, environment: dict[str, str]) -> None:
    os.setpgid(0, 0)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ.update({name: str(cores) for name in THREADS} | environment)
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(cores)
    state: State = {"cores": cores}
    while True:
        try:
            task, arguments = pipe.recv()
        except (EOFError, OSError):
            break
        module, name = task.split(":")
        try:
            answer = True, getattr(importlib.import_module(module), name)(state, *arguments)
        except Exception as error:  # a peer's failure is a finding, not the end of the run
            line = (str(error).strip().splitlines() or [""])[0]
            first = "".join(c for c in line if c.isprintable())
            answer = False, f"{type(error).__name__}: {first}"[:160]
        sys.stdout.flush()
        pipe.send(answer)
    sys.stdout.flush()
    os._exit(0)  # not one of the libraries' exit handlers is worth waiting for
