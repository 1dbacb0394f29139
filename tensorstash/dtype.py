"""Data types: what a user may ask for, and how Zarr v3 spells it (v2: :mod:`.metadata.zarr2`).

In memory a dtype is a NumPy dtype in native byte order, packed (no alignment padding):
byte order belongs to the ``bytes`` codec. Text of any length is ``StringDType()``; bytes of
any length are ``object`` with ``bytes`` elements. ``bfloat16``, ``float8_*`` and integers of two
and four bits come from ``ml_dtypes``, imported only when one is named.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from .errors import Invalid, Unsupported, counted, short

STRING: Final = np.dtypes.StringDType()
"""Text of any length."""

OBJECT: Final = np.dtype(object)
"""Bytes of any length (or whatever a Zarr v2 object codec yields)."""

ITEM_LIMIT: Final = 1 << 24
"""Most bytes one element may have: a stored dtype must not make us allocate absurdly."""

DEPTH_LIMIT: Final = 16
"""Most records within records."""

_SHOWN: Final = 400
"""Characters, or elements, that a message could show: more than it does."""

_NUMPY: Final = {
    np.dtype(name): name
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
_CORE: Final = {
    **{name: dtype for dtype, name in _NUMPY.items()},
    "complex_float32": np.dtype("complex64"),
    "complex_float64": np.dtype("complex128"),
    "string": STRING,
    "bytes": OBJECT,
    "variable_length_bytes": OBJECT,  # what zarr-python 3.0 and 3.1 write
}
SMALL_FLOATS: Final = (
    "bfloat16",
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
SMALL_INTS: Final = ("int2", "int4", "uint2", "uint4")
"""Integers that have a byte each in memory, and the value in its low bits."""

EXTENDED: Final = (*SMALL_FLOATS, *SMALL_INTS)
"""What comes from ``ml_dtypes``."""

_CONFIGURED: Final = {
    "numpy.datetime64": {"unit", "scale_factor"},
    "numpy.timedelta64": {"unit", "scale_factor"},
    "fixed_length_utf32": {"length_bytes"},
    "null_terminated_bytes": {"length_bytes"},
    "raw_bytes": {"length_bytes"},
    "struct": {"fields"},
    "structured": {"fields"},
}
_UNITS: Final = (
    *("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"),
    "generic",
)
_TIMES: Final = {"M": "numpy.datetime64", "m": "numpy.timedelta64"}


def parse(value: Any) -> np.dtype[Any]:
    """The in-memory dtype that ``value`` asks for: native byte order, packed.

    Takes anything NumPy takes, torch's dtypes, ``"bfloat16"``, ``"float8_e4m3fn"``, ``"int4"`` and
    the like, ``str`` or ``"string"`` (text of any length), ``bytes`` or ``"bytes"`` (bytes of any
    length), and ``"r16"``, ``"r24"``, ... (raw bits). :class:`~tensorstash.errors.Invalid` for
    objects and anything else that has no stored form.
    """
    if type(value).__module__ == "torch":
        value = str(value).removeprefix("torch.")
    if value is str or (isinstance(value, str) and value in ("string", "str")):
        return STRING
    if value is bytes or (isinstance(value, str) and value == "bytes"):
        return OBJECT
    if value is None:
        raise Invalid("dtype is missing: name one, for example dtype='float32'")
    if isinstance(value, str):
        if value in EXTENDED:
            return extended(value)
        if re.fullmatch(r"r\d+", value):
            return _raw_bits(value)
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError) as error:
        close = difflib.get_close_matches(str(value)[:_SHOWN], [*_CORE, *EXTENDED], 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise Invalid(f"{short(value)} is not a dtype{hint}") from error
    if dtype.kind == "U" and dtype.itemsize == 0:
        return STRING
    if dtype.kind == "S" and dtype.itemsize == 0:
        return OBJECT
    return native(dtype)


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """``dtype`` in native byte order and packed; raises where it cannot be stored at all."""
    return _native(dtype, 0)


def _native(dtype: np.dtype[Any], depth: int) -> np.dtype[Any]:
    if depth > DEPTH_LIMIT:
        raise Unsupported(f"records nested deeper than {DEPTH_LIMIT} levels; flatten the fields")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        if not depth:
            raise Invalid(f"dtype {dtype} is a subarray; add {shape} to the array's shape instead")
        return _sized(np.dtype((_native(base, depth), shape)))
    if dtype.names is not None:
        if not dtype.names:
            raise Invalid("a structured dtype needs at least one field")
        fields: Mapping[str, Any] = dtype.fields or {}
        parts = [(name, _native(fields[name][0], depth + 1)) for name in dtype.names]
        return record(parts)
    if dtype.kind == "T":
        if hasattr(dtype, "na_object"):
            raise Invalid("missing values in strings cannot be stored; use StringDType() and ''")
        return STRING
    if dtype.kind == "O":
        raise Invalid(
            "object arrays are not stored; use dtype='string' for text, 'bytes' for bytes, "
            "or a structured dtype"
        )
    if dtype.type in (np.longdouble, np.clongdouble):
        raise Unsupported(f"dtype {dtype} differs between machines; use float64 or complex128")
    if is_extended(dtype):
        extended(dtype.name)
        return dtype
    return _sized(dtype.newbyteorder("="))


def to_v3(dtype: np.dtype[Any]) -> Any:
    """The ``data_type`` of a Zarr v3 document for a native ``dtype``."""
    if name := _NUMPY.get(dtype):
        return name
    if dtype.kind == "T":
        return "string"
    if dtype.kind == "O":
        return "bytes"
    if is_extended(dtype):
        return dtype.name
    if dtype.kind in _TIMES:
        unit, scale = np.datetime_data(dtype)
        return _named(_TIMES[dtype.kind], unit=unit, scale_factor=scale)
    if dtype.kind == "U":
        return _named("fixed_length_utf32", length_bytes=dtype.itemsize)
    if dtype.kind == "S":
        return _named("null_terminated_bytes", length_bytes=dtype.itemsize)
    if dtype.subdtype is not None:
        raise Unsupported(
            "Zarr v3 records cannot hold subarrays; use zarr_format=2, or one array per field"
        )
    if dtype.names is not None:
        fields = [{"name": name, "data_type": to_v3(part)} for name, part in parts(dtype)]
        return _named("struct", fields=fields)
    if dtype.kind == "V":
        return f"r{8 * dtype.itemsize}"
    raise Unsupported(f"dtype {dtype} has no Zarr v3 data type")


def from_v3(value: Any) -> np.dtype[Any]:
    """The native dtype that a Zarr v3 ``data_type`` names.

    Shorthand (a bare string) and the object form are both read, with ``configuration``
    present or not, and so are the names that older zarr-python wrote.
    """
    return _from_v3(value, 0)


def _from_v3(value: Any, depth: int) -> np.dtype[Any]:
    if depth > DEPTH_LIMIT:
        raise Unsupported(f"data_type nests records deeper than {DEPTH_LIMIT} levels")
    name, configuration = _extension(value)
    if name in _CONFIGURED:
        return _configured(name, configuration, depth)
    if configuration:
        raise Invalid(f"data_type {name!r} takes no configuration, got {short(configuration)}")
    if name in _CORE:
        return _CORE[name]
    if name in EXTENDED:
        return extended(name)
    if re.fullmatch(r"r\d+", name):
        return _raw_bits(name)
    close = difflib.get_close_matches(name[:_SHOWN], [*_CORE, *EXTENDED, *_CONFIGURED], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise Unsupported(f"data_type {short(name)} is not known{hint}")


def _configured(name: str, configuration: Mapping[str, Any], depth: int) -> np.dtype[Any]:
    for key in configuration:
        if key not in _CONFIGURED[name]:
            raise Invalid(f"data_type {name!r} has no option {short(key)}")
    if name in _TIMES.values():
        unit = configuration.get("unit", "generic")
        scale = configuration.get("scale_factor", 1)
        unit = "us" if unit in ("μs", "µs") else unit
        if unit not in _UNITS or type(scale) is not int or not 1 <= scale < 1 << 31:
            raise Invalid(f"data_type {name!r} cannot have {short(configuration)}")
        code = "M8" if name == "numpy.datetime64" else "m8"
        return np.dtype(code if unit == "generic" else f"{code}[{scale}{unit}]")
    if name in ("struct", "structured"):
        return _fields(name, configuration.get("fields"), depth)
    size = configuration.get("length_bytes")
    width = 4 if name == "fixed_length_utf32" else 1
    if type(size) is not int or size < 1 or size % width:
        raise Invalid(
            f"data_type {name!r} needs length_bytes, a positive multiple of {width}; "
            f"got {short(size)}"
        )
    check_size(size)
    code = {"fixed_length_utf32": "U", "null_terminated_bytes": "S", "raw_bytes": "V"}[name]
    return np.dtype(f"{code}{size // width}")


def _fields(name: str, fields: Any, depth: int) -> np.dtype[Any]:
    if not isinstance(fields, list) or not fields:
        raise Invalid(f"data_type {name!r} needs a non-empty list of fields")
    parts = []
    for item in fields:
        # `structured` is the [name, type] form zarr-python wrote before `struct` was specified.
        if name == "struct" and isinstance(item, dict) and set(item) == {"name", "data_type"}:
            label, inner = item["name"], item["data_type"]
        elif isinstance(item, list) and len(item) == 2:
            label, inner = item
        else:
            raise Invalid(f"data_type {name!r} has a field {short(item)} without name and type")
        part = _from_v3(inner, depth + 1)
        if part.kind in "TO":
            raise Unsupported(f"field {short(label)}: a record cannot hold values of any length")
        parts.append((label, part))
    return record(parts)


def parts(dtype: np.dtype[Any]) -> list[tuple[str, np.dtype[Any]]]:
    """The fields of a structured dtype in order, as ``(name, dtype)``."""
    fields: Mapping[str, Any] = dtype.fields or {}
    return [(name, fields[name][0]) for name in dtype.names or ()]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements are real floating-point numbers, ``bfloat16`` and ``float8_*`` included."""
    return dtype.kind == "f" or (is_extended(dtype) and dtype.name not in SMALL_INTS)


