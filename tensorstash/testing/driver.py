"""The contract suite for drivers: every promise of ``tensorstash.driver`` as a test.

::

    class TestMine(DriverContract):
        @pytest.fixture
        def driver(self):
            return connect("some/empty/place")
"""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from ..driver import Driver
from .driver_model import machine
from .driver_moves import DriverMoves
from .driver_parts import DriverParts
from .driver_races import DriverRaces


class DriverContract(DriverRaces, DriverParts, DriverMoves):
    """The tests that every driver must pass; subclass it with a fixture ``driver``.

    The fixture returns an empty, writable driver. What ``driver.capabilities`` does not claim is
    skipped. Override :meth:`reconnect` when
    a pickle is not the way to reach the same data again, and the numbers (``many``,
    ``rounds``, ``torn_puts``, ``examples``) where a request takes long.
    """

    examples: ClassVar[int] = 40
    """Sequences of calls to try against a ``dict``."""

    @pytest.fixture
    def driver(self) -> Driver:
        """The driver under test, new and empty for each test."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'driver'")

    def test_behaves_like_a_dict(self, driver: Driver) -> None:
        run_state_machine_as_test(
            machine(driver),
            settings=settings(max_examples=self.examples, stateful_step_count=20, deadline=None),
        )
