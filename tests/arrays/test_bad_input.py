"""Wrong calls: the right class, one line that names the thing and the next step, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import (
    AlreadyExists,
    Closed,
    Corrupt,
    DriverError,
    Invalid,
    InvalidSelection,
    NotFound,
    ReadOnly,
    StashError,
    Unsupported,
)
from tensorstash.testing.counting import Call, FailingDriver, Fault


class World:
    """What the calls below are made on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new: dict[str, Any] = {}
        self.store: dict[str, Any] = {}
        self.array = stash.create(self.store, (10, 10), "f4", chunks=5, attributes={"unit": "K"})
        self.array[...] = 1
        self.reading = stash.open(self.store)
        self.closed = stash.open(self.store, "r+")
        self.closed.close()
        self.bytes: dict[str, Any] = {}
        self.small = stash.create(self.bytes, (4,), "u1")
        self.small[...] = 1
        self.scalar = stash.create({}, (), "i4")
        self.members: dict[str, Any] = {}
        self.group = stash.create_group(self.members)
        self.group.create("raw/image", (3,), "i4")
        self.group_reading = stash.open_group(self.members)
        self.group_closed = stash.open_group(self.members, "r+")
        self.group_closed.close()

    def create(self, shape: Any = (4,), dtype: Any = "f4", **how: Any) -> Any:
        return stash.create(self.new, shape, dtype, **how)

    def stored(self) -> list[dict[str, Any]]:
        return [dict(self.new), dict(self.store), dict(self.bytes), dict(self.members)]


Row = tuple[Callable[[World], Any], type[StashError], str]

