"""Settings shared by every test: the Hypothesis profiles, and what is said of skipped tests."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy.random  # noqa: F401  before torch's workers do: finalizers break it there on 3.11
import pytest
from hypothesis import HealthCheck, settings

from tensorstash.engine.native import library

# Fixtures are found by name, here.
from tests.servers.fixtures import (  # noqa: F401
    certificates,
    http_server,
    proxy,
    rclone_s3,
    redis_cluster,
    redis_server,
    redis_tls,
    redis_url,
    rgw,
    s3,
    valkey_server,
)
from tests.support.long import LONG
from tests.torch.worker_ends import collect_left_workers, quick_end  # noqa: F401

# Deadlines measure the machine, not the code; slow generation is bounded by max_examples.
_QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

_FIXED = {"derandomize": bool(os.environ.get("CI")), "print_blob": True}

settings.register_profile("default", max_examples=50, **_FIXED, **_QUIET)
settings.register_profile("campaign", max_examples=100, **_FIXED, **_QUIET)  # make test-long
settings.register_profile("matrix", max_examples=10, derandomize=True, print_blob=True, **_QUIET)
settings.register_profile("long", max_examples=5000, **_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is long by its name, and what Hypothesis drives."""
    for item in items:
        if LONG.search(item.nodeid):
            item.add_marker(pytest.mark.long)
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.examples)


def pytest_collection_finish() -> None:
    """Thousands of tests are a million objects, which each ``gc.collect()`` would visit: 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    collect_left_workers()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line that says how many tests were skipped, and why."""
    reasons = Counter(why(report) for report in terminalreporter.stats.get("skipped", ()))
    if reasons:
        grouped = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{reasons.total()} skipped ({grouped})")


def why(report: Any) -> str:
    """The reason of a skipped test or module, on one line."""
    _, _, reason = report.longrepr
    return " ".join(reason.removeprefix("Skipped: ").split())


@pytest.fixture(scope="module", params=["native", "python"])
def both_paths(request: Any) -> Iterator[None]:
    """For a module's tests, that each runs with the compiled kernel and without it."""
    before = library.enabled
    library.enabled = request.param == "native"
    yield
    library.enabled = before


@pytest.fixture(params=[3, 2], ids=["v3", "v2"])
def zarr_format(request: Any) -> Any:
    return request.param
