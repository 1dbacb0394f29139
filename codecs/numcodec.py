"""Codecs of the ``numcodecs`` package behind our contracts; not a Zarr name itself.

What each one is (array -> array, array -> bytes, bytes -> bytes) follows zarr-python's
``zarr.codecs.numcodecs``. Decoders whose format allows it are bounded.
"""

from __future__ import annotations

import base64
import bz2
import difflib
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numcodecs import lz4, registry
from numpy.typing import NDArray

from tensorstash.codec import (
    ArrayCodec,
    Buffer,
    BytesCodec,
    Cached,
    ChunkSpec,
    Codec,
    reason,
    short,
)
from tensorstash.codecs import blosc, gzip, zstd
from tensorstash.codecs.streams import check_claim, expand, inflate, pour
from tensorstash.errors import Invalid, StashError, Unsupported, counted

ARRAY_TO_ARRAY = frozenset(
    ("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize")
)
ARRAY_TO_BYTES = frozenset(("pcodec", "zfpy"))
OBJECTS = frozenset(
    ("categorize", "json2", "msgpack2", "pickle", "vlen-array", "vlen-bytes", "vlen-utf8")
)
"""Filters of Zarr v2 that take objects."""

_OURS = {"blosc": blosc.make, "gzip": gzip.make, "zstd": zstd.make}
# numcodecs' defaults, where they differ from ours.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "blosc": {"shuffle": 1},
    "gzip": {"level": 1},
    "zstd": {"level": 0},
}
_CHECKSUMS = frozenset(("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"))
_XZ_MEMORY = 1 << 28
"""Bytes an xz decoder may use: a header can ask for a dictionary of 4 GiB."""
_INDENT = 1024
_LZ4_MOST = 0x7E000000
"""LZ4_MAX_INPUT_SIZE."""
_RANGES: dict[str, dict[str, tuple[int, int]]] = {
    "zlib": {"level": (-1, 9)},
    "bz2": {"level": (1, 9)},
    "lz4": {"acceleration": (-(2**31), 2**31 - 1)},
    "lzma": {"format": (0, 3), "check": (-1, 15)},
    "shuffle": {"elementsize": (0, 1 << 24)},
}
"""Options of bytes -> bytes codecs that are numbers, from the least to the most."""


_ENCODING: dict[str, frozenset[str]] = {
    "zlib": frozenset(("level",)),
    "bz2": frozenset(("level",)),
    "lz4": frozenset(("acceleration",)),
    "lzma": frozenset(("preset", "check")),
    "json2": frozenset(("indent",)),
    "pcodec": frozenset(
        (
            *("level", "mode_spec", "delta_spec", "paging_spec", "delta_encoding_order"),
            "equal_pages_up_to",
        )
    ),
    "zfpy": frozenset(("mode", "tolerance", "rate", "precision")),
}
"""Options that only encoding needs."""