CREATE: dict[str, Row] = {
    "nothing": (lambda w: stash.create({}), Invalid, "needs shape= and dtype="),
    "shape, text": (lambda w: w.create("abc"), Invalid, "shape.*'abc'.*give"),
    "shape, a float": (lambda w: w.create(2.5), Invalid, "shape.*2.5.*give"),
    "shape, floats": (lambda w: w.create((2.0, 3)), Invalid, "shape.*2.0.*give"),
    "shape, a bool": (lambda w: w.create(True), Invalid, "shape.*True"),
    "shape, None in it": (lambda w: w.create((None, 3)), Invalid, "shape.*None"),
    "shape, an array of rows": (lambda w: w.create(np.ones((3, 3))), Invalid, "shape"),
    "shape, negative": (lambda w: w.create((3, -1)), Invalid, "shape.*-1.*at least 0"),
    "shape, beyond 63 bits": (lambda w: w.create((2**63,)), Invalid, "shape.*9223372036854775808"),
    "shape, 65 axes": (lambda w: w.create((1,) * 65), Unsupported, "65 axes.*64"),
    "dtype, a typo": (lambda w: w.create(dtype="flaot32"), Invalid, "did you mean 'float32'"),
    "dtype, of torch": (lambda w: w.create(dtype=torch.qint8), Invalid, "'qint8' is not a dtype"),
    "dtype, objects": (lambda w: w.create(dtype=object), Invalid, "use dtype='string'"),
    "dtype, a list": (lambda w: w.create(dtype=[1, 2]), Invalid, r"\[1, 2\] is not a dtype"),
    "dtype, long double": (lambda w: w.create(dtype="longdouble"), Unsupported, "float64"),
    "dtype, subarray": (lambda w: w.create(dtype=("f4", (2,))), Invalid, "array's shape"),
    "chunks, a float": (lambda w: w.create(chunks=2.5), Invalid, "chunks.*2.5"),
    "chunks, floats": (lambda w: w.create(chunks=(2.5,)), Invalid, "chunks.*2.5"),
    "chunks, text": (lambda w: w.create(chunks="big"), Invalid, "chunks.*'big'.*give"),
    "chunks, a bool": (lambda w: w.create(chunks=True), Invalid, "chunks.*True"),
    "chunks, zero": (lambda w: w.create(chunks=0), Invalid, r"chunks \(0,\).*least is 1"),
    "chunks, too many": (lambda w: w.create(chunks=(2, 2)), Invalid, "2 axes, the array has 1"),
    "chunks, huge": (lambda w: w.create(chunks=2**64), Invalid, "chunks.*18446744073709551616"),
    "shards, no multiple": (lambda w: w.create(chunks=2, shards=3), Invalid, r"\(3,\).*\(2,\)"),
    "shards, text": (lambda w: w.create(shards="auto"), Invalid, "shards.*'auto'"),
    "shards in v2": (lambda w: w.create(shards=4, zarr_format=2), Invalid, "zarr_format=3"),
    "codec, a typo": (lambda w: w.create(codecs="zsdt"), Unsupported, "did you mean 'zstd'"),
    "codec, a typo in v2": (
        lambda w: w.create(codecs="zsdt", zarr_format=2),
        Unsupported,
        "did you mean 'zstd'",
    ),
    "codec, of numcodecs": (lambda w: w.create(codecs="lzma"), Unsupported, "'numcodecs.lzma'"),
    "codec, far from any": (lambda w: w.create(codecs="qqqq"), Unsupported, "known: .*blosc.*zstd"),
    "codec, our module": (lambda w: w.create(codecs="streams"), Unsupported, "known: .*blosc"),
    "codec, a number": (lambda w: w.create(codecs=5), Invalid, "codecs=5.*give"),
    "codec, an option": (
        lambda w: w.create(codecs={"name": "zstd", "configuration": {"levle": 3}}),
        Invalid,
        "'zstd' has no option 'levle'.*level",
    ),
    "codec, a value": (
        lambda w: w.create(codecs={"name": "zstd", "configuration": {"level": "x"}}),
        Invalid,
        "'zstd'.*level.*'x'",
    ),
    "codecs, out of order": (lambda w: w.create(codecs=["zstd", "bytes"]), Invalid, "out of place"),
    "codec, other axes": (
        lambda w: w.create(codecs={"name": "transpose", "configuration": {"order": [1, 0]}}),
        Invalid,
        "2 axes; the chunk has 1",
    ),
    "codec, other dtype": (lambda w: w.create(codecs="vlen-utf8"), Invalid, "vlen-utf8.*float32"),
    "fill value": (lambda w: w.create(dtype="u1", fill_value=300), Invalid, "300.*uint8"),
    "order": (lambda w: w.create(order="X"), Invalid, "order 'X'.*'C', 'F'"),
    "key encoding": (lambda w: w.create(key_encoding="x"), Invalid, "'default', 'v2'"),
    "separator": (lambda w: w.create(separator="_"), Invalid, "separator '_'"),
    "format": (lambda w: w.create(zarr_format=4), Invalid, "zarr_format 4.*2, 3"),
    "filters in v3": (lambda w: w.create(filters=[]), Invalid, "numcodecs.delta"),
    "filters": (lambda w: w.create(filters=5, zarr_format=2), Invalid, "filters.*'id'"),
    "filter": (lambda w: w.create(filters=[{"id": "x"}], zarr_format=2), Unsupported, "'x'"),
    "names": (
        lambda w: w.create(dimension_names=["a", "b"]),
        Invalid,
        "2 names for 1 axis",
    ),
    "names, text": (lambda w: w.create(dimension_names="a"), Invalid, "dimension_names.*'a'"),
    "names, a number": (lambda w: w.create(dimension_names=[5]), Invalid, "dimension_names"),
    "attributes": (lambda w: w.create(attributes=5), Invalid, "attributes.*not 5"),
    "attribute": (lambda w: w.create(attributes={"a": {1}}), Invalid, r"attributes\.a.*set"),
    "an option's typo": (lambda w: w.create(chunk=(2,)), Invalid, "'chunk'; did you mean 'chunks'"),
    "an unknown option": (lambda w: w.create(qqqq=1), Invalid, "'qqqq'"),
    "threads": (lambda w: w.create(threads=0), Invalid, "threads=0"),
    "threads, text": (lambda w: w.create(threads="2"), Invalid, "threads='2'"),
    "cache": (lambda w: w.create(cache="1 foo"), Invalid, "'1 foo'.*1GiB"),
    "missing": (lambda w: w.create(missing="no"), Invalid, "'fill' nor 'raise'"),
}

