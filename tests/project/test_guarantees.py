"""What docs/drivers.md promises of each driver is what a test of that name shows: every cell of its
tables has a mark, and every mark leads to a test that exists, and runs on that driver."""

from __future__ import annotations

import ast
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver, Request, Span
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import DriverError, Unsupported
from tensorstash.registry import connect
from tensorstash.testing.driver_races import run_in_processes
from tests.drivers.remote import test_remote_requests as costs
from tests.servers.http import Http
from tests.support.project import ROOT

PAGE = (ROOT / "docs" / "drivers.md").read_text(encoding="utf-8")
CONTRACT = "tensorstash/testing/driver.py::DriverContract"
MARK = re.compile(r"\[(\w+)\](?!\()")
NAMED = re.compile(r"`((?:tests/[\w/]+\.py|tensorstash/[\w/]+\.py)(?:::\w+)*)`")


# -- tables of the page ------------------------------------------------------------------------


def tables(text: str) -> Iterator[list[list[str]]]:
    """The rows of each table, its header first."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        yield [rows[0], *rows[2:]]


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/drivers.md has no section {title!r}"
    return found[1]


def ids_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def guarantees() -> list[tuple[str, str, str]]:
    """``(guarantee, driver, cell)``."""
    text = section("What is guaranteed").partition("### Proof")[0]
    return [
        (row[0], driver.strip("`"), cell)
        for header, *rows in tables(text)
        for row in rows
        for driver, cell in zip(header[1:], row[1:], strict=True)
    ]


@cache
def proof() -> tuple[dict[str, str], dict[str, list[str]], dict[str, list[str]]]:
    """Marks of the contract's tests, the contract's classes by driver, marks of other tests."""
    contract, classes, others = tables(section("What is guaranteed").partition("### Proof")[2])
    return (
        {row[0].strip("[]"): ids_in(row[1])[0] for row in contract[1:]},
        {row[0].strip("`"): ids_in(row[1]) for row in classes[1:]},
        {row[0].strip("[]"): ids_in(row[1]) for row in others[1:]},
    )


# -- tests, found by reading their files -------------------------------------------------------


@cache
def module(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def named(body: list[ast.stmt], name: str) -> ast.stmt | None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return next((node for node in body if isinstance(node, kinds) and node.name == name), None)


def origin(path: str, name: str) -> str:
    """Where the module at ``path`` imports ``name`` from, or ``path`` itself."""
    for node in module(path).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            folder = path.rpartition("/")[0] + "/" if node.level else ""
            return folder + str(node.module).replace(".", "/") + ".py"
    return path


def method(path: str, owner: str, name: str) -> ast.stmt | None:
    """The method that ``owner`` has of its own, or from the first of its bases that has it."""
    path = origin(path, owner)
    found = named(module(path).body, owner)
    if not isinstance(found, ast.ClassDef):
        return None
    if own := named(found.body, name):
        return own
    bases = (base.id for base in found.bases if isinstance(base, ast.Name))
    return next((got for base in bases if (got := method(path, base, name))), None)


def find(test: str) -> ast.stmt | None:
    """The node of a test, class or module by its id; ``None`` when there is none."""
    path, *names = test.split("::")
    if not (ROOT / path).is_file():
        return None
    match names:
        case []:
            return ast.Pass()
        case [name]:
            return named(module(path).body, name)
        case [owner, name]:
            return method(path, owner, name)
    return None


def runs(test: ast.stmt) -> bool:
    """Whether it does something: it is not skipped, and not expected to fail."""
    if not isinstance(test, ast.FunctionDef):
        return False
    first = ast.unparse(test.body[0])
    marks = " ".join(ast.unparse(mark) for mark in test.decorator_list)
    return not first.startswith("pytest.skip") and not re.search(r"mark\.(skip|xfail)\b", marks)


# -- the page against the tests ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("guarantee", "driver", "cell"), guarantees(), ids=[f"{d}: {g}" for g, d, _ in guarantees()]
)
def test_every_cell_is_a_test(guarantee: str, driver: str, cell: str) -> None:
    contract, classes, others = proof()
    marks = MARK.findall(cell)
    assert marks, f"nothing is said to show {cell!r}"
    for mark in marks:
        if mark in contract:
            assert classes.get(driver), f"the contract is not said to run on {driver}"
        else:
            assert mark in others, f"[{mark}] leads nowhere"


@pytest.mark.parametrize(("mark", "tests"), proof()[2].items(), ids=lambda v: str(v)[:60])
def test_every_mark_is_a_test_that_runs(mark: str, tests: list[str]) -> None:
    assert tests
    for test in tests:
        found = find(test)
        assert found is not None, f"there is no {test}"
        assert runs(found), f"{test} shows nothing"


@pytest.mark.parametrize(("driver", "classes"), proof()[1].items(), ids=lambda v: str(v)[:60])
def test_the_contract_runs_on_each_driver(driver: str, classes: list[str]) -> None:
    used = {
        mark
        for _, of, cell in guarantees()
        for mark in MARK.findall(cell)
        if of == driver and mark in proof()[0]
    }
    assert used and classes
    for each in classes:
        for mark in used:
            test = f"{each}::{proof()[0][mark]}"
            found = find(test)
            assert found is not None, f"there is no {test}"
            assert runs(found), f"{test} shows nothing"


def test_no_mark_is_left_over() -> None:
    contract, classes, others = proof()
    cells = guarantees()
    used = {mark for _, _, cell in cells for mark in MARK.findall(cell)}
    assert used == {*contract, *others}
    assert {*classes} <= {driver for _, driver, _ in cells}


@pytest.mark.parametrize(
    "page", [ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name
)
def test_tests_that_pages_name_exist(page: Path) -> None:
    for test in NAMED.findall(page.read_text(encoding="utf-8")):
        assert find(test) is not None, f"{page.name} names {test}, which is not there"


def test_every_line_about_safety_is_a_test_that_runs() -> None:
    lines = [rows[1:] for rows in tables((ROOT / "SECURITY.md").read_text(encoding="utf-8"))]
    assert sum(map(len, lines)) > 25
    for what, shown in [row for rows in lines for row in rows]:
        assert NAMED.findall(shown), what
        for test in NAMED.findall(shown):
            found = find(test)
            assert found is not None, f"there is no {test}"
            assert runs(found), f"{test} shows nothing"


def test_counted_requests_are_those_that_tests_count() -> None:
    _, counted, *_ = tables(section("What it costs in requests"))
    assert len(counted) > 3
    for name, *numbers in counted[1:]:
        chunks, shards = costs.SELECTIONS[name][1], costs.SHARDED[name][1]
        rounds = 2 if shards.runs else 1
        expected = [chunks, costs.ROUNDS.get(name, 1), rounds * shards.shards, rounds]
        assert [int(number) for number in numbers] == expected, name


def test_the_search_would_notice() -> None:
    assert find("tests/project/test_guarantees.py::test_the_search_would_not_notice") is None
    assert find("tests/no_such_file.py") is None
    assert find("tests/drivers/s3/test_s3.py::TestMotoWithS3fs::test_of_nothing") is None
    slips = "test_no_put_or_delete_slips_into_a_compare_and_swap"
    inherited = find(f"tests/drivers/s3/test_s3.py::TestMotoWithS3fs::{slips}")
    excused = find(f"tests/drivers/s3/test_s3.py::TestCephWithS3fs::{slips}")
    assert inherited is not None and runs(inherited)
    assert excused is not None and not runs(excused)
    assert MARK.findall("yes [t] and [12], as [elsewhere](x.md)") == ["t", "12"]


# -- places that promise less ------------------------------------------------------------------


@contextmanager
def lesser(kind: str, http: Http) -> Iterator[Driver]:
    """A place without conditions, in which ``k`` holds ``1``."""
    if kind == "http":
        http.files["k"] = b"1"
        yield connect(http.url, {})
    elif kind == "zarr":
        storage = pytest.importorskip("zarr.storage")
        driver = connect("zarr://", {"store": storage.MemoryStore()})
        driver.put("k", b"1")
        yield driver
    else:
        fsspec = pytest.importorskip("fsspec")
        fs = fsspec.filesystem("memory", skip_instance_cache=True)
        driver = connect("fsspec:///guarantees", {"fs": fs})
        driver.put("k", b"1")
        yield driver
        driver.delete_prefix("")


@pytest.mark.parametrize("kind", ["fsspec", "http", "zarr"])
def test_places_without_conditions_refuse_them(kind: str, http_server: Http) -> None:
    with lesser(kind, http_server) as driver:
        tag = driver.tag("k")
        assert tag is not None
        for call in (
            lambda: driver.put("k", b"2", if_tag=tag),
            lambda: driver.put("new", b"2", if_absent=True),
            lambda: driver.lock("k").__enter__(),
            lambda: driver.map("k"),
        ):
            with pytest.raises(Unsupported):
                call()
        assert driver.get("k") == b"1" and driver.get("new") is None
        assert not driver.capabilities.conditional_put and not driver.capabilities.locks


@pytest.mark.parametrize("kind", ["fsspec", "zarr"])
def test_a_failing_place_is_not_an_empty_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = MemoryDriver()
    stash.save(stored, np.arange(4))

    def broken(*_: object, **__: object) -> Any:
        raise OSError("the cable is out")

    driver: Driver
    if kind == "zarr":
        storage = pytest.importorskip("zarr.storage")
        store = storage.MemoryStore()
        driver = connect("zarr://", {"store": store})
        for name in ("get", "get_partial_values", "exists", "list", "list_prefix", "list_dir"):
            monkeypatch.setattr(type(store), name, broken)
    else:
        memory = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem
        driver = connect("fsspec:///guarantees", {"fs": memory(skip_instance_cache=True)})
        for name in ("info", "ls", "cat_file", "open", "_open"):
            monkeypatch.setattr(memory, name, broken)
    for call in (
        lambda: driver.get("zarr.json"),
        lambda: driver.get("zarr.json", Span(0, 2)),
        lambda: driver.tag("zarr.json"),
        lambda: [*driver.get_many_tagged([Request("zarr.json")])],
        lambda: [*driver.list()],
        lambda: stash.open(driver),
    ):
        with pytest.raises(DriverError):
            call()


def test_a_put_that_was_cut_off_leaves_no_key() -> None:
    from tensorstash.drivers.fsspec.reading import TEMPORARY

    fs = pytest.importorskip("fsspec").filesystem("memory", skip_instance_cache=True)
    driver = connect("fsspec:///guarantees", {"fs": fs})
    driver.put("c/0", b"old")
    fs.pipe_file(f"/guarantees/c/{TEMPORARY}0123", b"ne")
    assert driver.get("c/0") == b"old"
    assert [*driver.list()] == ["c/0"]
    assert driver.list_dir("c/") == (["0"], [])
    fs.rm("/guarantees", recursive=True)


def read_all(array: stash.Array) -> None:
    assert array[...].tolist() == [*range(40)]


@pytest.mark.parametrize(("method", "used"), [("fork", False), ("fork", True), ("spawn", True)])
def test_children_read_from_a_web_server(http_server: Http, method: str, used: bool) -> None:
    stored: dict[str, bytes] = {}
    stash.save(stored, np.arange(40), chunks=10)
    http_server.files |= {f"a/{key}": bytes(value) for key, value in stored.items()}
    array = stash.open(f"{http_server.url}/a")
    if used:
        read_all(array)
    run_in_processes(multiprocessing.get_context(method), 2, read_all, array)
    read_all(array)
