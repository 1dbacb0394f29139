"""Versions of a tree of arrays: commits, branches and tags over objects that never change."""
