"""The public face, pinned: a change of surface shows up here as a visible diff."""

from __future__ import annotations

import inspect

import tensorstash
import tensorstash.errors

PUBLIC = [
    "AlreadyExists",
    "Array",
    "Closed",
    "Conflict",
    "Corrupt",
    "Denied",
    "Driver",
    "DriverError",
    "Entry",
    "Explanation",
    "Group",
    "Info",
    "Invalid",
    "InvalidSelection",
    "NoMemory",
    "NoSpace",
    "NotFound",
    "Ragged",
    "ReadOnly",
    "Records",
    "Repo",
    "StashError",
    "StashPerformanceWarning",
    "Stats",
    "TimedOut",
    "Transaction",
    "Unavailable",
    "Unsupported",
    "Version",
    "View",
    "copy",
    "create",
    "create_group",
    "create_records",
    "create_repo",
    "delete",
    "exists",
    "json",
    "load",
    "log_requests",
    "ls",
    "memory_limit",
    "memory_use",
    "move",
    "open",
    "open_group",
    "open_records",
    "open_repo",
    "ragged",
    "save",
    "save_records",
    "walk",
    "zarr_store",
]


def test_public_names_are_pinned() -> None:
    assert sorted(tensorstash.__all__) == PUBLIC


def test_dir_shows_the_public_names() -> None:
    assert set(PUBLIC) <= set(dir(tensorstash))


def test_errors_are_one_tree() -> None:
    for name in tensorstash.errors.__all__:
        above = UserWarning if name.endswith("Warning") else tensorstash.errors.StashError
        assert issubclass(getattr(tensorstash.errors, name), above)


def test_public_functions_have_docstrings_and_annotations() -> None:
    for name in PUBLIC:
        thing = getattr(tensorstash, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter})"
