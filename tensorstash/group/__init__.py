"""Groups: named children below a path."""

from .create import create_group, open_group
from .group import Group

__all__ = ["Group", "create_group", "open_group"]