PLACES: dict[str, Row] = {
    "an option's typo, opened": (
        lambda w: stash.open(w.store, cashe="1GiB"),
        Invalid,
        "'cashe'; did you mean 'cache'",
    ),
    "an option's typo, created": (lambda w: w.create(cashe=1), Invalid, "did you mean 'cache'"),
    "scheme, a typo": (lambda w: stash.open("flie:///x"), Unsupported, "did you mean 'file'"),
    "scheme": (lambda w: stash.open("gopher://x/y"), Unsupported, "'gopher://'; known: file"),
    "scheme, our module": (lambda w: stash.open("flock://x"), Unsupported, "known: file"),
    "an option": (lambda w: stash.open("memory://x", options={"foo": 1}), Invalid, "option 'foo'"),
    "an option of files": (lambda w: stash.open("x", options={"anon": True}), Invalid, "fsync"),
    "options": (lambda w: stash.open("x", options=5), Invalid, "options.*not 5"),
    "options by number": (lambda w: stash.open("x", options={5: 1}), Invalid, "options.*by name"),
    "options of a driver": (
        lambda w: stash.open(w.array.driver, options={"fsync": True}),
        Invalid,
        "options belong to the driver",
    ),
    "a number": (lambda w: stash.open(5), Invalid, "not int"),
    "nothing": (lambda w: stash.open(""), Invalid, "non-empty"),
    "bytes": (lambda w: stash.open(b"x"), Invalid, "b'x'"),
    "a NUL": (lambda w: stash.open("a\0b"), Invalid, "a.x00b"),
    "absent": (lambda w: stash.open(w.folder / "none"), NotFound, "file://.*none.*create"),
    "absent group": (lambda w: stash.open_group({}), NotFound, "memory://.*create"),
    "load": (lambda w: stash.load({}), NotFound, "check the path"),
    "array as group": (lambda w: stash.open_group(w.store), Invalid, r"array; open it with open\("),
    "group as array": (lambda w: stash.open(w.members), Invalid, r"group; open it with open_gr"),
    "mode": (lambda w: stash.open(w.store, "rw"), Invalid, "'rw' is not one of 'r', 'r\\+', 'a'"),
    "group mode": (lambda w: stash.open_group(w.members, "rw"), Invalid, "'rw' is not one of"),
    "a shape to read": (lambda w: stash.open(w.store, shape=3), Invalid, "mode 'r'.*'shape'"),
    "a, of nothing": (lambda w: stash.open({}, "a"), Invalid, "needs shape= and dtype="),
    "x": (lambda w: stash.open(w.store, "x", shape=3, dtype="u1"), AlreadyExists, "overwrite"),
    "create": (lambda w: stash.create(w.store, 3, "u1"), AlreadyExists, "overwrite=True"),
    "create a group": (lambda w: stash.create_group(w.store), AlreadyExists, "overwrite=True"),
    "save": (lambda w: stash.save(w.store, [1], overwrite=False), AlreadyExists, "memory://"),
    "copy": (lambda w: stash.copy(w.array, w.members), AlreadyExists, "memory://"),
    "copy over itself": (
        lambda w: stash.copy(w.array, w.store, overwrite=True),
        Invalid,
        "over itself",
    ),
    "copy a part over all": (
        lambda w: stash.copy(w.group["raw/image"], w.members, overwrite=True),
        Invalid,
        "over itself",
    ),
    "copy to a shape": (lambda w: stash.copy(w.array, w.new, shape=3), Invalid, "keeps the shape"),
    "copy with a typo": (lambda w: stash.copy(w.array, w.new, chunk=3), Invalid, "'chunks'"),
    "save ragged": (lambda w: stash.save(w.new, [[1], [1, 2]]), Invalid, "list"),
    "save objects": (lambda w: stash.save(w.new, object()), Invalid, "object"),
    "below a file": (
        lambda w: stash.create(w.folder / "file" / "a", 3, "u1"),
        DriverError,
        "not a directory",
    ),
}

