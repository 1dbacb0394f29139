"""Contract suites that any driver or codec can run: subclass one and hand it to pytest."""

from __future__ import annotations

from .codec import CodecContract
from .counting import CountingDriver, FailingDriver
from .driver import DriverContract

__all__ = ["CodecContract", "CountingDriver", "DriverContract", "FailingDriver"]
