"""Zarr v2's filters as one array -> bytes step; not a Zarr name itself."""

from __future__ import annotations

import importlib
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import UNSIZED_LIMIT, Buffer, Cached, ChunkSpec, Serializer
from tensorstash.codecs.numcodec import (
    ARRAY_TO_ARRAY,
    ARRAY_TO_BYTES,
    OBJECTS,
    attempt,
    flat,
    identify,
    load,
    number,
    wrap,
)
from tensorstash.codecs.vlen import check_count, check_end
from tensorstash.codecs.vlen_bytes import VlenBytes
from tensorstash.codecs.vlen_utf8 import VlenUtf8
from tensorstash.errors import Invalid, StashError, Unsupported

_VLEN: dict[str, VlenUtf8 | VlenBytes] = {"vlen-utf8": VlenUtf8(), "vlen-bytes": VlenBytes()}
_DTYPES = ("dtype", "astype", "encode_dtype", "decode_dtype")


@dataclass(frozen=True, eq=False, repr=False)
class Filters(Serializer):
    """Applies numcodecs filters in order, first to last, and reverses them (Zarr v2 spec,
    "Filters").

    ``configs`` are numcodecs configs. ``stored`` is the dtype of the ``.zarray`` document,
    byte order included, when that is not the chunk's own: filters see such elements. No
    filters at all store the elements as they are, which for records of mixed byte order no
    other codec does. ``pickle`` is refused unless ``allow_pickle``: it runs code from the data.
    ``None`` lets it be named, and refuses once a chunk is to be encoded or decoded.
    """

    name: ClassVar[str] = "filters"
    configs: Sequence[Mapping[str, Any]]
    stored: np.dtype[Any] | None = None
    allow_pickle: bool | None = False
    fill: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "configs", tuple(dict(config) for config in self.configs))
        if self.allow_pickle is not None:
            self._refuse_pickle()

    def _refuse_pickle(self) -> None:
        if not self.allow_pickle and any(identify(c)[0] == "pickle" for c in self.configs):
            raise Unsupported(
                "filter 'pickle' runs code from stored data; pass allow_pickle=True if you "
                "trust whoever wrote it"
            )

    def configuration(self) -> dict[str, Any]:
        """The configs; for comparison, as Zarr v3 has no such codec."""
        stored = {} if self.stored is None else {"dtype": repr(self.stored)}
        return {"filters": [dict(config) for config in self.configs], **stored}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "steps"}

    def bind(self, spec: ChunkSpec) -> Filters:
        """These filters, when they can take elements of ``spec.dtype``."""
        objects = spec.dtype.hasobject or spec.dtype.kind == "T"
        first = identify(self.configs[0])[0] if self.configs else ""
        if objects and first not in OBJECTS:
            raise Invalid(
                f"dtype {spec.dtype} needs an object codec such as 'vlen-utf8' as first filter"
            )
        if not objects and first in OBJECTS - {"categorize", "json2", "msgpack2", "pickle"}:
            raise Invalid(f"filter {first!r} takes objects, not {spec.dtype}")
        if self.stored is not None and self.stored.itemsize != spec.dtype.itemsize:
            raise Invalid(f"stored dtype {self.stored} does not fit {spec.dtype}")
        for config in self.configs:
            for key in _DTYPES:
                if config.get(key) is not None:
                    _check_dtype(config, key, spec.dtype)
        if self.allow_pickle is not None:
            assert self.steps is not None
        return Filters(self.configs, self.stored, self.allow_pickle, spec.fill)

    @Cached
    def steps(self) -> list[tuple[str, Any]]:
        """Each filter's id and what carries it out, where all of them may run."""
        self._refuse_pickle()
        steps: list[tuple[str, Any]] = []
        for config in self.configs:
            identifier, options = identify(config)
            if identifier in _VLEN:
                steps.append((identifier, _VLEN[identifier]))
            elif identifier in ARRAY_TO_ARRAY | ARRAY_TO_BYTES | OBJECTS:
                steps.append((identifier, load(identifier, options)))
            else:
                steps.append((identifier, wrap(config)))
        return steps

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The bytes after the last filter."""
        if chunk.dtype.kind == "T":
            chunk = chunk.astype(object)
        dtype = chunk.dtype if self.stored is None else self.stored
        value: Any = np.asarray(chunk, dtype, order="C")
        for identifier, step in self.steps:
            if identifier in _VLEN:
                value = step.bind(_objects(value.shape, self.fill)).encode(value)
            elif identifier in ARRAY_TO_ARRAY | ARRAY_TO_BYTES | OBJECTS:
                if isinstance(value, np.ndarray) and not value.size and identifier == "delta":
                    value = np.empty(0, step.astype)
                    continue
                # msgpack2 cannot take an array without axes.
                single = isinstance(value, np.ndarray) and not value.ndim
                value = value.reshape(1) if single else value
                value = attempt(identifier, step.encode, value)
            else:
                value = step.encode(flat(value))
        return flat(value)

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The chunk; intermediate results are bounded by what it can be."""
        objects = spec.dtype.hasobject or spec.dtype.kind == "T"
        limit = UNSIZED_LIMIT if objects else 16 * spec.nbytes + 65536
        value: Any = data
        try:
            for identifier, step in reversed(self.steps):
                value = self._undo(identifier, step, value, spec, limit)
        except (StashError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"filter {identifier!r}: {error}") from error
        return self._chunk(value, spec)

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """Known only without filters."""
        return None if self.configs else spec.nbytes

    def _undo(self, identifier: str, step: Any, value: Any, spec: ChunkSpec, limit: int) -> Any:
        if identifier in _VLEN:
            return step.decode(flat(value), _objects(spec.shape, self.fill))
        if identifier == "vlen-array":
            data = flat(value)
            check_count(data, spec.count)
            arrays = step.decode(data)
            check_end(data, spec.count, sum(array.nbytes for array in arrays))
            return arrays
        if identifier in ("json2", "msgpack2"):
            return _items(identifier, step, flat(value), spec)
        if identifier == "pickle":
            return pickle.loads(flat(value))
        if identifier in ARRAY_TO_ARRAY | OBJECTS:
            if not np.size(value):
                return np.empty(0, spec.dtype)
            return step.decode(np.frombuffer(flat(value), np.uint8))
        if identifier in ARRAY_TO_BYTES:
            return step.decode(flat(value))
        return step.decode(flat(value), limit)

    def _chunk(self, value: Any, spec: ChunkSpec) -> NDArray[Any]:
        if spec.dtype.hasobject or spec.dtype.kind == "T":
            array = np.asarray(value)
            if not isinstance(value, np.ndarray) or array.dtype != object:
                raise ValueError(f"the filters end in {type(value).__name__}, not in objects")
        else:
            stored = spec.dtype if self.stored is None else self.stored
            if isinstance(value, np.ndarray) and value.dtype.hasobject:
                value = value.astype(stored)
            data = flat(value)
            if len(data) != spec.count * stored.itemsize:
                raise ValueError(
                    f"{len(data)} bytes where shape {spec.shape} of {spec.dtype} takes "
                    f"{spec.count * stored.itemsize}"
                )
            array = np.ndarray(spec.count, stored, data)
        if array.size != spec.count:
            raise ValueError(f"{array.size} elements where {spec.count} were expected")
        return array.reshape(spec.shape).astype(spec.dtype, copy=False)