HANDLES: dict[str, Row] = {
    **{
        f"closed, {name}": (lambda w, use=use: use(w.closed), Closed, "memory://.*open it again")
        for name, use in {
            "read": lambda a: a[0],
            "read into": lambda a: a.read(out=np.empty((10, 10), "f4")),
            "write": lambda a: a.__setitem__(0, 1),
            "iterate": list,
            "asarray": np.asarray,
            "torch": lambda a: a.torch[0],
            "lazy": lambda a: a.lazy[0].read(),
            "blocks": lambda a: list(a.iter_blocks()),
            "explain": lambda a: a.explain(),
            "info": lambda a: a.info(),
            "append": lambda a: a.append(np.ones((1, 10))),
            "resize": lambda a: a.resize((3, 3)),
            "writer": lambda a: a.writer(),
            "attributes": lambda a: a.attrs.update(a=1),
            "refresh": lambda a: a.refresh(),
        }.items()
    },
    **{
        f"reading, {name}": (lambda w, use=use: use(w.reading), ReadOnly, 'mode="r.+" to write')
        for name, use in {
            "write": lambda a: a.__setitem__(0, 1),
            "oindex": lambda a: a.oindex.__setitem__(0, 1),
            "vindex": lambda a: a.vindex.__setitem__(0, 1),
            "lazy": lambda a: a.lazy[0].__setitem__(0, 1),
            "torch": lambda a: a.torch.__setitem__(0, 1),
            "append": lambda a: a.append(np.ones((1, 10))),
            "resize": lambda a: a.resize((3, 3)),
            "writer": lambda a: a.writer(),
            "attributes": lambda a: a.attrs.update(a=1),
            "attribute": lambda a: a.attrs.__delitem__("unit"),
        }.items()
    },
    "group closed": (lambda w: w.group_closed["raw"], Closed, "open it again"),
    "group reading": (lambda w: w.group_reading.create("x", 3, "u1"), ReadOnly, 'mode="r.+"'),
    "group reading, delete": (lambda w: w.group_reading.__delitem__("raw"), ReadOnly, "reading"),
    "member": (lambda w: w.group["nope"], NotFound, "'nope' in memory://.*holds: raw"),
    "member, a number": (lambda w: w.group[0], Invalid, "not 0"),
    "member, a tuple": (lambda w: w.group["raw", "image"], Invalid, "'raw/image'"),
    "member, up": (lambda w: w.group["../x"], Invalid, "'../x'"),
    "member, empty": (lambda w: w.group[""], Invalid, "''"),
    "member, reserved": (lambda w: w.group.create("zarr.json", 3, "u1"), Invalid, "zarr.json"),
    "member, there": (lambda w: w.group.create("raw/image", 3, "u1"), AlreadyExists, "raw/image"),
    "member of an array": (
        lambda w: w.group.create("raw/image/x", 3, "u1"),
        Invalid,
        "raw/image is an array and cannot hold 'x'",
    ),
    "member, deleted": (lambda w: w.group.__delitem__("nope"), NotFound, "'nope'"),
    "not a group": (lambda w: w.group.require_group("raw/image"), Invalid, "not a group"),
    "attribute": (lambda w: w.array.attrs["nope"], NotFound, "'nope'; there are: 'unit'"),
    "attribute, deleted": (lambda w: w.array.attrs.__delitem__("nope"), NotFound, "'nope'"),
    "attribute, a set": (lambda w: w.array.attrs.update(a={1}), Invalid, r"attributes\.a.*set"),
    "attribute, a number": (lambda w: w.array.attrs.__setitem__(5, 1), Invalid, "key 5"),
}

USES: dict[str, Row] = {
    "index": (lambda w: w.array[10], InvalidSelection, "10.*axis 0.*size 10"),
    "index, text": (lambda w: w.array["x"], InvalidSelection, "'x'"),
    "index, a float": (lambda w: w.array[1.5], InvalidSelection, "1.5"),
    "indices": (lambda w: w.array[0, 0, 0], InvalidSelection, "too many indices"),
    "step": (lambda w: w.array[::0], InvalidSelection, "step"),
    "too much": (
        lambda w: stash.create({}, (2**40, 2**40), "f8")[...],
        InvalidSelection,
        "no memory can hold",
    ),
    "block": (lambda w: w.array.blocks[2], InvalidSelection, "2"),
    "value's shape": (lambda w: w.array.__setitem__(0, [1, 2]), Invalid, r"\(2,\).*\(10,\)"),
    "value, text": (lambda w: w.array.__setitem__(0, "x"), Invalid, "float32"),
    "value, None": (lambda w: w.small.__setitem__(0, None), Invalid, "uint8"),
    "value, too large": (lambda w: w.small.__setitem__(0, 300), Invalid, "300.*uint8"),
    "value, negative": (lambda w: w.small.__setitem__(0, -1), Invalid, "-1.*uint8"),
    "value, huge": (lambda w: w.array.__setitem__(0, 10**400), Invalid, "float32"),
    "value, complex": (lambda w: w.array.__setitem__(0, 1j), Invalid, "float32"),
    "value, ragged": (lambda w: w.array.__setitem__(0, [[1], [1, 2]]), Invalid, "list"),
    "value, a dict": (lambda w: w.array.__setitem__(0, {}), Invalid, "dict"),
    "out, a list": (lambda w: w.array.read(out=[1]), Invalid, "out.*list"),
    "out's shape": (lambda w: w.array.read(0, out=np.empty(3, "f4")), Invalid, r"\(3,\).*\(10,\)"),
    "out's dtype": (lambda w: w.array.read(0, out=np.empty(10)), Invalid, "float64.*float32"),
    "out, read-only": (
        lambda w: w.array.read(0, out=np.broadcast_to(np.float32(0), 10)),
        Invalid,
        "read-only",
    ),
    "rows": (lambda w: w.array.append(np.ones((1, 3))), Invalid, r"\(1, 3\).*\(10, 10\)"),
    "rows, a number": (lambda w: w.array.append(5), Invalid, r"shape \(\)"),
    "rows' axis": (lambda w: w.array.append(np.ones((1, 10)), axis=2), Invalid, "axis 2"),
    "rows' axis, text": (lambda w: w.array.append([[1] * 10], axis="x"), Invalid, "axis 'x'"),
    "rows of a scalar": (lambda w: w.scalar.append(5), Invalid, "0 dimensions"),
    "resize": (lambda w: w.array.resize((3,)), Invalid, r"\(10, 10\) to \(3,\)"),
    "resize, negative": (lambda w: w.array.resize((3, -1)), Invalid, r"\(3, -1\)"),
    "resize, floats": (lambda w: w.array.resize((3.0, 3.0)), Invalid, "3.0"),
    "resize, huge": (lambda w: w.array.resize((2**63, 3)), Invalid, "9223372036854775808"),
    "resize, None": (lambda w: w.array.resize(None), Invalid, "None"),
    "writer's budget": (lambda w: w.array.writer("x"), Invalid, "'x'.*256MiB"),
    "writer's budget, 0": (lambda w: w.array.writer(0), Invalid, "at least one byte"),
}

