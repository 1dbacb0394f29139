"""For the sanitizers: the parts of the kernel that read, copy and put files by themselves, while
what is there is damaged, replaced and removed. Run after :func:`.test_kernel.hostile`, which loads
the kernel that is watched."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.engine import native
from tensorstash.engine.in_place import reading, single
from tensorstash.engine.native import encode, library
from tensorstash.errors import StashError
from tests.engine.native.test_kernel import CHAINS, DAMAGES
from tests.support.races import in_threads

SMALL: list[Any] = [
    *(np.s_[2:33, 7], (5, 6), (np.int64(-3), 7), np.s_[30:, 30:], -1, (..., 3), np.s_[:0], 99),
    (np.uint64(2**63), 0),
    np.s_[:, 2:5],
]
AFTER_2262 = 10**10  # seconds: in ns they are more than 64 bits hold


def hostile(seed: int) -> None:
    """All of them."""
    kernel = library.library.kernel
    assert kernel is not None
    assert kernel.gather is sys.modules["tensorstash.engine.native._kernel"].gather
    reading.library = single.library = library.library  # they have the one before
    done: dict[str, list[Any]] = {"gather": [], "patch": []}
    for name, results in done.items():
        noted(kernel, name, results)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        small_boxes(Path(folder), rng)
        puts(Path(folder), rng)
        rows(Path(folder), rng)
        refused(kernel)
    assert kernel.tally()[-1] > 0
    assert {True, False} <= {one for one in done["gather"] if isinstance(one, bool)}
    assert 2 in done["patch"]
    print("done", native.counts()["put tasks"])


def noted(kernel: Any, name: str, results: list[Any]) -> None:
    """Note what a function of the kernel returns from now on."""
    real = getattr(kernel, name)

    def call(*arguments: Any) -> Any:
        results.append(real(*arguments))
        return results[-1]

    setattr(kernel, name, call)


def small_boxes(folder: Path, rng: np.random.Generator) -> None:
    """Elements, rows and patches, read and kept, of two handles at once."""
    data = np.cumsum(rng.integers(0, 3, (37, 41)), axis=1).astype("u2")
    for k, chain in enumerate(sorted(CHAINS)):
        layout: dict[str, Any] = {"shards": (20, 18)} if k % 2 else {}
        place = folder / f"boxes {k}"
        stash.save(place, data, codecs=CHAINS[chain], chunks=(10, 9), **layout)
        handles = [
            stash.open(place, cache=cache, immutable=immutable)
            for cache in (0, 3000, "1MB")
            for immutable in (False, True)
        ]
        stored = sorted(path for path in (place / "c").rglob("*") if path.is_file())
        for name in (None, *sorted(DAMAGES), "removed", "later"):
            path = stored[rng.integers(len(stored))]
            whole = path.read_bytes()
            if name == "removed":
                path.unlink()
            elif name == "later":
                os.utime(path, (AFTER_2262, AFTER_2262))
            elif name is not None:
                path.write_bytes(DAMAGES[name](whole, int(rng.integers(1 << 16))))

            def read(number: int, handles: list[stash.Array] = handles) -> None:
                for array in handles:
                    for index in (*SMALL, ...):
                        with suppress(StashError):
                            array[index]

            in_threads(2, read)
            path.write_bytes(whole)
        assert (stash.open(place)[...] == data).all()
        assert stash.open(place)[5, 6] == data[5, 6]


def puts(folder: Path, rng: np.random.Generator) -> None:
    """Chunks put where nothing is, over others, in folders that go, and where there is no way."""
    encode._FEWEST_PUT = 2
    data = rng.integers(0, 50, (70, 64), "i4")
    for k, chain in enumerate(sorted(CHAINS)):
        place = folder / f"puts {k}"
        how: dict[str, Any] = {"chunks": (8, 8), "codecs": CHAINS[chain], "fill_value": 3}
        a = stash.create(place, data.shape, "i4", threads=2, **how)
        for some in (data, data[::-1], np.asfortranarray(data), np.full_like(data, 3)):
            a[...] = some
            assert (a[...] == some).all()
            shutil.rmtree(place / "c/2", ignore_errors=True)
        (place / "c/2").mkdir(exist_ok=True)
        (place / "c/2/1").mkdir()
        (place / "c/2/1/in the way").touch()
        shutil.rmtree(place / "c/3", ignore_errors=True)
        (place / "c/3").symlink_to(folder)
        with suppress(StashError):
            a[...] = data
        assert not (folder / "0").exists()
        (place / "c/3").unlink()
        shutil.rmtree(place / "c/2/1")

        def put(number: int, place: Path = place, data: np.ndarray = data) -> None:
            stash.open(place, "r+")[...] = data

        in_threads(3, put)
        assert (stash.open(place)[...] == data).all()


def rows(folder: Path, rng: np.random.Generator) -> None:
    """Rows written within files and copied out of them, while one is replaced or removed."""
    fields = {"x": ((3000,), "i4"), "y": "f8"}
    r = stash.create_records(folder / "rows", fields, 50, in_place=True, rows_per_chunk=7)
    values = np.arange(50)
    r[:40] = {"x": np.repeat(values[:40, None], 3000, 1), "y": values[:40] / 4}
    wanted = np.append(rng.permutation(50), -1)
    unaligned = np.frombuffer(b"x" + wanted.tobytes(), np.int64, offset=1)
    for name in (None, "removed", "replaced", "linked", None):
        stored = sorted(path for path in folder.glob("rows/x/c/*/0"))
        path = stored[rng.integers(len(stored))]
        whole = path.read_bytes()
        if name is not None:
            path.rename(folder / "aside")
        if name == "replaced":
            path.write_bytes(whole)
        elif name == "linked":
            path.symlink_to(folder / "aside")
        for row in (0, 39, 20):
            with suppress(StashError):
                r[row] = {"x": np.full(3000, row, "i4"), "y": row / 4}
        for some in (wanted, unaligned, [3, 3, 0], [-50]):
            with suppress(StashError):
                r[some]
        if name is not None:
            path.unlink(missing_ok=True)
            (folder / "aside").rename(path)
    kernel = library.library.kernel
    assert kernel is not None
    out, chunk = np.empty((len(wanted), 4), "u1"), bytes(8)
    known = dict.fromkeys(range(25), b"/nothing/there")
    done = kernel.gather(None, [(known, 2, 4, b"ab", out)], unaligned, 50)
    assert done is True
    assert bytes(out.ravel()) == b"ab" * (2 * len(wanted))
    odd = [(b"/x", 0, 1, 1, 8, chunk), (b"/x", 0, 1, 1, 7, chunk), (b"/x",), 7, b"/nothing/there"]
    for one in odd:
        for fill in (None, b"abcd", b"abc", b""):
            with suppress(ValueError, TypeError):
                assert kernel.gather(
                    None, [({0: one}, 2, 4, fill, bytearray(8))], wanted[:2], 2
                ) in (
                    *(True, False),
                    [(0, 0)],
                )


def refused(kernel: Any) -> None:
    """What no caller passes."""
    for arguments in ((), (None,) * 7, (((), 8, 8, 1), (), (), (), (), None, None)):
        with suppress(TypeError, ValueError):
            kernel.Direct(*arguments)