def is_small_int(dtype: np.dtype[Any]) -> bool:
    """Whether elements are integers of two or four bits."""
    return is_extended(dtype) and dtype.name in SMALL_INTS


def int_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest integer of ``dtype``, those of two and four bits included."""
    if not is_small_int(dtype):
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    bits = int(dtype.name[-1])
    return (0, (1 << bits) - 1) if dtype.name[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The nearest of NumPy's own dtypes that holds each value of one from ``ml_dtypes``."""
    if not is_small_int(dtype):
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if dtype.name[0] == "u" else np.int8)


def is_extended(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype comes from ``ml_dtypes``."""
    # ml_dtypes registers its types with kind 'V' or 'f' but a scalar type of its own.
    return dtype.type.__module__.partition(".")[0] == "ml_dtypes"


def record(fields: Iterable[tuple[Any, np.dtype[Any]]]) -> np.dtype[Any]:
    """The packed structured dtype of ``fields``, checked."""
    fields = list(fields)
    for name, _ in fields:
        if not isinstance(name, str) or not name:
            raise Invalid(f"a field is named {short(name)}; names are non-empty strings")
    check_size(sum(part.itemsize for _, part in fields))
    try:
        return np.dtype(fields)
    except (TypeError, ValueError) as error:
        names = ", ".join(name for name, _ in fields)
        raise Invalid(f"these fields do not make a record: {short(names)} ({error})") from error


def extended(name: str) -> np.dtype[Any]:
    """The dtype of ``ml_dtypes`` called ``name``, imported now."""
    if name not in EXTENDED:
        raise Unsupported(f"dtype {name!r} packs several elements in a byte; use int8 or float16")
    try:
        module = importlib.import_module("ml_dtypes")
    except ModuleNotFoundError as error:
        raise Unsupported(f"dtype {name!r} needs ml_dtypes: pip install ml_dtypes") from error
    scalar = getattr(module, name, None)
    if scalar is None:
        raise Unsupported(f"dtype {name!r} needs a newer ml_dtypes: pip install -U ml_dtypes")
    made: np.dtype[Any] = np.dtype(scalar)
    return made


def _raw_bits(name: str) -> np.dtype[Any]:
    bits = int(name[1:]) if len(name) < 12 else 8 * ITEM_LIMIT + 8
    if bits < 8 or bits % 8:
        raise Invalid(f"data_type {short(name)}: raw bits come in multiples of 8, such as 'r16'")
    check_size(bits // 8)
    return np.dtype(f"V{bits // 8}")


def _extension(value: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Invalid(f"data_type {short(value)} is neither a name nor an object with one")
    for key in value:
        if key not in ("name", "configuration", "must_understand"):
            raise Invalid(f"data_type {short(value['name'])} has an unknown key {short(key)}")
    if value.get("must_understand", True) is not True:
        raise Invalid("data_type cannot be optional: remove its must_understand")
    configuration = value.get("configuration", {})
    if not isinstance(configuration, dict):
        raise Invalid(f"data_type {short(value['name'])} has a configuration that is not an object")
    return value["name"], configuration


def _sized(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.itemsize == 0:
        raise Invalid(f"dtype {dtype} has elements of no bytes; give it a length")
    check_size(dtype.itemsize)
    return dtype


def check_size(nbytes: int) -> None:
    """Raise when one element of ``nbytes`` would be absurd."""
    if nbytes > ITEM_LIMIT:
        raise Unsupported(f"one element of {counted(nbytes, 'byte')}; the most is {ITEM_LIMIT}")


def _named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}
