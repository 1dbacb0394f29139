"""Codec ``cast_value``: a chunk's numbers as numbers of another data type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash import fill as fills
from tensorstash.codec import ArrayCodec, Cached, ChunkSpec, Codec, short, take
from tensorstash.codecs.casting import ROUNDINGS, Cast, is_integer, is_real
from tensorstash.dtype import from_v3
from tensorstash.errors import Invalid

_PAIRS = 1 << 16
"""Most entries of a scalar map: one for each number of 16 bits."""


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    known = take(
        name, configuration, data_type=(str, dict), rounding=str, out_of_range=str, scalar_map=dict
    )
    if "data_type" not in known:
        raise Invalid("codec 'cast_value' needs its 'data_type', what to store numbers as")
    return CastValue(**known)


@dataclass(frozen=True, eq=False, repr=False)
class CastValue(ArrayCodec):
    """Stores numbers as ``data_type``, by value (registered Zarr v3 codec ``cast_value``).

    What ``data_type`` has no exact number for is rounded (``rounding``: ``"nearest-even"``,
    ``"nearest-away"``, ``"towards-zero"``, ``"towards-positive"``, ``"towards-negative"``). What is
    beyond its range is refused, or by ``out_of_range`` made the nearest end (``"clamp"``; of floats
    infinity, where the type has it) or taken modulo its bits (``"wrap"``, integers only). Before
    all that, ``scalar_map`` says what becomes of single numbers:
    ``{"encode": [["NaN", 0]], "decode": [[0, "NaN"]]}``. Decoding goes by the same rules. The fill
    value must come back as it was.
    """

    name: ClassVar[str] = "cast_value"
    data_type: Any
    rounding: str | None = None
    out_of_range: str | None = None
    scalar_map: Mapping[str, Any] | None = None
    source: np.dtype[Any] | None = None

    def __post_init__(self) -> None:
        target = self._target
        if not is_real(target):
            raise Invalid(f"codec 'cast_value' casts to integers and floats, not {target}")
        if self.rounding not in (None, *ROUNDINGS):
            raise Invalid(
                f"codec 'cast_value' rounding is one of {', '.join(ROUNDINGS)}, not "
                + short(self.rounding)
            )
        if self.out_of_range not in (None, "clamp", "wrap"):
            raise Invalid(
                "codec 'cast_value' out_of_range is 'clamp' or 'wrap', not "
                + short(self.out_of_range)
            )
        if self.out_of_range == "wrap" and not is_integer(target):
            raise Invalid(f"codec 'cast_value' wraps integers only, not {target}")
        for key, pairs in (self.scalar_map or {}).items():
            if key not in ("encode", "decode"):
                raise Invalid(
                    f"codec 'cast_value' scalar_map has 'encode' and 'decode', not {short(key)}"
                )
            if not isinstance(pairs, list | tuple) or len(pairs) > _PAIRS:
                raise Invalid(
                    f"codec 'cast_value' scalar_map {key!r} is a list of up to {_PAIRS} pairs, "
                    f"not {short(pairs)}"
                )
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise Invalid(f"codec 'cast_value' scalar_map has no pair {short(pair)}")

    @Cached
    def _target(self) -> np.dtype[Any]:
        return from_v3(self.data_type)

    def configuration(self) -> dict[str, Any]:
        """What was given."""
        told = {
            "rounding": self.rounding,
            "out_of_range": self.out_of_range,
            "scalar_map": self.scalar_map,
        }
        given = {key: value for key, value in told.items() if value is not None}
        return {"data_type": self.data_type, **given}

    def bind(self, spec: ChunkSpec) -> CastValue:
        """For numbers of ``spec``'s dtype, when its fill value comes back as it is."""
        if not is_real(spec.dtype):
            raise Invalid(f"codec 'cast_value' casts integers and floats, not {spec.dtype}")
        bound = CastValue(
            self.data_type, self.rounding, self.out_of_range, self.scalar_map, spec.dtype
        )
        try:
            back = bound._casts[1](bound._casts[0](spec.fill))
        except ValueError as error:
            raise Invalid(f"codec 'cast_value' cannot cast the fill value: {error}") from error
        both_nan = bool(back != back) and bool(spec.fill != spec.fill)
        if back.tobytes() != spec.fill.tobytes() and not both_nan:
            raise Invalid(
                f"codec 'cast_value' makes {back[()]} of the fill value {spec.fill[()]} through "
                f"{self._target}; choose another, or map it by scalar_map"
            )
        return bound

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` as the other dtype, its fill value cast."""
        return ChunkSpec(spec.shape, self._target, self._casts[0](spec.fill))

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """The numbers as ``data_type``."""
        return self._casts[0](chunk)

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """The numbers as the array's own dtype."""
        return self._casts[1](chunk)

    @Cached
    def _casts(self) -> tuple[Cast, Cast]:
        assert self.source is not None
        return self._cast("encode", self.source, self._target), self._cast(
            "decode", self._target, self.source
        )

    def _cast(self, key: str, source: np.dtype[Any], target: np.dtype[Any]) -> Cast:
        pairs = [
            (fills.from_json(before, source, 3), fills.from_json(after, target, 3))
            for before, after in (self.scalar_map or {}).get(key, ())
        ]
        return Cast(source, target, self.rounding or ROUNDINGS[0], self.out_of_range, pairs)
