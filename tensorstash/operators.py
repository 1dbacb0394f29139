"""Operators that handles do not have: a handle is no data, and ``a == 3`` is no mask."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

_DATA = (int, float, complex, str, bytes, list, tuple, np.generic, np.ndarray)


class NoOperators:
    """Two handles are equal when they are one. To compare a handle or to calculate with it, other
    than by NumPy's own functions, is a :class:`TypeError` that says what to do: ``a == 3`` was
    silently ``False`` otherwise, and ``a[a == 3]`` empty."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _DATA):
            _refuse(self, "==")
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        if isinstance(other, _DATA):
            _refuse(self, "!=")
        return NotImplemented

    __hash__ = object.__hash__


def _operator(sign: str) -> Any:
    def refused(self: object, other: object) -> NoReturn:
        _refuse(self, sign)

    return refused


_SIGNS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "add": "+", "sub": "-", "mul": "*",
    "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@", "and": "&",
    "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
}  # fmt: skip
for _name, _sign in _SIGNS.items():
    setattr(NoOperators, f"__{_name}__", _operator(_sign))
    if _sign[0] not in "<>" or (len(_sign) == 2 and _sign[1] != "="):
        setattr(NoOperators, f"__r{_name}__", _operator(_sign))


def _refuse(handle: object, sign: str) -> NoReturn:
    raise TypeError(
        f"{type(handle).__name__} has no {sign!r}: it is a handle on what is stored, and reads "
        f"nothing unasked; read first: a[...] {sign} value"
    )
