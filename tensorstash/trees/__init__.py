"""Whole trees of arrays, groups and records: what is there, and what is done to all of it."""

from .deleting import delete
from .entry import Entry
from .looking import exists, ls, walk

__all__ = ["Entry", "delete", "exists", "ls", "walk"]
