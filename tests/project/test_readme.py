"""The README does what it says for who pastes it: every block in order, in a clean folder, twice.

Python's blocks as a file each, as one file, and at Python's prompt; workers by every way to start
them. What installs runs in continuous integration only, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(README)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "sh"]

# Found by Python when it starts, in workers too.
START = "import multiprocessing, os\nmultiprocessing.set_start_method(os.environ['START'], True)\n"


def session(script: str, folder: Path, start: str, *, root: Path | None = ROOT, **env: str) -> str:
    """What one shell prints that runs ``script`` in ``folder``; it must end well. ``start``: how
    Python starts processes. ``root``: where tensorstash is, unless it is installed."""
    custom = folder.with_name(f"{folder.name}-start")
    custom.mkdir(exist_ok=True)
    (custom / "sitecustomize.py").write_text(START)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    path = os.pathsep.join(str(part) for part in (custom, root) if part is not None)
    done = subprocess.run(
        ["bash", "-s"],
        input="set -eu\n" + script,
        cwd=folder,
        env={**kept, "PYTHONPATH": path, "START": start, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout and "Error" not in done.stdout, done.stdout
    return done.stdout


def pasted(way: str, python: str) -> str:
    """Shell commands that run the blocks by ``python``; a file each, one file, or at the prompt."""
    if way == "prompt":
        # Each block ends with an empty line, as whoever pastes it ends it.
        return f"{python} -i <<'END'\n" + "\n\n".join(PYTHON) + "\nEND\n"
    texts = PYTHON if way == "files" else ["\n".join(PYTHON)]
    each = (f"cat >block{k}.py <<'END'\n{text}END\n" for k, text in enumerate(texts))
    return "".join(text + f"{python} block{k}.py\n" for k, text in enumerate(each))


@pytest.mark.parametrize(
    ("way", "start"),
    [
        ("files", "spawn"),
        ("one", "spawn"),
        ("one", "forkserver"),  # Linux's from Python 3.14 on
        ("prompt", "fork"),  # Linux's before
        ("prompt", "forkserver"),
    ],
)
def test_blocks_run_twice_as_they_are_pasted(way: str, start: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "clean"
    folder.mkdir()
    commands = pasted(way, sys.executable)
    printed = session(commands + commands, folder, start)
    assert printed.count("(32, 5)") >= 2, printed  # it is no script that does nothing


def test_no_block_needs_what_only_the_writer_has() -> None:
    # A bucket, a server, keys: nobody has those of an example.
    for code in PYTHON:
        assert not re.search(r"my-|localhost|s3://|redis://", code), code


def test_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^make ([\w-]+)", "\n".join(SHELL), re.MULTILINE)
    assert named == ["demo", "test"]
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.skipif(not os.environ.get("CI"), reason="installs: in continuous integration only")
def test_installed_as_it_says_it_runs_twice(tmp_path: Path) -> None:
    """From the clone line on, in one shell, on whatever Python's installer finds here."""
    folder = tmp_path / "clean"
    folder.mkdir()
    install = SHELL[0].replace("<this repository>", f"'{ROOT}'")
    assert install != SHELL[0]
    clone, _, after = install.partition("\n")
    base = sys._base_executable  # type: ignore[attr-defined]
    tools = f"mkdir ../tools && ln -s '{base}' ../tools/python3 && PATH=\"$PWD/../tools:$PATH\"\n"
    blocks = pasted("one", "python")
    script = tools + clone + "\n" + after + blocks + after + blocks
    # The torch that the other tests run with, not the newest.
    pin = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    printed = session(script, folder, "spawn", root=None, **pin)
    assert printed.count("(32, 5)") >= 2, printed
