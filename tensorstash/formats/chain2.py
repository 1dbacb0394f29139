"""Zarr v2 order, filters and compressor as a chain of codecs, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from .. import dtype as dtypes
from ..chain import make
from ..codec import Codec, reason, split
from ..errors import Invalid, StashError, Unsupported, short
from ..registry import foreign
from .typestr import to_v2

SERIALIZED: Final = ("vlen-utf8", "vlen-bytes")
"""Filters that are an array -> bytes codec of v3 too."""

ARRAY_TO_BYTES: Final = ("pcodec", "zfpy")
"""Compressors that take a chunk as an array: the last of its filters, to us."""

_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "blosc": {"cname": "lz4", "clevel": 5, "shuffle": 1},
    "gzip": {"level": 1},
    "zstd": {"level": 0},
}
"""Compressors that are v3 codecs too, with what numcodecs assumes where they say nothing."""

_SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")


def chain(
    stored: np.dtype[Any],
    ndim: int,
    *,
    order: str = "C",
    filters: Sequence[Mapping[str, Any]] | None = None,
    compressor: Mapping[str, Any] | None = None,
    allow_pickle: bool | None = False,
) -> tuple[Codec, ...]:
    """The codecs of a v2 array whose elements are ``stored`` (byte order included).

    ``filters`` and ``compressor`` are numcodecs configurations, ``{"id": ..., ...}``.
    """
    made: list[Codec] = []
    filters = [dict(item) for item in filters or ()]
    if compressor is not None and compressor["id"] in ARRAY_TO_BYTES:
        filters, compressor = [*filters, dict(compressor)], None
    if order == "F" and ndim > 1:
        made.append(make("transpose", {"order": list(range(ndim))[::-1]}))
    orders = _byte_orders(stored)
    if len(filters) == 1 and filters[0]["id"] in SERIALIZED and stored.kind in "TO":
        made.append(make(filters[0]["id"], {}))
    elif filters or len(orders) > 1:
        swapped = stored.kind not in "TO" and stored != dtypes.native(stored)
        made.append(_foreign("Filters", filters, stored if swapped else None, allow_pickle))
    else:
        made.append(make("bytes", {"endian": "big" if ">" in orders else "little"}))
    if compressor is not None and compressor["id"] in _DEFAULTS:
        options = {**_DEFAULTS[compressor["id"]], **compressor}
        made.append(make(compressor["id"], _foreign("as_numcodecs", options.pop("id"), options)))
    elif compressor is not None:
        made.append(_foreign("wrap", dict(compressor)))
    return tuple(made)


def _foreign(name: str, *arguments: Any) -> Any:
    try:
        made = getattr(foreign(), name)(*arguments)
    except (StashError, RecursionError, MemoryError):
        raise
    except Exception as error:  # numcodecs raises what it likes
        what = short(arguments[0])
        detail = reason(error)
        raise Invalid(f"filters or compressor {what} cannot be: {detail}") from error
    return made


def _byte_orders(dtype: np.dtype[Any]) -> set[str]:
    if dtype.subdtype is not None:
        return _byte_orders(dtype.subdtype[0])
    if dtype.names is not None:
        return set().union(*(_byte_orders(part) for _, part in dtypes.parts(dtype)))
    if dtype.itemsize == 1 or dtype.kind in "TO":
        return set()
    if dtypes.is_extended(dtype):
        return {"<"}  # bfloat16, which no typestr spells: TensorStore stores it little-endian
    return {dtype.str[0]} - {"|"}


def described(codecs: Sequence[Codec], dtype: np.dtype[Any], ndim: int) -> dict[str, Any]:
    """A bound chain as v2 spells it: the inverse of :func:`chain`.

    Answers the ``stored`` dtype and the document's ``dtype``, ``order``, ``filters`` and
    ``compressor``; :class:`~tensorstash.errors.Unsupported` when v2 cannot spell the chain.
    """
    arrays, serializer, tail = split(codecs)
    if any(step.configuration().get("order") != list(range(ndim))[::-1] for step in arrays[:1]):
        raise _unspelled(arrays[0])
    if len(arrays) > 1:
        raise _unspelled(arrays[1])
    endian = serializer.configuration().get("endian", "little")
    stored = dtype.newbyteorder(">") if endian == "big" else dtype
    filters: list[dict[str, Any]] = []
    if serializer.name in SERIALIZED:
        filters.append({"id": serializer.name})
    elif serializer.name != "bytes":
        configs = getattr(serializer, "configs", None)
        if configs is None:
            raise _unspelled(serializer)
        filters.extend(dict(config) for config in configs)
        stored = getattr(serializer, "stored", None) or dtype
    steps = [_configuration(step) for step in tail]
    if not steps and filters and filters[-1]["id"] in ARRAY_TO_BYTES:
        steps.append(filters.pop())  # where zarr-python and zarrs look for it
    return {
        "stored": stored,
        "dtype": to_v2(stored, endian),
        "order": "F" if arrays else "C",
        "filters": [*filters, *steps[:-1]] or None,
        "compressor": steps[-1] if steps else None,
    }


def _configuration(step: Codec) -> dict[str, Any]:
    """A bytes -> bytes codec as numcodecs configures it."""
    options = step.configuration()
    options.pop("id", None)
    if step.name == "blosc":
        options["shuffle"] = _SHUFFLES.index(options.get("shuffle", "shuffle"))
        options.pop("typesize", None)
    elif step.name not in ("zstd", "gzip", "crc32c") and not step.name.startswith("numcodecs."):
        raise _unspelled(step)
    return {"id": step.name.removeprefix("numcodecs."), **options}


def _unspelled(step: Codec) -> Unsupported:
    return Unsupported(f"Zarr v2 cannot spell codec {step!r}; use zarr_format=3")
