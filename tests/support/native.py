"""Reads with the compiled kernel and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tensorstash.engine import native
from tensorstash.engine.native import library
from tensorstash.errors import StashError
from tests.support.oracle import same

needs_kernel = pytest.mark.skipif(not native.available(), reason=native.status())


@contextmanager
def turned(on: bool) -> Iterator[None]:
    before = library.enabled
    library.enabled = on
    try:
        yield
    finally:
        library.enabled = before


def outcome(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or its error: what it is, and says."""
    try:
        return call()
    except StashError as error:
        return type(error), str(error), vars(error).get("key"), vars(error).get("chunk")


def same_outcome(one: Any, other: Any) -> None:
    """Two of :func:`outcome` are alike: the same values, or the same error."""
    if isinstance(one, tuple) or isinstance(other, tuple):
        assert one == other
    else:
        same(one, other)
