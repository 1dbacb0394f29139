"""Records in memory: a list of values for each field, which stored ones must equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import tensorstash as stash
from tensorstash.columns import Ragged
from tensorstash.records import schema
from tensorstash.records.schema import Field
from tests.support.oracle import same

RECORD = np.dtype([("a", "i4"), ("b", "f4")])

EVERY: dict[str, Any] = {
    "x": ((2,), "float32"),
    "n": "int16",
    "tok": stash.ragged("int32"),
    "img": stash.ragged("uint8", 2),
    "vol": stash.ragged("float32", 3),
    "cap": str,
    "raw": bytes,
    "meta": stash.json,
    "next": {"x": ((2, 3), ">i4"), "half": ((2,), "bfloat16"), "deep": {"flag": bool}},
    "when": "datetime64[ms]",
    "rec": RECORD,
    "none": ((0, 3), "float64"),
}
"""A schema with fields of every kind but pickled ones."""

TEXTS = ("", "a", "é ü 漢字 🙂", "a\0b\0", "long " * 60)
VALUES: tuple[Any, ...] = (
    None,
    0,
    -1.5,
    True,
    "",
    "text é\n",
    [],
    {},
    [1, [2, {"a": None}]],
    {"a": {"b": [1.25]}, "": ""},
    2**70,
)


def value(rng: np.random.Generator, field: Field) -> Any:
    """Any value that a row of the field may have, as it is read again."""
    if field.kind == "text":
        return TEXTS[rng.integers(len(TEXTS))]
    if field.kind == "bytes":
        return rng.bytes(int(rng.integers(0, 9)))
    if field.kind in ("json", "object"):
        return VALUES[rng.integers(len(VALUES))]
    shape = field.shape
    if field.kind == "ragged":
        shape = tuple(int(n) for n in rng.integers(0, 9 if field.ndim == 1 else 4, field.ndim))
    return numbers(rng, shape, field.dtype)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Elements of any bits that mean something; a scalar for no axes."""
    if dtype.names is not None:
        out = np.zeros(shape, dtype)
        for name in dtype.names:
            out[name] = numbers(rng, shape, dtype[name])
        return out[()]
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)[()]
    if dtype == ml_dtypes.bfloat16:
        return rng.normal(size=shape).astype(np.float32).astype(dtype)[()]
    if dtype.kind == "f":
        out = rng.normal(size=shape).astype(dtype)
        odd = np.array([np.nan, -0.0, np.inf, 0], dtype)
        chosen = rng.integers(0, 12, shape)
        return np.where(chosen < 4, odd[chosen % 4], out)[()]
    size = dtype.itemsize * int(np.prod(shape))
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape).copy()[()]


def absent(field: Field) -> Any:
    """What a row reads as that was never written."""
    plain: dict[str, Any] = {"text": "", "bytes": b"", "json": None, "object": None}
    if field.kind in plain:
        return plain[field.kind]
    shape = (0,) * field.ndim if field.kind == "ragged" else field.shape
    return np.zeros(shape, field.dtype)[()]


class Model:
    """What records must hold: ``columns`` by path, a list of values each."""

    def __init__(self, kinds: Mapping[str, Any], length: int = 0) -> None:
        self.fields = schema.parse(kinds)
        self.columns = {path: [absent(f)] * length for path, f in self.fields.items()}
        self.rows = length

    def row(self, rng: np.random.Generator) -> dict[str, Any]:
        """A row's values by path, for the fields there are."""
        return {path: value(rng, field) for path, field in self.fields.items()}

    def block(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """Columns of ``count`` rows by path, as :meth:`column` shows them."""
        rows = [self.row(rng) for _ in range(count)]
        return {p: column(f, [row[p] for row in rows]) for p, f in self.fields.items()}

    def extend(self, block: Mapping[str, Sequence[Any]]) -> None:
        for path, values in block.items():
            self.columns[path] += list(values)
        self.rows = len(next(iter(self.columns.values())))

    def put(self, rows: Iterable[int], block: Mapping[str, Sequence[Any]]) -> None:
        """Assign in order: of several values for one row, the last stays."""
        for path, values in block.items():
            for row, given in zip(rows, values, strict=True):
                self.columns[path][row] = given

    def taken(self, rows: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
        """What ``r[rows]`` shall be, by path; ``rows`` is anything that NumPy takes."""
        numbers = np.arange(self.rows)[rows]
        return {
            path: column(self.fields[path], [self.columns[path][int(i)] for i in numbers])
            for path in (self.fields if names is None else names)
        }


def column(field: Field, values: Sequence[Any]) -> Any:
    """Values of several rows as they are read: an array where all are alike, else a list."""
    if field.kind == "fixed":
        return (
            np.stack([np.asarray(v, field.dtype) for v in values])
            if values
            else np.empty((0, *field.shape), field.dtype)
        )
    if field.kind == "text":
        return np.array(list(values), np.dtypes.StringDType())
    return list(values)


def flat(nested: Mapping[str, Any], fields: Mapping[str, Field], above: str = "") -> dict[str, Any]:
    """What nested dicts hold, by path; JSON values stay whole."""
    out: dict[str, Any] = {}
    for name, inner in nested.items():
        path = above + name
        if path not in fields and isinstance(inner, Mapping):
            out |= flat(inner, fields, path + "/")
        else:
            out[path] = inner
    return out


def equal(found: Any, wanted: Any) -> None:
    """Columns (or a row's values) by path are the same, in type and bits."""
    assert found.keys() == wanted.keys(), (list(found), list(wanted))
    for path, given in wanted.items():
        try:
            same_value(found[path], given)
        except AssertionError as error:
            raise AssertionError(f"field {path!r}: {error}") from error


def same_value(found: Any, wanted: Any) -> None:
    if isinstance(found, Ragged):
        found = found.to_list()
    if isinstance(wanted, list):
        assert isinstance(found, list), type(found)
        assert len(found) == len(wanted), (len(found), len(wanted))
        for a, b in zip(found, wanted, strict=True):
            same_value(a, b)
    elif isinstance(wanted, (np.ndarray, np.generic)):
        same(found, wanted)
    else:
        assert type(found) is type(wanted), (type(found), type(wanted))
        assert found == wanted


def holds(records: stash.Records, model: Model) -> None:
    """The records are the model: all of it, read at once."""
    assert len(records) == model.rows
    equal(flat(records[:], model.fields), model.taken(slice(None)))


MIXED: dict[str, Any] = {
    "x": ((2,), "int32"),
    "t": stash.ragged("int32"),
    "p": stash.ragged("uint8", 2),
    "s": str,
    "in": {"j": stash.json, "half": "bfloat16"},
}


def made(rows: int, length: int = 0, **how: Any) -> tuple[stash.Records, Model]:
    """``length`` rows never written, then ``rows``."""
    records = stash.create_records({}, MIXED, length, **{"rows_per_chunk": 3, **how})
    model = Model(MIXED, length)
    if rows:
        block = model.block(np.random.default_rng(rows), rows)
        records.extend(block)
        model.extend(block)
    return records, model
