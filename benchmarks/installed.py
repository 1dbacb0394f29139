"""Contestants that need packages: whether they are here, and in which versions."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import ClassVar


class Installed:
    """Whoever needs ``packages``."""

    packages: ClassVar[tuple[str, ...]]

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                return f"{package} does not import: {str(error).splitlines()[0]}"
        return ""

    @property
    def version(self) -> str:
        """The installed versions."""
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.packages)