def load_to_read(identifier: str, options: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The numcodecs object, and why it is not to encode, where that is all it is unfit for."""
    try:
        return load(identifier, options), None
    except Invalid as error:
        aside = _ENCODING.get(identifier, frozenset())
        needed = {key: value for key, value in options.items() if key not in aside}
        if len(needed) == len(options):
            raise
        return load(identifier, needed), str(error)


def load(identifier: str, options: Mapping[str, Any]) -> Any:
    """The numcodecs object; :class:`~tensorstash.errors.Unsupported` when there is none."""
    _check_options(identifier, options)
    try:
        return registry.get_codec({**options, "id": identifier})
    except (StashError, RecursionError, MemoryError):
        raise
    except ValueError as error:
        if identifier in registry.codec_registry:
            raise _unfit(identifier, options, error) from error
        needs = {"msgpack2": "msgpack"}.get(identifier, identifier)
        close = difflib.get_close_matches(identifier[:400], registry.codec_registry, 1)
        known = identifier in ARRAY_TO_BYTES | {"msgpack2"}
        hint = f"; did you mean {close[0]!r}?" if close else ""
        hint = f"; it needs the package {needs!r}: pip install {needs}" if known else hint
        raise Unsupported(f"numcodecs has no codec {short(identifier)}{hint}") from error
    except Exception as error:  # they raise what they like
        raise _unfit(identifier, options, error) from error


def _unfit(identifier: str, options: Mapping[str, Any], error: Exception) -> Invalid:
    detail = reason(error)
    return Invalid(f"codec {identifier!r} cannot have {short(dict(options))}: {detail}")


def _check_options(identifier: str, options: Mapping[str, Any]) -> None:
    """Numbers that the library behind a codec takes when it is made, and refuses, each in its own
    way, when it encodes: with such a codec nobody can have written anything."""
    for name, (low, high) in _RANGES.get(identifier, {}).items():
        value = options.get(name)
        if value is None:
            continue
        if type(value) is not int or not low <= value <= high:
            raise Invalid(
                f"codec {identifier!r} {name} is an integer from {low} to {high}, not "
                + short(value)
            )
    if identifier == "lzma":
        _check_lzma(options)
    elif identifier == "json2":
        _check_indent(options.get("indent"))


def _check_indent(indent: Any) -> None:
    """What each line of a chunk begins with: with gigabytes of it nobody can write one."""
    size = len(indent) if isinstance(indent, str) else indent
    if isinstance(size, int) and size > _INDENT:
        raise Invalid(f"codec 'json2' indent is at most {_INDENT} characters, not {short(indent)}")


def _check_lzma(options: Mapping[str, Any]) -> None:
    """What a raw stream does not say, and the decoder allocates as it is told."""
    preset, filters = options.get("preset"), options.get("filters")
    if preset is not None and (
        type(preset) is not int or preset & ~lzma.PRESET_EXTREME not in range(10)
    ):
        raise Invalid(f"codec 'lzma' preset is an integer from 0 to 9, not {short(preset)}")
    if filters is None:
        return
    listed = isinstance(filters, Sequence) and not isinstance(filters, str)
    if not listed or not all(isinstance(item, Mapping) for item in filters) or len(filters) > 4:
        raise Invalid(f"codec 'lzma' filters are a list of up to 4 objects, not {short(filters)}")
    for item in filters:
        size = item.get("dict_size", 0)
        if type(size) is not int or not 0 <= size <= _XZ_MEMORY:
            raise Invalid(
                f"codec 'lzma' dict_size is at most {_XZ_MEMORY} bytes, not {short(size)}"
            )


def wrap(config: Mapping[str, Any]) -> BytesCodec:
    """The bytes -> bytes codec of a numcodecs config such as ``{"id": "zlib", "level": 1}``.

    Blosc, gzip and zstd are our own, so a v2 array gains their speed and checks.
    """
    identifier, options = identify(config)
    if identifier in ARRAY_TO_ARRAY | ARRAY_TO_BYTES | OBJECTS:  # those of v2 come as filters
        raise Unsupported(f"codec {identifier!r} takes arrays, not bytes; use it as a filter")
    inner = None
    if identifier in _OURS:
        known = {**_DEFAULTS[identifier], **options}
        made = _OURS[identifier](identifier, as_numcodecs(identifier, known))
        assert isinstance(made, BytesCodec)
        inner = made
    wrapped = NumcodecBytes(f"numcodecs.{identifier}", options, inner)
    if inner is None:
        load_to_read(identifier, options)
    return wrapped


def as_numcodecs(identifier: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Levels beyond what the Zarr codecs know, as the libraries behind numcodecs take them."""
    level = options.get("level")
    if type(level) is int:
        if identifier == "gzip" and level == -1:
            return {**options, "level": 6}  # zlib's default
        if identifier == "zstd":
            return {**options, "level": min(max(level, -131072), 22)}
    return dict(options)


def identify(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The ``id`` of a numcodecs config, and its options."""
    options = dict(config)
    identifier = options.pop("id", None)
    if not isinstance(identifier, str):
        raise Invalid(f"{short(dict(config))} is not a numcodecs config: it has no 'id'")
    return identifier, options


class Named(Codec):
    """A codec whose name is known when it is made, and whose options stay as they were given."""

    options: Mapping[str, Any]

    def configuration(self) -> dict[str, Any]:
        """The options in numcodecs' own words."""
        return dict(self.options)

    def document(self) -> dict[str, Any]:
        """With ``configuration`` even when empty: zarr-python refuses it otherwise."""
        return {"name": self.name, "configuration": self.configuration()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {dict(self.options)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "codec"}

    @property
    def identifier(self) -> str:
        """The name without its prefix."""
        return self.name.removeprefix("numcodecs.")

    @Cached
    def codec(self) -> Any:
        """The numcodecs object."""
        return load_to_read(self.identifier, self.options)[0]

    @property
    def unfit(self) -> str | None:
        """What numcodecs, or we, say of its options."""
        try:
            return load_to_read(self.identifier, self.options)[1]
        except StashError:  # said when it is bound, with the options that the chunk gives
            return None


@dataclass(frozen=True, eq=False, repr=False)
class NumcodecBytes(Named, BytesCodec):
    """A bytes -> bytes codec of numcodecs; ``inner`` is ours where we have one."""

    # The contract has a name per class; here there is one per object.
    name: str = ""  # type: ignore[misc]
    options: Mapping[str, Any] = field(default_factory=dict)
    inner: BytesCodec | None = None

    @property
    def unfit(self) -> str | None:
        """As our own codec says, where we have one."""
        return super().unfit if self.inner is None else self.inner.unfit

    @property
    def step(self) -> str | None:  # type: ignore[override]
        """That of our own codec, where we have one."""
        if self.inner is not None:
            return self.inner.step
        return self.identifier if self.identifier in ("lz4", "zlib") else None

    @property
    def capacity(self) -> int | None:
        """What the library behind it takes."""
        if self.inner is not None:
            return self.inner.capacity
        return _LZ4_MOST if self.identifier == "lz4" else None

    def overfull(self, nbytes: int) -> str | None:
        """As of any codec; ``shuffle`` moves whole elements only."""
        size = self.options.get("elementsize") if self.identifier == "shuffle" else None
        if size and nbytes % size:
            return (
                f"codec {self.name!r} takes whole elements of {counted(size, 'byte')}, "
                f"not {counted(nbytes, 'byte')}; use another elementsize"
            )
        return super().overfull(nbytes)

    def bind(self, spec: ChunkSpec) -> NumcodecBytes:
        """With ``elementsize`` filled in for ``shuffle``, as zarr-python does."""
        if spec.sized and (overfull := super().overfull(spec.nbytes)):
            raise Invalid(overfull)
        if self.inner is not None:
            inner = self.inner.bind(spec)
            assert isinstance(inner, BytesCodec)
            return replace(self, inner=inner)
        if self.identifier == "shuffle" and self.options.get("elementsize") is None:
            return replace(self, options={**self.options, "elementsize": spec.dtype.itemsize})
        assert self.codec is not None
        return self

    def encode(self, data: Buffer) -> Buffer:
        """What numcodecs makes of ``data``."""
        if overfull := self.overfull(len(data)):
            raise Invalid(overfull)
        if self.inner is not None:
            return self.inner.encode(data)
        if self.identifier == "fletcher32" and not data:
            return b"\0\0\0\0"  # numcodecs indexes the first byte; the sum of nothing is 0
        return flat(attempt(self.name, self.codec.encode, data))

    def step_options(self, nbytes: int) -> tuple[int, ...] | None:
        """Those of our own codec, where we have one."""
        if self.inner is not None:
            return self.inner.step_options(nbytes)
        if self.identifier == "lz4":
            return (int(self.codec.acceleration),)
        if self.identifier == "zlib":
            return (int(self.codec.level),) if self.codec.level else None
        return None

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """The inverse; by streams of bounded size where the format has them."""
        if self.inner is not None:
            return self.inner.decode(data, limit, out)
        identifier = self.identifier
        try:
            if identifier == "lz4":
                return _unlz4(data, limit, out)
            if identifier == "zlib":
                return pour(inflate(data, 15), limit, out)
            if identifier == "bz2":
                return pour(expand(bz2.BZ2Decompressor, data), limit, out)
            if identifier == "lzma":
                return pour(expand(self._xz, data), limit, out)
            if identifier == "base64":
                # numcodecs skips over what is not base64.
                return pour((base64.b64decode(data, validate=True),), limit, out)
            if identifier in _CHECKSUMS and len(data) <= 4:
                if data == b"\0\0\0\0" and identifier == "fletcher32":
                    return pour((), limit, out)
                if len(data) < 4:
                    raise ValueError(
                        f"{counted(len(data), 'byte is', 'bytes are')} too few for a checksum"
                    )
            return pour((flat(self.codec.decode(data)),), limit, out)
        except (StashError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(reason(error)) from error

    def encoded_nbytes(self, nbytes: int) -> int | None:
        """What checksums and ``shuffle`` make of them."""
        if self.identifier in _CHECKSUMS:
            return nbytes + 4
        return nbytes if self.identifier == "shuffle" else None

    def encoded_limit(self, nbytes: int) -> int:
        """As :meth:`encoded_nbytes`, or as our own codec, where we have one."""
        exact, inner = self.encoded_nbytes(nbytes), self.inner
        if exact is not None:
            return exact
        return super().encoded_limit(nbytes) if inner is None else inner.encoded_limit(nbytes)

    def _xz(self) -> lzma.LZMADecompressor:
        form = self.codec.format
        # A raw stream has no header to ask too much: its dictionary stands in the options, which
        # were checked when the codec was made.
        memory = None if form == lzma.FORMAT_RAW else _XZ_MEMORY
        return lzma.LZMADecompressor(form, memory, self.codec.filters)


@dataclass(frozen=True, eq=False, repr=False)
class NumcodecArray(Named, ArrayCodec):
    """An array -> array codec of numcodecs. Chunks pass through it flat, in C order."""

    name: str = ""  # type: ignore[misc]
    options: Mapping[str, Any] = field(default_factory=dict)
    spec: ChunkSpec | None = field(default=None, compare=False)

    def bind(self, spec: ChunkSpec) -> NumcodecArray:
        """With the element type filled in, as zarr-python does, and checked."""
        options = dict(self.options)
        key = {"astype": "decode_dtype", "bitround": "", "packbits": ""}.get(
            self.identifier, "dtype"
        )
        if key:
            if options.get(key) is None:
                options[key] = spec.dtype.str
            told = number(self.name, options[key])
            if told.itemsize != spec.dtype.itemsize or not told.isnative or spec.dtype.hasobject:
                raise Invalid(
                    f"codec {self.name!r} is set up for {key} {told.str!r}, the chunk has "
                    f"{spec.dtype.str!r}"
                )
        elif self.identifier == "packbits" and spec.dtype != np.bool_:
            raise Invalid(f"codec {self.name!r} packs bool, not {spec.dtype}")
        elif self.identifier == "bitround" and spec.dtype.str[1:] not in ("f2", "f4", "f8"):
            raise Invalid(f"codec {self.name!r} rounds floats of 16 to 64 bits, not {spec.dtype}")
        bound = replace(self, options=options, spec=spec)
        bound.encoded(spec)
        assert bound.codec is not None
        return bound

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` with the stored element type; packed bits are one axis of bytes."""
        options = self.options
        if self.identifier == "packbits":
            zero = np.zeros((), np.uint8)
            return ChunkSpec((1 + -(-spec.count // 8),), zero.dtype, zero)
        if self.identifier == "bitround":
            return spec
        key = "encode_dtype" if self.identifier == "astype" else "astype"
        told = options.get(key)
        dtype = (
            number(self.name, told)
            if told is not None
            else number(self.name, options.get("dtype", spec.dtype.str))
        )
        if dtype == spec.dtype:
            return spec
        with np.errstate(all="ignore"):
            return ChunkSpec(spec.shape, dtype, spec.fill.astype(dtype))

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """The filtered chunk."""
        spec = self.spec or ChunkSpec(chunk.shape, chunk.dtype, np.zeros((), chunk.dtype))
        target = self.encoded(spec)
        if not spec.count and self.identifier != "packbits":
            return np.empty(target.shape, target.dtype)
        plain = np.asarray(chunk, spec.dtype, order="C")
        result = np.asarray(attempt(self.name, self.codec.encode, plain))
        return result.reshape(target.shape).view(target.dtype)

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """The inverse; lossy filters give back what they kept."""
        if not spec.count:
            return np.empty(spec.shape, spec.dtype)
        plain = np.asarray(chunk, self.encoded(spec).dtype, order="C")
        result = np.asarray(self.codec.decode(plain))
        return result.reshape(spec.shape).view(spec.dtype)


def attempt(name: str, encode: Any, value: Any) -> Any:
    """``encode(value)`` with what it raises as :class:`~tensorstash.errors.Invalid`."""
    try:
        return encode(value)
    except (StashError, MemoryError):
        raise
    except Exception as error:  # numcodecs, and what it calls, raise what they like
        detail = reason(error)
        raise Invalid(f"codec {name!r} cannot encode this chunk: {detail}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        detail = reason(error)
        raise Invalid(f"codec {name!r} cannot encode this chunk: {detail}") from error


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up: that arrives beside ``Exception``."""
    return type(error).__name__ == "PanicException"


def number(name: str, value: Any) -> np.dtype[Any]:
    """The dtype of an option, which must be of numbers, bool or time."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except Exception as error:  # SyntaxError, KeyError, ...: NumPy parses what it is given
        raise Invalid(
            f"codec {name!r} names a dtype {short(value)} that NumPy does not know"
        ) from error
    if dtype.kind not in "biufcmM" or dtype.itemsize == 0:
        raise Invalid(f"codec {name!r} does not take dtype {short(value)}; numbers only")
    return dtype


def flat(value: Any) -> Buffer:
    """What numcodecs answers (bytes, an array, a typed view) as plain bytes."""
    if isinstance(value, bytes | bytearray):
        return value
    array = np.asarray(value)
    return array.reshape(-1).view(np.uint8).data


def _unlz4(data: Buffer, limit: int, out: memoryview | None) -> Buffer:
    if len(data) < 4:
        raise ValueError(f"{counted(len(data), 'byte is', 'bytes are')} too few for an lz4 size")
    size = int.from_bytes(data[:4], "little")
    check_claim(size, len(data), limit, out)
    if not size:
        # LZ4 encodes nothing as one zero byte.
        if bytes(data) not in (b"\0\0\0\0", b"\0\0\0\0\0"):
            raise ValueError("bytes follow an empty lz4 block")
        return b"" if out is None else out
    target = np.empty(size, np.uint8).data if out is None else out
    lz4.decompress(data, target)
    return target
