"""Data types to test with: tables and strategies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensorstash import dtype as dtypes

SMALL = [
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    *("int2", "int4", "uint2", "uint4"),
]
PLAIN = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
NESTED = np.dtype([("a", "u1"), ("b", [("x", "<f4"), ("y", "<M8[ns]")]), ("s", "<U3")])


SCALARS = st.one_of(
    st.sampled_from(PLAIN + SMALL).map(dtypes.parse),
    hnp.datetime64_dtypes(endianness="="),
    hnp.timedelta64_dtypes(endianness="="),
    hnp.unicode_string_dtypes(endianness="=", min_len=1),
    hnp.byte_string_dtypes(min_len=1),
    st.integers(1, 40).map(lambda n: np.dtype(f"V{n}")),
)
RECORDS = st.recursive(
    SCALARS,
    lambda inner: st.lists(
        st.tuples(st.text("abcdef", min_size=1, max_size=3), inner),
        min_size=1,
        max_size=4,
        unique_by=lambda item: item[0],
    ).map(np.dtype),
    max_leaves=6,
)
