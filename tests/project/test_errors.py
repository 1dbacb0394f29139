"""The error tree: what each class also is, one line each, whole after a journey, and nothing of
a client library beside it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash import errors
from tensorstash.driver import Buffer, Driver, Request, Span, Tag
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    Corrupt,
    Denied,
    DriverError,
    Invalid,
    InvalidSelection,
    NoMemory,
    NoSpace,
    NotFound,
    ReadOnly,
    StashError,
    TimedOut,
    Unavailable,
    Unsupported,
)
from tensorstash.testing.counting import FailingDriver
from tests.support import hostile

BUILTINS: dict[type[StashError], tuple[type[Exception], ...]] = {
    NotFound: (KeyError, FileNotFoundError, LookupError, OSError),
    AlreadyExists: (FileExistsError, OSError),
    Invalid: (ValueError,),
    InvalidSelection: (IndexError, ValueError, Invalid),
    Unsupported: (NotImplementedError,),
    ReadOnly: (PermissionError, OSError),
    Closed: (ValueError,),
    Conflict: (),
    Corrupt: (),
    NoMemory: (MemoryError,),
    DriverError: (OSError,),
    Denied: (PermissionError, OSError, DriverError),
    NoSpace: (OSError, DriverError),
    TimedOut: (TimeoutError, OSError, DriverError),
    Unavailable: (ConnectionError, OSError, DriverError),
}
TEXT = "no 'x' in file:///data; it holds: y"
MADE = [
    *(kind(TEXT) for kind in BUILTINS),
    Conflict(TEXT, key="a/zarr.json"),
    Corrupt(TEXT, key="c/0/1", chunk=(0, 1), codec="crc32c"),
    Corrupt(TEXT, key="c", chunk=(), codec="zstd"),
    DriverError(TEXT, key="c/0", driver="s3"),
]


def test_every_class_is_tested() -> None:
    named = {getattr(errors, name) for name in errors.__all__}
    assert {*BUILTINS, StashError} == {kind for kind in named if not issubclass(kind, Warning)}
    assert {*BUILTINS, StashError} <= {getattr(stash, name) for name in errors.__all__}


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_each_is_also_a_builtin(kind: type[StashError]) -> None:
    for also in (StashError, *BUILTINS[kind]):
        with pytest.raises(also):
            raise kind(TEXT)


@pytest.mark.parametrize("error", MADE, ids=repr)
def test_the_message_is_the_text_as_it_is(error: StashError) -> None:
    # KeyError would quote it, OSError would look for an errno in it.
    assert str(error) == TEXT
    printed = "".join(traceback.format_exception_only(error))
    assert printed == f"tensorstash.errors.{type(error).__name__}: {TEXT}\n"


@pytest.mark.parametrize("kind", BUILTINS, ids=lambda kind: kind.__name__)
def test_a_line_of_a_message_has_a_bounded_length_whatever_is_stored(
    kind: type[StashError],
) -> None:
    error = kind(f"in file:///data: field {'x' * 10**6} is none of ours; restore a copy")
    for found in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert len(str(found)) < 1000 and "\n" not in str(found)
        assert str(found).startswith("in file:///data: field xxx")
        assert str(found).endswith("xxx is none of ours; restore a copy")


LONG: dict[str, dict[str, Any]] = {
    "fields": {
        "data_type": {
            "name": "struct",
            "configuration": {
                "fields": [{"name": f"f{i}", "data_type": "uint8"} for i in range(3000)]
            },
        },
        "fill_value": "",
    },
    "codecs": {
        "codecs": hostile.sharded([hostile.BYTES] + [{"name": "gzip"}] * 3000),
    },
    "axes": {
        "codecs": [
            {"name": "transpose", "configuration": {"order": [*range(9000)]}},
            {"name": "bytes"},
        ]
    },
}


@pytest.mark.parametrize("changes", LONG.values(), ids=LONG)
def test_a_document_of_much_makes_no_long_message(changes: Any) -> None:
    with pytest.raises(StashError) as caught:
        stash.open(hostile.v3(bytes(9), **changes))[0]
    assert len(str(caught.value)) < 1000


def same(one: StashError, other: StashError) -> bool:
    return (type(one), str(one), vars(one)) == (type(other), str(other), vars(other))


@pytest.mark.parametrize("error", MADE, ids=repr)
def test_a_copy_keeps_everything(error: StashError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(copy.copy(error), error)
    assert same(copy.deepcopy(error), error)


def read_all(store: dict[str, bytes]) -> Any:
    return stash.load(store)


def test_an_error_crosses_a_process() -> None:
    store: dict[str, Any] = {}
    stash.create(store, (4,), "u1", chunks=(2,))[...] = 7
    store["c/1"] = store["c/1"][:-1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(Corrupt) as caught:
            pool.submit(read_all, store).result(60)
        assert (caught.value.key, caught.value.chunk) == ("c/1", (1,))
        assert caught.value.codec == "crc32c"
        with pytest.raises(NotFound):
            pool.submit(read_all, {}).result(60)


# -- drivers that fail ---------------------------------------------------------------------

DATA = np.arange(64, dtype="u2").reshape(8, 8)


def buffered(array: stash.Array) -> None:
    with array.writer() as writer:
        writer[1, 1] = 1


CALLS: dict[str, Callable[[stash.Array], Any]] = {
    "read": lambda a: a[...],
    "one element": lambda a: a[5, 5],
    "write whole": lambda a: a.__setitem__(np.s_[:4, :4], 1),
    "write part": lambda a: a.__setitem__((1, 1), 1),
    "append": lambda a: a.append(DATA),
    "resize": lambda a: a.resize((3, 3)),
    "attributes": lambda a: a.attrs.update(unit="K"),
    "refresh": lambda a: a.refresh(),
    "info": lambda a: a.info(),
    "blocks": lambda a: list(a.iter_blocks()),
    "torch": lambda a: a.torch[:3],
    "writer": lambda a: buffered(a),
}


def handles(driver: Driver) -> Iterator[stash.Array]:
    for cache in (0, "1MiB"):
        yield stash.open(driver, "r+", cache=cache)


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_backend_is_a_driver_error_never_a_fill_value(call: str, sharded: bool) -> None:
    layout: dict[str, Any] = {"chunks": 2, "shards": 4} if sharded else {"chunks": 4}
    inner = MemoryDriver()
    stash.create(inner, DATA.shape, DATA.dtype, **layout)[...] = DATA
    failing = False
    broken = FailingDriver(inner, lambda use: "error" if failing else None)
    for array in handles(broken):
        failing = True
        with pytest.raises(DriverError) as caught:
            CALLS[call](array)
        failing = False
        assert caught.value.driver == "memory"
        assert np.array_equal(array.refresh()[...], DATA)


@pytest.mark.parametrize("fault", ["truncate", "flip"])
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_damage_on_the_way_is_noticed(sharded: bool, fault: Any) -> None:
    layout: dict[str, Any] = {"chunks": 2, "shards": 4} if sharded else {"chunks": 4}
    inner = MemoryDriver()
    stash.create(inner, DATA.shape, DATA.dtype, **layout)[...] = DATA
    broken = FailingDriver(inner, lambda use: fault if use.key.startswith("c/1") else None)
    for array in handles(broken):
        with pytest.raises(Corrupt) as caught:
            array[...]
        assert caught.value.key.startswith("c/1")
        if fault == "truncate" or not sharded:  # a flip may hit an inner chunk that is left alone
            with pytest.raises(Corrupt):
                array[5, 5] = 1
        assert np.array_equal(array[:4], DATA[:4])
    assert np.array_equal(stash.load(inner), DATA)


class Stubborn(MemoryDriver):
    """A backend that keeps the driver contract and loses every race."""

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        if if_tag is not None:
            raise Conflict(f"{key!r} was written by someone else first", key=key)
        return super().put(key, value, if_absent=if_absent)


def test_a_writer_that_never_wins_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.engine.update._PATIENCE", 0.05)
    array = stash.create(Stubborn(), DATA.shape, DATA.dtype, chunks=4)
    array[...] = DATA
    with pytest.raises(Conflict, match=r"chunk \(1, 1\) at key 'c/1/1'") as caught:
        array[5, 5] = 1
    assert caught.value.key == "c/1/1"


class Foreign(MemoryDriver):
    """A third-party driver that lets its client's errors out, against the contract."""

    def get_many(self, requests: Any) -> Iterator[tuple[int, Buffer | None]]:
        raise TimeoutError("client")

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        raise TimeoutError("client")


