"""Options of codecs with which nobody can have written anything: refused by name."""

from __future__ import annotations

from typing import Any

import pytest

import tensorstash as stash
from tensorstash.errors import Invalid
from tests.support import hostile
from tests.support.hostile import v2, v3


@pytest.mark.parametrize("indent", [2**31 - 1, 10**30, " " * 2000], ids=["2 GB", "10^30", "text"])
def test_no_line_begins_with_gigabytes(indent: Any) -> None:
    store = v2(dtype="|O", filters=[{"id": "json2", "indent": indent}], fill_value=None)
    with pytest.raises(Invalid, match="indent is at most 1024 characters"):
        stash.open(store, "r+")[0] = "a"


def fill(store: dict[str, bytes]) -> None:
    """Refused when it is opened, or, what only encoding needs, when it is written."""
    stash.open(store, "r+")[...] = 1


ABSURD: list[tuple[str, dict[str, Any]]] = [
    ("numcodecs.lzma", {"preset": 255}),
    ("numcodecs.lzma", {"preset": 10**30}),
    ("numcodecs.lzma", {"preset": True}),
    ("numcodecs.lzma", {"filters": [{"id": 33, "dict_size": 2**32}]}),
    ("numcodecs.lzma", {"filters": "x"}),
    ("numcodecs.lzma", {"format": 99}),
    ("numcodecs.zlib", {"level": 2**63}),
    ("numcodecs.zlib", {"level": "9"}),
    ("numcodecs.zlib", {"level": 1.5}),
    ("numcodecs.bz2", {"level": 0}),
    ("numcodecs.bz2", {"level": [1]}),
    ("numcodecs.lz4", {"acceleration": 2**40}),
    ("numcodecs.shuffle", {"elementsize": 10**30}),
    ("blosc", {"clevel": 10**30}),
    ("blosc", {"typesize": -1}),
    ("blosc", {"cname": {}}),
    ("gzip", {"level": float("nan")}),
    ("zstd", {"level": True}),
    ("zstd", {"level": "9"}),
    ("zstd", {"level": {"level": [1] * 1000}}),
]


@pytest.mark.parametrize(("name", "options"), ABSURD, ids=lambda value: str(value)[:30])
def test_nothing_is_written_with_absurd_options(name: str, options: Any) -> None:
    codec = {"name": name, "configuration": options}
    for use in (
        lambda: stash.create({}, (4,), "u2", codecs=["bytes", codec]),
        lambda: fill(v3(codecs=[hostile.BYTES, codec])),
        lambda: fill(v2(compressor={"id": name.removeprefix("numcodecs."), **options})),
    ):
        with pytest.raises(Invalid) as caught:
            use()
        assert len(str(caught.value)) < 600
