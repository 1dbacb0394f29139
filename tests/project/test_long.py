"""What is left to ``make test-long`` by its name is there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.long import PATTERNS
from tests.support.project import ROOT


@pytest.mark.long
def test_each_pattern_names_tests() -> None:
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "long or not long")
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [line for line in shown.splitlines() if "::" in line]
    stale = [pattern for pattern in PATTERNS if not any(re.search(pattern, n) for n in names)]
    assert not stale, f"no test has these names: {stale}"