def test_an_error_in_a_driver_is_not_taken_for_absence() -> None:
    store: dict[str, Any] = {}
    stash.create(store, DATA.shape, DATA.dtype, chunks=4)[...] = DATA
    with pytest.raises(TimeoutError):
        stash.open(Foreign(store))[...]


# -- libraries below codecs ------------------------------------------------------------------


@pytest.mark.parametrize(
    "chain",
    ["blosc", "zstd", "gzip", *(f"numcodecs.{n}" for n in ("lz4", "zlib", "bz2", "lzma", "crc32"))],
)
@pytest.mark.parametrize("bad", [b"", b"\0", b"\xff" * 40, bytes(40), bytes(range(256))])
def test_a_library_s_error_is_the_cause_not_the_error(chain: str, bad: bytes) -> None:
    store: dict[str, Any] = {}
    array = stash.create(store, (4,), "u2", codecs=[chain])
    store["c/0"] = bad
    with pytest.raises(Corrupt) as caught:
        array[...]
    assert caught.value.codec == chain
    if chain == "numcodecs.crc32" and len(bad) > 8 + 4:
        return  # it has one length, so that no library is asked of another
    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value.__cause__, StashError)


def test_a_write_that_the_disk_refuses(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (4,), "u1", chunks=2)
    (tmp_path / "a" / "c").write_bytes(b"a file where a directory is due")
    with pytest.raises(DriverError) as caught:
        array[...] = 1
    assert isinstance(caught.value.__cause__, OSError)
    assert "not a directory" in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_requests_that_are_absent_stay_absent() -> None:
    driver = MemoryDriver()
    assert list(driver.get_many([Request("c/0"), Request("c/1", Span(0, 4))])) == [
        (0, None),
        (1, None),
    ]
