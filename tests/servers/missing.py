"""What to do when a server's program is not there."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(program: str, remedy: str) -> NoReturn:
    """Skip the test and say what to install; in continuous integration fail it."""
    reason = f"{program} is missing: {remedy}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in continuous integration every server must be there)")
    pytest.skip(reason)


def program(name: str, remedy: str) -> str:
    """The path of a program, or :func:`missing`."""
    return shutil.which(name) or missing(name, remedy)
