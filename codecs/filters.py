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

from tensorstash.codec import (
    OBJECT_BYTES,
    Buffer,
    BytesCodec,
    Cached,
    ChunkSpec,
    Serializer,
    reason,
    values_in,
)
from tensorstash.codecs.numcodec import (
    ARRAY_TO_ARRAY,
    ARRAY_TO_BYTES,
    OBJECTS,
    attempt,
    flat,
    identify,
    load_to_read,
    number,
    wrap,
)
from tensorstash.codecs.numcodec_arrays import check_zfp, decoded
from tensorstash.codecs.vlen import check_count, check_end
from tensorstash.codecs.vlen_bytes import VlenBytes
from tensorstash.codecs.vlen_utf8 import VlenUtf8
from tensorstash.errors import Invalid, StashError, Unsupported, counted

_VLEN: dict[str, VlenUtf8 | VlenBytes] = {"vlen-utf8": VlenUtf8(), "vlen-bytes": VlenBytes()}
_DTYPES = ("dtype", "astype", "encode_dtype", "decode_dtype")
_RETYPES = {
    "astype": ("decode_dtype", "encode_dtype"),
    "delta": ("dtype", "astype"),
    "fixedscaleoffset": ("dtype", "astype"),
    "quantize": ("dtype", "astype"),
}
"""Filters that give each element another dtype, with the names they call both by."""
_BYTE = np.dtype(np.uint8)
_SLACK = 1 << 16


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
    most: int | None = field(default=None, compare=False)

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
        return {k: v for k, v in vars(self).items() if k not in ("steps", "_kept")}

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
        return Filters(self.configs, self.stored, self.allow_pickle, spec.fill, spec.most)

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
                steps.append((identifier, load_to_read(identifier, options)[0]))
            else:
                steps.append((identifier, wrap(config)))
        return steps

    @property
    def unfit(self) -> str | None:
        """What the first filter that cannot encode says."""
        for config in self.configs:
            identifier, options = identify(config)
            if identifier in _VLEN or identifier in ARRAY_TO_ARRAY:
                continue
            if identifier in ARRAY_TO_BYTES | OBJECTS:
                said = load_to_read(identifier, options)[1]
            else:
                said = wrap(config).unfit
            if said is not None:
                return said
        return None

    def overfull(self, spec: ChunkSpec) -> str | None:
        """What the first filter that cannot take as much says, as far as sizes are known."""
        if not spec.sized or self.allow_pickle is None:
            return None
        for (identifier, step), form in zip(self.steps, self._forms(spec, 0), strict=False):
            if identifier in ARRAY_TO_ARRAY:
                continue
            made = step.overfull(form.most) if isinstance(step, BytesCodec) else None
            if made or not isinstance(step, BytesCodec) or step.encoded_nbytes(0) is None:
                return made  # beyond it sizes vary
        return None

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The bytes after the last filter."""
        if chunk.dtype.kind == "T":
            chunk = chunk.astype(object)
        dtype = chunk.dtype if self.stored is None else self.stored
        value: Any = np.asarray(chunk, dtype, order="C")
        sizes: list[int] = []
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
                check_zfp(identifier, step, value)
                value = attempt(identifier, step.encode, value)
            else:
                value = step.encode(flat(value))
            sizes.append(value.nbytes if isinstance(value, np.ndarray) else len(value))
        data = flat(value)
        if dtype.hasobject:
            room = ChunkSpec(chunk.shape, dtype, self.fill, self.most).room(len(data))
            if max(sizes) > room:
                raise Invalid(
                    f"a chunk of {counted(chunk.size, 'element')} has "
                    f"{counted(max(sizes), 'byte')}, the most that is "
                    f"read of {counted(len(data), 'stored one')} is {room}; use smaller "
                    f"chunks, or open it "
                    f'with limits={{"chunk": {max(sizes)}}}, here and wherever it is read'
                )
        return data

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The chunk. No filter is given, nor may make, more than encoding it could have made."""
        value: Any = data
        steps = self.steps
        forms = self._forms(spec, spec.room(len(data)))
        identifier = ""
        try:
            for (identifier, step), before, after in zip(
                steps[::-1], forms[-2::-1], forms[:0:-1], strict=True
            ):
                _check(value, after)
                value = self._undo(identifier, step, value, spec, before)
            _check(value, forms[0])
        except (StashError, MemoryError):
            raise
        except Exception as error:
            where = f"filter {identifier!r}: " if identifier else ""
            raise ValueError(f"{where}{reason(error)}") from error
        return self._chunk(value, spec)

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """Known only without filters."""
        return None if self.configs else spec.nbytes

    def encoded_limit(self, spec: ChunkSpec) -> int | None:
        """What the filters, one after another, can make of a chunk at most."""
        return self._forms(spec, 0)[-1].most if spec.sized else None

    def _forms(self, spec: ChunkSpec, room: int) -> list[_Form]:
        """What a chunk can be before each filter, and after the last: it follows from the metadata
        alone, but for elements of any length, for which ``room`` decides."""
        kept = vars(self).get("_kept")
        if kept is not None and kept[0] is spec and spec.sized:
            found: list[_Form] = kept[1]
            return found
        stored = spec.dtype if self.stored is None else self.stored
        objects = not spec.sized
        form = _Form(None, room) if objects else _Form(stored, spec.count * stored.itemsize)
        forms = [form]
        for identifier, step in self.steps:
            form = form.after(identifier, step, spec)
            forms.append(form)
        object.__setattr__(self, "_kept", (spec, forms))
        return forms

    def _undo(self, identifier: str, step: Any, value: Any, spec: ChunkSpec, before: _Form) -> Any:
        if identifier in _VLEN:
            return step.decode(flat(value), _objects(spec.shape, self.fill))
        if identifier == "vlen-array":
            data = flat(value)
            check_count(data, spec.count)
            arrays = step.decode(data)
            check_end(data, spec.count, sum(array.nbytes for array in arrays))
            return arrays
        if identifier in ("json2", "msgpack2"):
            most = max(before.most, spec.room(len(value)))
            return _items(identifier, step, flat(value), spec, most)
        if identifier == "pickle":
            return pickle.loads(flat(value))
        if identifier in ARRAY_TO_ARRAY | OBJECTS:
            if not np.size(value):
                return np.empty(0, spec.dtype)
            return step.decode(np.frombuffer(flat(value), np.uint8))
        if identifier in ARRAY_TO_BYTES:
            dtype = before.dtype
            if dtype is None:
                raise ValueError("elements of which nothing says how many they are")
            count = before.most // dtype.itemsize
            return decoded(identifier, bytes(flat(value)), count, dtype)
        return step.decode(flat(value), before.most)

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
                    f"{counted(len(data), 'byte')} where shape {spec.shape} of {spec.dtype} takes "
                    f"{spec.count * stored.itemsize}"
                )
            array = np.ndarray(spec.count, stored, data)
        if array.size != spec.count:
            raise ValueError(f"{counted(array.size, 'element')} where {spec.count} were expected")
        return array.reshape(spec.shape).astype(spec.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class _Form:
    """What a chunk is between two filters: the dtype of its elements, where it has one, and the
    most bytes."""

    dtype: np.dtype[Any] | None
    most: int

    def after(self, identifier: str, step: Any, spec: ChunkSpec) -> _Form:
        """What a filter makes of it."""
        if identifier == "packbits":
            return _Form(_BYTE, 1 + -(-self.most // 8))
        if identifier in _RETYPES:
            before, after = (getattr(step, name) for name in _RETYPES[identifier])
            return _Form(after, -(-self.most // before.itemsize) * after.itemsize)
        if identifier == "categorize":
            return _Form(step.astype, spec.count * step.astype.itemsize)
        if identifier == "bitround":
            return self
        if identifier in OBJECTS:  # any number of bytes for each element, of numbers too
            return _Form(_BYTE, max(self.most, spec.room(0)))
        if identifier in ARRAY_TO_BYTES:
            return _Form(_BYTE, 2 * self.most + _SLACK)
        return _Form(_BYTE, step.encoded_limit(self.most))


def _check(value: Any, form: _Form) -> None:
    """``ValueError`` where there is more of a chunk than there can be at this point."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return  # as many as the chunk has: made by a filter that was told so
    size = value.nbytes if isinstance(value, np.ndarray | memoryview) else len(value)
    if size > form.most:
        raise ValueError(f"{counted(size, 'byte')} where {form.most} are the most")


def _items(identifier: str, step: Any, data: Buffer, spec: ChunkSpec, most: int) -> NDArray[Any]:
    """The elements of a json2 or msgpack2 chunk: ``[*elements, dtype, shape]``.

    Read here rather than by numcodecs, which allocates whatever shape and dtype the data name.
    ``most``: bytes that all that is within them may take.
    """
    if identifier == "json2":
        text = bytes(data)
        if len(text) * OBJECT_BYTES > most:
            _check_objects(values_in(text), len(text), most)
        items = json.loads(text.decode(step._text_encoding))
    else:
        msgpack = importlib.import_module("msgpack")
        if len(data) * OBJECT_BYTES > most:
            kinds = np.frombuffer(data, np.uint8)
            lists = (kinds & 0xE0 == 0x80) | (kinds & 0xFC == 0xDC)  # and maps, by their first byte
            _check_objects(int(np.count_nonzero(lists)), 8 * len(data), most)
        # Reads through it without making anything: what it says of lengths is true.
        scan = msgpack.Unpacker(max_buffer_size=0)
        scan.feed(data)
        scan.skip()
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
        raise ValueError(f"{counted(len(level), 'element')} where {spec.count} were expected")
    array = np.empty(spec.count, object)
    for index, item in enumerate(level):
        array[index] = item
    return array


def _check_objects(count: int, nbytes: int, most: int) -> None:
    if count * OBJECT_BYTES + nbytes > most:
        raise ValueError(
            f"{counted(count, 'value')} in "
            f"{counted(nbytes, 'byte takes', 'bytes take')} more than {most} in memory"
        )


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
