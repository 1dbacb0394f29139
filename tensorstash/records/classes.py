"""Classes that describe a row: which names they have, what stands within, and the schema that
their annotations say. Dataclasses, TypedDicts, TensorClasses and TypedTensorDicts."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final

import numpy as np

from ..errors import Invalid, short
from . import schema
from .interop.tensordicts import is_tensordict
from .schema import Field

_PLAIN: Final[Mapping[Any, Any]] = {
    **{kind: kind for kind in (bool, int, float, str, bytes)},
    complex: "complex128",
    datetime: "datetime64[us]",
    date: "datetime64[D]",
    timedelta: "timedelta64[us]",
    dict: schema.json,
    list: schema.json,
}


@dataclass(frozen=True)
class RowClass:
    """A class that describes a row: its names in order, each with the class that describes what
    stands within it, and those that may be left out. Annotations that cannot be resolved now are
    ``unresolved``."""

    cls: type
    within: Mapping[str, RowClass | None]
    optional: frozenset[str]
    unresolved: frozenset[str]

    @property
    def name(self) -> str:
        """The class's name."""
        return self.cls.__name__

    @property
    def of_tensors(self) -> bool:
        """Whether it is one of tensordict's classes."""
        return hasattr(self.cls, "from_tensordict")

    @property
    def uses_tensors(self) -> bool:
        """Whether it or a class within it is one of tensordict's."""
        inner = [row for row in self.within.values() if row is not None]
        return self.of_tensors or any(row.uses_tensors for row in inner)

    @classmethod
    def of(cls, described: Any) -> RowClass:
        """``described`` read; :class:`~tensorstash.errors.Invalid` for a class of another kind."""
        if not _describes(described):
            raise Invalid(
                f"{short(described)} does not describe a row; give a dataclass, a TypedDict, or a "
                "TensorClass or TypedTensorDict of tensordict"
            )
        names, optional = _names(described)
        hints = _hints(described, names)
        within = {name: _inner(hints.get(name)) for name in names}
        # Told as text, they are not known to the TypedDict itself.
        qualifiers = {name: typing.get_origin(hint) for name, hint in hints.items()}
        optional |= {
            name for name, qualifier in qualifiers.items() if qualifier is typing.NotRequired
        }
        optional -= {name for name, qualifier in qualifiers.items() if qualifier is typing.Required}
        return cls(described, within, optional, frozenset(names) - hints.keys())

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is an instance, or a TensorDict of any kind."""
        # isinstance refuses TypedDicts, whose instances are dicts.
        return is_tensordict(value) or (
            not issubclass(self.cls, dict) and isinstance(value, self.cls)
        )

    def make(self, values: Mapping[str, Any]) -> Any:
        """An instance of ``values``, nested ones too."""
        if self.of_tensors:
            instance = self.cls.from_tensordict(values)  # type: ignore[attr-defined]
            for name, inner in self.within.items():
                # Older tensordicts leave what is within a TensorClass a TensorDict.
                if inner is not None and dataclasses.is_dataclass(instance):
                    setattr(instance, name, inner.make(values[name]))
            return instance
        known = set(values.keys())  # a TensorDict has no ``in``
        made = {
            name: values[name] if inner is None else inner.make(values[name])
            for name, inner in self.within.items()
            if name in known
        }
        return self.cls(**made)


def schema_of(described: Any) -> dict[str, Any]:
    """The schema that the annotations of a class say, for ``create_records``.

    ``bool``, ``int``, ``float``, ``complex``, NumPy's scalar types, ``datetime``, ``date`` and
    ``timedelta`` are one number a row; ``str`` and ``bytes`` what they say; ``dict`` and ``list``
    JSON. Anything else says it itself: ``Annotated[np.ndarray, ((84, 84), "uint8")]``,
    ``Annotated[np.ndarray, ragged("int32")]``. A class within is fields within a field.
    """
    return _schema(described, "")


def _schema(described: Any, above: str) -> dict[str, Any]:
    row = RowClass.of(described)
    if row.unresolved:
        raise Invalid(
            f"{row.name} has annotations of names that cannot be found: "
            f"{', '.join(sorted(row.unresolved))}; define what they name in a module"
        )
    hints = _hints(described, list(row.within))
    return {name: _entry(hints[name], above + name) for name in row.within}


def _entry(hint: Any, path: str) -> Any:
    for annotation in getattr(hint, "__metadata__", ()):
        if isinstance(annotation, Field) or (
            isinstance(annotation, tuple) and len(annotation) == 2
        ):
            return annotation
    hint = _bare(hint)
    if _describes(hint):
        return _schema(hint, path + "/")
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, np.generic):
        return kind
    if kind not in _PLAIN:
        raise Invalid(
            f"field {path!r}: {short(hint)} tells no shape and dtype; write "
            f"Annotated[..., ((84, 84), 'uint8')]"
        )
    return _PLAIN[kind]


def _describes(described: Any) -> bool:
    if not isinstance(described, type):
        return False
    own = hasattr(described, "__required_keys__") or hasattr(described, "from_tensordict")
    return own or dataclasses.is_dataclass(described)


def _names(described: Any) -> tuple[list[str], frozenset[str]]:
    """The names of a class, and those that may be left out."""
    if not dataclasses.is_dataclass(described):
        every = described.__required_keys__ | described.__optional_keys__
        order = [
            name for base in reversed(described.__mro__) for name in inspect.get_annotations(base)
        ]
        listed = dict.fromkeys(n for n in order if n in every) | dict.fromkeys(sorted(every))
        return list(listed), frozenset(described.__optional_keys__)
    missing = dataclasses.MISSING
    fields = [field for field in dataclasses.fields(described) if field.init]
    optional = [f.name for f in fields if (f.default, f.default_factory) != (missing, missing)]
    return [field.name for field in fields], frozenset(optional)


def _hints(described: Any, names: list[str]) -> dict[str, Any]:
    """The annotations that can be resolved, as types."""
    try:
        found = typing.get_type_hints(described, include_extras=True)
    except Exception:  # whatever evaluating them raises
        # Each by itself: one that cannot be resolved hides no other.
        found = {}
        for base in reversed(described.__mro__):
            for name, hint in inspect.get_annotations(base).items():
                try:
                    holder = type("_", (), {"__annotations__": {name: hint}})
                    holder.__module__ = base.__module__
                    found |= typing.get_type_hints(holder, include_extras=True)
                except Exception:
                    found.pop(name, None)
    return {name: found[name] for name in names if name in found}


def _inner(hint: Any) -> RowClass | None:
    hint = _bare(hint)
    return RowClass.of(hint) if _describes(hint) else None


def _bare(hint: Any) -> Any:
    """A type without ``Annotated``, ``Required`` and the like around it."""
    while typing.get_origin(hint) in (Annotated, typing.Required, typing.NotRequired):
        hint = hint.__origin__ if typing.get_origin(hint) is Annotated else hint.__args__[0]
    return hint
