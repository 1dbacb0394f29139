"""Options that several public functions share, each written down once, with its type.

A function takes them as ``**how: Unpack[...]``, which editors complete and mypy checks; ``shown``
has ``help`` and ``inspect.signature`` show each by name, with its default.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

from .limits import Limits
from .metadata.defaults import CodecsLike

LimitsLike: TypeAlias = Mapping[str, int | str] | Limits | None
_Function = TypeVar("_Function", bound=Callable[..., Any])


class PlaceOptions(TypedDict, total=False):
    """What every way in takes: where below the location, the driver's options, and how much memory
    may be taken."""

    path: str
    options: Mapping[str, Any] | None
    limits: LimitsLike
    memory_limit: int | str | None


class HandleOptions(PlaceOptions, total=False):
    """How any handle behaves."""

    cache: int | str
    threads: int | None
    lock_timeout: float | None


class OpenOptions(HandleOptions, total=False):
    """How a handle on what is stored already behaves: an array, a group or records."""

    version: str | datetime | None
    immutable: bool
    missing: Literal["fill", "raise"]
    allow_pickle: bool
    cache_dir: str | os.PathLike[str] | None
    cache_dir_bytes: int | str


class OpenArrayOptions(OpenOptions, total=False):
    """How a handle on a stored array behaves."""

    write_fill: bool


class LayoutOptions(TypedDict, total=False):
    """How a new array is stored."""

    chunks: int | Sequence[int] | str | None
    shards: int | Sequence[int] | None
    codecs: CodecsLike
    fill_value: Any
    dimension_names: Sequence[str | None] | None
    attributes: Mapping[str, Any] | None
    zarr_format: Literal[2, 3]
    key_encoding: Literal["default", "v2"] | None
    separator: Literal["/", "."] | None
    order: Literal["C", "F"]
    filters: Sequence[Mapping[str, Any]] | None
    in_place: bool


class NewHandleOptions(HandleOptions, total=False):
    """How a handle on a new array behaves."""

    missing: Literal["fill", "raise"]
    write_fill: bool


class NewArrayOptions(LayoutOptions, NewHandleOptions, total=False):
    """How a new array is stored, and how the handle on it behaves."""


class _ElementOptions(TypedDict, total=False):
    dtype: Any


class _ShapeOptions(_ElementOptions, total=False):
    shape: int | Sequence[int] | None


class OpenOrCreateOptions(OpenArrayOptions, _ShapeOptions, LayoutOptions, total=False):
    """How a handle behaves, and in a mode that creates, how the new array is stored."""


class CopyOptions(_ElementOptions, LayoutOptions, total=False):
    """In what a copy may differ from its source."""


class RowLayoutOptions(TypedDict, total=False):
    """How new fields of records are stored."""

    rows_per_chunk: int | Mapping[Any, int] | None
    rows_per_shard: int | None
    codecs: CodecsLike | Mapping[Any, Any]
    fill_value: Any
    in_place: bool


class NewRecordsOptions(RowLayoutOptions, HandleOptions, total=False):
    """How new records are stored, and how the handle on them behaves."""

    attributes: Mapping[str, Any] | None
    allow_pickle: bool


class _LeftOut:
    """Shown as the default of an option that comes from elsewhere when it is left out."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<{self._text}>"


def shown(
    options: type, *takers: Callable[..., Any], left_out: str = "", **others: str
) -> Callable[[_Function], _Function]:
    """Have the signature of a function with ``**how: Unpack[options]`` show each of them, with the
    default of whoever of ``takers`` they are handed on to. Where options that are left out come
    from elsewhere, ``left_out`` says so of all, ``others`` of those that it names."""
    known: dict[str, inspect.Parameter] = {}
    for taker in takers:
        known = {**inspect.signature(taker).parameters, **known}
    more = [
        known[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in options.__annotations__
    ]
    for k, option in enumerate(more):
        if words := others.get(option.name, left_out):
            more[k] = option.replace(default=_LeftOut(words))

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def parted(given: Mapping[str, Any], options: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of ``given`` that are among ``options``, and all others."""
    names = options.__annotations__
    mine = {name: value for name, value in given.items() if name in names}
    return mine, {name: value for name, value in given.items() if name not in names}


def only(given: Mapping[str, Any], options: type, function: str) -> dict[str, Any]:
    """``given``, of which none may be unknown; the error is Python's own for such a call."""
    mine, others = parted(given, options)
    for name in others:
        close = get_close_matches(name, options.__annotations__, 1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
    return mine
