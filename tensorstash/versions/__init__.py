"""Versions of a tree of arrays: commits, branches and tags over objects that never change."""

from .publish.diff import ArrayDifference, Difference
from .repo import Repo, RepoInfo, create_repo, open_repo
from .transaction import Transaction
from .version import Version

__all__ = [
    "ArrayDifference",
    "Difference",
    "Repo",
    "RepoInfo",
    "Transaction",
    "Version",
    "create_repo",
    "open_repo",
]