ROWS = [
    pytest.param(*row, id=f"{table}: {name}")
    for table, rows in (("create", CREATE), ("open", PLACES), ("handle", HANDLES), ("use", USES))
    for name, row in rows.items()
]


@pytest.mark.parametrize(("call", "kind", "text"), ROWS)
def test_the_error_says_it(
    call: Callable[[World], Any], kind: type[StashError], text: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    world = World(tmp_path)
    before = world.stored()
    with pytest.raises(StashError, match=text) as caught:
        call(world)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert world.stored() == before, "a call that failed changed what is stored"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_groups_and_records_ask_what_was_meant() -> None:
    for function in (stash.open_group, stash.open_records):
        with pytest.raises(TypeError, match=r"'cashe'\. Did you mean 'cache'\?"):
            function({}, cashe="1GiB")  # type: ignore[operator]


def test_no_secret_of_options_is_printed() -> None:
    with pytest.raises(StashError) as caught:
        stash.open("memory://x", options={"password": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("verb", ["create", "save", "open w", "copy", "create_group"])
def test_replacing_never_deletes_what_is_no_array(verb: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"1")
    call: dict[str, Callable[[], Any]] = {
        "create": lambda: stash.create(tmp_path, 3, "u1", overwrite=True),
        "save": lambda: stash.save(tmp_path, [1, 2]),
        "open w": lambda: stash.open(tmp_path, "w", shape=3, dtype="u1"),
        "copy": lambda: stash.copy(stash.save({}, [1]), tmp_path, overwrite=True),
        "create_group": lambda: stash.create_group(tmp_path, overwrite=True),
    }
    with pytest.raises(AlreadyExists, match=r"thesis\.tex"):
        call[verb]()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "photos" / "1.png").exists()


def test_replacing_finishes_what_was_replaced_halfway(tmp_path: Path) -> None:
    for chunk, how in {
        "c/0/1": {},
        "0.1": {"zarr_format": 2},
        "c.0.1": {"separator": "."},
        "0/1": {"zarr_format": 2, "separator": "/"},
    }.items():
        stash.create(tmp_path / "a", (4, 4), "u1", chunks=2, overwrite=True, **how)[...] = 1
        assert (tmp_path / "a" / chunk).exists()

        def when(call: Call) -> Fault | None:
            return "error" if call.verb.startswith("delete") else None

        with pytest.raises(DriverError):
            stash.save(FailingDriver(FileDriver(tmp_path / "a"), when), [1, 2])
        with pytest.raises(Corrupt, match="replace it again with overwrite=True"):
            stash.open(tmp_path / "a")
        assert (tmp_path / "a" / chunk).exists()
        assert stash.save(tmp_path / "a", [1, 2])[...].tolist() == [1, 2]
        assert {p.name for p in (tmp_path / "a").iterdir()} == {"c", "zarr.json"}
        assert {p.name for p in (tmp_path / "a" / "c").iterdir()} == {"0"}


def test_leftovers_of_nothing_that_is_known_are_not_replaced(tmp_path: Path) -> None:
    for leftover in ("c/0/1", "0.1", ".zattrs", "c.0", "3/4"):
        path = tmp_path / leftover.replace("/", "-") / leftover
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
        with pytest.raises(AlreadyExists, match="delete that yourself"):
            stash.save(tmp_path / leftover.replace("/", "-"), [1, 2])
        assert path.read_bytes() == b"old"
