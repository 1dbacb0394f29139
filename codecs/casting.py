"""Numbers of one dtype as numbers of another, by stated rules; not a Zarr name itself.

Nothing here rounds but where a rule says so. Values are first widened without loss, to int64,
uint64 or float64; floats are rounded to a narrower type's grid in float64, where both the grid and
the result are exact.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Cached
from tensorstash.dtype import int_range, is_extended, is_small_int

Rounding = Literal[
    "nearest-even", "towards-zero", "towards-positive", "towards-negative", "nearest-away"
]
OutOfRange = Literal["clamp", "wrap"]
Pairs = Sequence[tuple[NDArray[Any], NDArray[Any]]]

ROUNDINGS = (
    *("nearest-even", "towards-zero", "towards-positive", "towards-negative", "nearest-away"),
)

_BY_NUMPY = {
    "nearest-even": np.rint,
    "towards-zero": np.trunc,
    "towards-positive": np.ceil,
    "towards-negative": np.floor,
}


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is of integers, those of two and four bits included."""
    return dtype.kind in "iu" or is_small_int(dtype)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of ``dtype`` are cast here: all real ones, but for ``float8_e8m0fnu``, which
    has neither zero nor sign."""
    return dtype.kind in "iuf" or (is_extended(dtype) and dtype.name != "float8_e8m0fnu")


@dataclass(frozen=True, eq=False)
class Cast:
    """From one dtype to another: ``pairs`` first, then by ``rounding`` and ``beyond``.

    ``pairs``: scalars of ``source`` and what becomes of them, the first of a scalar counts.
    """

    source: np.dtype[Any]
    target: np.dtype[Any]
    rounding: str
    beyond: str | None
    pairs: Pairs

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` as ``target``; ``ValueError`` where no rule says what becomes of one."""
        # Flat, for NumPy warns of scalars that wrap.
        plain = np.asarray(values, self.source.newbyteorder("=")).reshape(-1)
        return self._mapped(plain).reshape(values.shape)

    def _mapped(self, plain: NDArray[Any]) -> NDArray[Any]:
        if not self.pairs:
            return self._cast(plain)
        known, outputs = self._table
        wide = _widen(plain)
        at = np.minimum(np.searchsorted(known, wide, side="left"), len(known) - 1)
        hit = known[at] == wide
        if wide.dtype.kind == "f" and np.isnan(known[-1]):
            nan = np.isnan(wide)
            at, hit = np.where(nan, int(np.argmax(np.isnan(known))), at), hit | nan
        rest = np.where(hit, np.zeros((), self.source), plain) if hit.any() else plain
        return np.where(hit, outputs[at], self._cast(rest))

    @Cached
    def _table(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The scalars that pairs speak of, in order, and what becomes of each."""
        keys = _widen(np.array([pair[0] for pair in self.pairs], self.source))
        order = np.argsort(keys, kind="stable")  # the first of equals first; NaN at the end
        return keys[order], np.array([pair[1] for pair in self.pairs], self.target)[order]

    def _cast(self, plain: NDArray[Any]) -> NDArray[Any]:
        if plain.dtype == self.target:
            return plain
        wide = _widen(plain)
        if is_integer(self.target):
            if wide.dtype.kind == "f":
                return self._whole(wide)
            return self._integers(wide)
        return self._floats(wide)

    def _integers(self, wide: NDArray[Any]) -> NDArray[Any]:
        low, high = int_range(self.target)
        least, most = int_range(wide.dtype)
        kind = wide.dtype.type
        clipped = wide.clip(kind(max(low, least)), kind(min(high, most)))
        if self.beyond != "clamp":
            outside = clipped != wide
            if outside.any():
                if self.beyond != "wrap":
                    raise _outside(wide[outside].flat[0], self.target)
                return _modulo(wide.view(np.uint64), self.target)
        return _narrow(clipped, self.target)

    def _whole(self, wide: NDArray[Any]) -> NDArray[Any]:
        finite = np.isfinite(wide)
        if not finite.all():
            raise _outside(wide[~finite].flat[0], self.target)
        whole = round_whole(wide, self.rounding)
        low, high = int_range(self.target)
        # Both ends are powers of two, or zero: exact in float64, as the greatest may not be.
        above, below = whole >= float(high + 1), whole < float(low)
        outside = above | below
        kind = np.uint64 if low == 0 else np.int64
        if not outside.any():
            return _narrow(whole.astype(kind), self.target)
        if self.beyond == "clamp":
            made = np.where(outside, 0.0, whole).astype(kind)
            made[above], made[below] = high, low
            return _narrow(made, self.target)
        if self.beyond == "wrap":
            rest = np.fmod(whole, 2.0**64)  # exact, and so is its magnitude as uint64
            size = np.abs(rest).astype(np.uint64)
            return _modulo(np.where(rest < 0, ~size + np.uint64(1), size), self.target)
        raise _outside(wide[outside].flat[0], self.target)

    def _floats(self, wide: NDArray[Any]) -> NDArray[Any]:
        form = _form(self.target)
        if wide.dtype.kind == "f":
            made = wide if form.digits == 53 else form.on_grid(wide, self.rounding)
        else:
            made = _significant(wide, form.digits, self.rounding)
        infinite = np.isinf(wide) if wide.dtype.kind == "f" else np.zeros(wide.shape, bool)
        if infinite.any() and not form.infinite:
            raise _outside(wide[infinite].flat[0], self.target)
        over = (np.abs(made) > form.most) & ~infinite
        if over.any():
            if self.beyond != "clamp":
                raise _outside(wide[over].flat[0], self.target)
            edge = math.inf if form.infinite else form.most
            made = np.where(over, np.copysign(edge, made), made)
        return made.astype(self.target)


def round_whole(values: NDArray[Any], rounding: str) -> NDArray[Any]:
    """Finite or not, to whole numbers."""
    made: NDArray[Any]
    if rounding in _BY_NUMPY:
        made = _BY_NUMPY[rounding](values)
        return made
    with np.errstate(invalid="ignore"):  # infinity less itself
        whole = np.trunc(values)
        away = np.abs(values - whole) >= 0.5
    made = np.where(away, whole + np.copysign(1.0, values), whole)
    return made


@dataclass(frozen=True)
class _Form:
    """A float type: binary digits, exponent of its least normal number, greatest number."""

    digits: int
    least: int
    most: float
    infinite: bool

    def on_grid(self, values: NDArray[Any], rounding: str) -> NDArray[Any]:
        """float64 values to such as the type has, were its exponents not bounded above."""
        exponent = np.frexp(values)[1].astype(np.int64) - 1
        step = np.maximum(exponent, self.least) - (self.digits - 1)
        whole = round_whole(np.ldexp(values, -step), rounding)
        with np.errstate(over="ignore"):  # rounded up from the greatest of float64
            made: NDArray[Any] = np.ldexp(whole, step)
        return made


@lru_cache(maxsize=64)
def _form(dtype: np.dtype[Any]) -> _Form:
    info: Any = importlib.import_module("ml_dtypes").finfo(dtype)
    with np.errstate(all="ignore"):
        infinite = bool(np.isinf(np.array(np.inf).astype(dtype).astype(np.float64)))
    return _Form(int(info.nmant) + 1, int(info.minexp), float(info.max), infinite)


def _significant(values: NDArray[Any], digits: int, rounding: str) -> NDArray[Any]:
    """Integers as float64 of so many significant binary digits."""
    negative = values < 0
    size = values.view(np.uint64)
    size = np.where(negative, ~size + np.uint64(1), size)
    length = np.zeros(size.shape, np.int64)
    rest = size.copy()
    for step in (32, 16, 8, 4, 2, 1):
        more = rest >= np.uint64(1 << step)
        length += np.where(more, step, 0)
        rest = np.where(more, rest >> np.uint64(step), rest)
    length += rest.astype(np.int64)
    drop = np.maximum(length - digits, 0).astype(np.uint64)
    high = size >> drop
    low = size - (high << drop)
    one = np.uint64(1)
    half = np.where(drop > 0, one << (np.maximum(drop, one) - one), np.uint64(0))
    if rounding == "nearest-even":
        up = (low > half) | ((low == half) & (low > 0) & ((high & one) == one))
    elif rounding == "nearest-away":
        up = (low >= half) & (low > 0)
    elif rounding == "towards-zero":
        up = np.zeros(size.shape, bool)
    else:
        up = (low > 0) & (negative == (rounding == "towards-negative"))
    made = np.ldexp((high + up.astype(np.uint64)).astype(np.float64), drop.astype(np.int64))
    signed: NDArray[Any] = np.where(negative, -made, made)
    return signed


def _widen(values: NDArray[Any]) -> NDArray[Any]:
    """Without loss, to int64, uint64 or float64."""
    dtype = values.dtype
    if not is_integer(dtype):
        return values.astype(np.float64)
    unsigned = dtype.kind == "u" or dtype.name in ("uint2", "uint4")
    return values.astype(np.uint64 if unsigned else np.int64)


def _narrow(values: NDArray[Any], target: np.dtype[Any]) -> NDArray[Any]:
    return values.astype(target)


def _modulo(bits: NDArray[Any], target: np.dtype[Any]) -> NDArray[Any]:
    """The lowest bits, as integers of ``target``."""
    if not is_small_int(target):
        kept = bits.astype(f"u{target.itemsize}")
    else:
        kept = bits.astype(np.uint8) & np.uint8((1 << int(target.name[-1])) - 1)
    return kept.view(target)


def _outside(value: Any, target: np.dtype[Any]) -> ValueError:
    return ValueError(f"{value} is not within {target}, and no rule says what becomes of it")
