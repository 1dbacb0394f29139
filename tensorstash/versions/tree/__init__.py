"""Entries by key, sorted: documents, and tables of chunks."""

from .diff import differences
from .nodes import MOST_KEY, SIZES, TREE_PAGES, VALUES, Node, Sizes
from .tree import Changed, Tree, key_of

__all__ = [
    "MOST_KEY",
    "SIZES",
    "TREE_PAGES",
    "VALUES",
    "Changed",
    "Node",
    "Sizes",
    "Tree",
    "differences",
    "key_of",
]
