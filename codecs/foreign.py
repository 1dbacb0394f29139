"""Codecs from elsewhere: ``numcodecs.*``, then whatever zarr-python has registered.

Not a codec itself. Zarr v2 takes its compressors from :func:`wrap` and its filters from
:class:`Filters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numcodecs import registry

from tensorstash.codec import Codec
from tensorstash.codecs import zarr_codec
from tensorstash.codecs.filters import Filters
from tensorstash.codecs.numcodec import (
    ARRAY_TO_ARRAY,
    ARRAY_TO_BYTES,
    OBJECTS,
    NumcodecArray,
    as_numcodecs,
    wrap,
)
from tensorstash.codecs.numcodec_arrays import NumcodecSerializer
from tensorstash.errors import Unsupported

__all__ = ["Filters", "as_numcodecs", "find", "names", "wrap"]

_PREFIX = "numcodecs."


def find(name: str) -> Callable[[str, Mapping[str, Any]], Codec] | None:
    """What makes the codec ``name``, or ``None`` when nobody knows it."""
    if not name.startswith(_PREFIX):
        return zarr_codec.find(name)
    identifier = name.removeprefix(_PREFIX)
    if identifier in OBJECTS:
        raise Unsupported(f"codec {name!r} is a filter of Zarr v2; v3 has 'vlen-utf8'")
    if identifier in ARRAY_TO_ARRAY:
        return NumcodecArray
    if identifier in ARRAY_TO_BYTES:
        return NumcodecSerializer
    if identifier in registry.codec_registry or identifier in registry.entries:
        return _bytes
    return None


def names() -> list[str]:
    """The names that numcodecs can serve."""
    return sorted(f"{_PREFIX}{name}" for name in registry.codec_registry if name not in OBJECTS)


def _bytes(name: str, configuration: Mapping[str, Any]) -> Codec:
    return wrap({**configuration, "id": name.removeprefix(_PREFIX)})