def _items(identifier: str, step: Any, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
    """The elements of a json2 or msgpack2 chunk: ``[*elements, dtype, shape]``.

    Read here rather than by numcodecs, which allocates whatever shape and dtype the data name.
    """
    if identifier == "json2":
        items = json.loads(bytes(data).decode(step._text_encoding))
    else:
        msgpack = importlib.import_module("msgpack")
        items = msgpack.unpackb(data, raw=step.raw)
    if not isinstance(items, list) or len(items) < 2 or not isinstance(items[-1], list):
        raise ValueError("not a list that ends in a dtype and a shape")
    shape = items[-1]
    if any(type(edge) is not int for edge in shape) or math.prod(shape) != spec.count:
        raise ValueError(f"it claims shape {shape} where {list(spec.shape)} was expected")
    level = items[:-2]
    for depth in range(len(shape)):
        if depth:
            if not all(isinstance(part, list) for part in level):
                raise ValueError(f"its elements do not make the shape {shape}")
            level = [item for part in level for item in part]
        if len(level) != math.prod(shape[: depth + 1]):
            raise ValueError(f"its elements do not make the shape {shape} along axis {depth}")
    if len(level) != spec.count:
        raise ValueError(f"{len(level)} elements where {spec.count} were expected")
    array = np.empty(spec.count, object)
    for index, item in enumerate(level):
        array[index] = item
    return array


def _objects(shape: tuple[int, ...], fill: Any) -> ChunkSpec:
    return ChunkSpec(shape, np.dtype(object), fill)


def _check_dtype(config: Mapping[str, Any], key: str, dtype: np.dtype[Any]) -> None:
    identifier = identify(config)[0]
    if identifier == "categorize" and key == "dtype":
        told = np.dtype(config[key])
        if told.itemsize > max(dtype.itemsize, 16):
            raise Invalid(f"filter 'categorize' has dtype {told}, the array has {dtype}")
    elif identifier == "vlen-array" or config[key] != dtype.str:
        number(identifier, config[key])
