"""Codecs registered with zarr-python, behind our contracts; not a Zarr name itself.

The last resort for a name: zarr is imported only when nobody else knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import ArrayCodec, Buffer, BytesCodec, ChunkSpec, Codec, Serializer, short
from tensorstash.codecs.streams import pour
from tensorstash.errors import Invalid, Unsupported


def find(name: str) -> Callable[[str, Mapping[str, Any]], Codec] | None:
    """What makes zarr-python's codec ``name``; ``None`` without zarr or without the codec."""
    try:
        from zarr.registry import get_codec_class
    except ImportError:
        return None
    try:
        get_codec_class(name)
    except (KeyError, ValueError):  # in zarr 3.4 UnknownCodecError is a ValueError
        return None
    return _make


def _make(name: str, configuration: Mapping[str, Any]) -> Codec:
    from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec
    from zarr.registry import get_codec_class

    kind = get_codec_class(name)
    try:
        codec = kind.from_dict({"name": name, "configuration": dict(configuration)})
    except (TypeError, ValueError, KeyError) as error:
        raise Invalid(
            f"codec {name!r} cannot have {short(dict(configuration))}: {error}"
        ) from error
    if isinstance(codec, ArrayArrayCodec):
        return ZarrArray(name, codec)
    if isinstance(codec, ArrayBytesCodec):
        return ZarrSerializer(name, codec)
    return ZarrBytes(name, codec)


class _Foreign(Codec):
    """What the three kinds share: zarr's codec, and the chunk it is bound to."""

    codec: Any
    spec: ChunkSpec | None

    def configuration(self) -> dict[str, Any]:
        """As zarr's codec states it."""
        document = self.codec.to_dict()
        return dict(document.get("configuration") or {})

    def bind(self, spec: ChunkSpec) -> Codec:
        """With what zarr's codec learns of the chunk."""
        described = describe(spec, self.name)
        try:
            codec = self.codec.evolve_from_array_spec(described)
        except (TypeError, ValueError) as error:
            raise Invalid(f"codec {self.name!r} cannot take {spec.dtype}: {error}") from error
        return replace(self, codec=codec, spec=spec)  # type: ignore[type-var]

    def _run(self, verb: str, value: Any, spec: ChunkSpec | None) -> Any:
        described = describe(spec or _UNBOUND, self.name)
        direct = getattr(self.codec, f"_{verb}_sync", None)
        try:
            if direct is not None:
                result = direct(value, described)
            else:
                from zarr.core.sync import sync

                result = sync(getattr(self.codec, f"_{verb}_single")(value, described))
        except Exception as error:
            kind = Invalid if verb == "encode" else ValueError
            raise kind(f"codec {self.name!r} does not {verb} this chunk: {error}") from error
        if result is None:
            raise Invalid(f"codec {self.name!r} gives no bytes for this chunk")
        return result


@dataclass(frozen=True, eq=False, repr=False)
class ZarrArray(_Foreign, ArrayCodec):
    """An array -> array codec of zarr-python."""

    # The contract has a name per class; here there is one per object.
    name: str = ""  # type: ignore[misc]
    codec: Any = None
    spec: ChunkSpec | None = field(default=None, compare=False)

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """As zarr's codec resolves it."""
        result = self.codec.resolve_metadata(describe(spec, self.name))
        dtype = result.dtype.to_native_dtype()
        fill = np.zeros((), dtype)
        fill[()] = result.fill_value
        return ChunkSpec(tuple(result.shape), dtype, fill)

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """The chunk as the next codec sees it."""
        result = self._run("encode", _array(chunk), self.spec)
        return np.asarray(result.as_numpy_array())

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """The inverse."""
        return _checked(self._run("decode", _array(chunk), spec), spec)


@dataclass(frozen=True, eq=False, repr=False)
class ZarrSerializer(_Foreign, Serializer):
    """An array -> bytes codec of zarr-python."""

    name: str = ""  # type: ignore[misc]
    codec: Any = None
    spec: ChunkSpec | None = field(default=None, compare=False)

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The chunk's bytes."""
        spec = self.spec or ChunkSpec(chunk.shape, chunk.dtype, np.zeros((), chunk.dtype))
        plain = np.asarray(chunk, spec.dtype, order="C")
        return bytes(self._run("encode", _array(plain), spec).to_bytes())

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """An array of ``spec.shape`` and ``spec.dtype``."""
        return _checked(self._run("decode", _buffer(data), spec), spec)

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """As zarr's codec computes it, when its size is fixed."""
        if not self.codec.is_fixed_size:
            return None
        return int(self.codec.compute_encoded_size(spec.nbytes, describe(spec, self.name)))


@dataclass(frozen=True, eq=False, repr=False)
class ZarrBytes(_Foreign, BytesCodec):
    """A bytes -> bytes codec of zarr-python. Only its result can be checked against a limit."""

    name: str = ""  # type: ignore[misc]
    codec: Any = None
    spec: ChunkSpec | None = field(default=None, compare=False)

    def encode(self, data: Buffer) -> Buffer:
        """Encoded bytes."""
        return bytes(self._run("encode", _buffer(data), self.spec).to_bytes())

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """Decoded bytes."""
        result = self._run("decode", _buffer(data), self.spec)
        return pour((bytes(result.to_bytes()),), limit, out)


_UNBOUND = ChunkSpec((0,), np.dtype(np.uint8), np.zeros((), np.uint8))


def describe(spec: ChunkSpec, name: str) -> Any:
    """``spec`` in zarr-python's words."""
    from zarr.core.array_spec import ArrayConfig, ArraySpec
    from zarr.core.buffer import default_buffer_prototype

    try:
        from zarr.dtype import parse_dtype

        dtype = parse_dtype(spec.dtype, zarr_format=3)
    except (ImportError, ValueError, TypeError) as error:
        raise Unsupported(
            f"codec {name!r} is zarr-python's, which does not know dtype {spec.dtype}: {error}"
        ) from error
    return ArraySpec(
        shape=spec.shape,
        dtype=dtype,
        fill_value=spec.fill[()],
        config=ArrayConfig(order="C", write_empty_chunks=False),
        prototype=default_buffer_prototype(),
    )


def _array(chunk: NDArray[Any]) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().nd_buffer.from_numpy_array(chunk)


def _buffer(data: Buffer) -> Any:
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(data)


def _checked(result: Any, spec: ChunkSpec) -> NDArray[Any]:
    chunk = np.asarray(result.as_numpy_array())
    # Zarr keeps the stored byte order in memory.
    if chunk.shape != spec.shape or chunk.dtype.newbyteorder("=") != spec.dtype.newbyteorder("="):
        raise ValueError(
            f"it gives shape {chunk.shape} of {chunk.dtype}, not {spec.shape} of {spec.dtype}"
        )
    return chunk.astype(spec.dtype, copy=False)
