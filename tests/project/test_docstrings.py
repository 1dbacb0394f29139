"""Docstrings of the public face: the promise, each parameter, what is returned, an example that
runs; and no option that has no type."""

from __future__ import annotations

import builtins
import doctest
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash
import tensorstash.codec
import tensorstash.driver
import tensorstash.errors
import tensorstash.options
import tensorstash.testing
from tensorstash.attributes import Attributes
from tensorstash.create import make_spec, open_place
from tensorstash.records import RecordWriter, layout
from tensorstash.records.series import Series
from tensorstash.records.typed import Typed
from tensorstash.view import Indexer, Lazy, Tensors
from tensorstash.writer import BufferedWriter
from tests.project.test_docs import FOR_ADAPTERS
from tests.project.test_docs_signatures import INNER, without_torch

# What users get from members, beside what the package exports.
HANDED_OUT = (Attributes, BufferedWriter, RecordWriter, Indexer, Lazy, Tensors, Series, Typed)

# Contracts for those who write drivers, whose suites are their members' examples: asked for are
# the class, and the members that have no default.
CONTRACTS = {"Driver": tensorstash.driver.Driver.__abstractmethods__}

# Libraries that an example needs.
NEEDS = {"Tensors": "torch", "zarr_store": "zarr"}


def is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def public() -> Iterator[tuple[str, Any]]:
    """The functions and classes of the public face."""
    for name in tensorstash.__all__:
        thing = getattr(tensorstash, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
    for cls in HANDED_OUT:
        yield cls.__name__, cls


def members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties for users that a class of ours, or one above it, defines."""
    if is_error(cls):
        return
    for member in dir(cls):
        found = inspect.getattr_static(cls, member)
        found = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
        ours = str(getattr(found, "__module__", "")).startswith("tensorstash")
        inner = member in FOR_ADAPTERS or member in INNER.get(name, ())
        inner = inner or member not in CONTRACTS.get(name, (member,))
        if member.startswith("_") or inner:
            continue
        if isinstance(found, property) or (ours and inspect.isfunction(found)):
            yield f"{name}.{member}", found


def documented() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, thing in public():
        found.append((name, thing))
        if inspect.isclass(thing):
            found += members(name, thing)
    return found


NAMES = [name for name, _ in documented()]
BY_NAME = dict(documented())


def section(text: str, title: str) -> str:
    """What stands indented under a heading of a docstring."""
    found = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)*)", text + "\n", re.MULTILINE)
    return found[1] if found else ""


def described(args: str) -> set[str]:
    """The parameters that have an entry: ``name: ...`` or ``name, other: ...``, whose names may
    take more than a line."""
    entries = re.findall(r"^    (\w[\w, \n]*?): ?", args, re.MULTILINE)
    return {name for entry in entries for name in re.findall(r"\w+", entry)}


def parameters(function: Callable[..., Any]) -> set[str]:
    known = list(inspect.signature(function).parameters)
    return set(known[known[:1] == ["self"] :])


@pytest.mark.parametrize("name", NAMES)
def test_the_promise_comes_first(name: str) -> None:
    text = inspect.getdoc(BY_NAME[name])
    assert text, name
    first = text.partition("\n\n")[0]
    assert first[-1] in ".:" and first[0] == first[0].upper(), first


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name: str) -> None:
    thing = BY_NAME[name]
    if not inspect.isfunction(thing):
        return  # classes are made by functions and methods; dataclasses say what they hold
    text = inspect.getdoc(thing) or ""
    known = parameters(thing)
    said = described(section(text, "Args"))
    assert said == known, f"{name}: {sorted(known ^ said)}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_returned_is_explained(name: str) -> None:
    thing = BY_NAME[name]
    if inspect.isfunction(thing):
        text = inspect.getdoc(thing) or ""
        returns = inspect.signature(thing).return_annotation not in ("None", None)
        assert bool(section(text, "Returns")) == returns, name


@pytest.mark.parametrize("name", NAMES)
def test_what_is_raised_is_an_error(name: str) -> None:
    text = section(inspect.getdoc(BY_NAME[name]) or "", "Raises")
    for word in re.findall(r"^    ([A-Z]\w+)", text, re.MULTILINE):
        assert hasattr(tensorstash.errors, word) or hasattr(builtins, word), f"{name}: {word}"


@pytest.mark.parametrize("name", NAMES)
def test_an_example_shows_it(name: str) -> None:
    thing = BY_NAME[name]
    if isinstance(thing, property):
        return  # says what it is; the example of its class shows how it is asked
    if is_error(thing):
        return  # docs/errors.md shows when each is raised
    if name.partition(".")[0] in CONTRACTS and "." in name:
        return
    assert ">>> " in (inspect.getdoc(thing) or ""), name


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with the names that a reader would have imported."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(NEEDS.get(name, "numpy"))
    run(name, BY_NAME[name].__doc__)


@pytest.mark.parametrize("name", [name for name, cls in public() if inspect.isclass(cls)])
def test_examples_of_all_members_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those too that are not for users."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(NEEDS.get(name, "numpy"))
    cls = dict(public())[name]
    for member in sorted({*INNER.get(name, ()), *CONTRACTS.get(name, ())}):
        run(name, getattr(inspect.getattr_static(cls, member, None), "__doc__", None))


def run(name: str, text: str | None) -> None:
    names = {"stash": tensorstash, "np": np}
    test = doctest.DocTestParser().get_doctest(text or "", names, name, None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


# -- options --------------------------------------------------------------------------------

FACES = [tensorstash, tensorstash.codec, tensorstash.driver, tensorstash.testing]
if not without_torch():
    FACES.append(importlib.import_module("tensorstash.torch"))


def callables() -> Iterator[tuple[str, types.FunctionType]]:
    """Every public function and method, those for adapters too."""
    for face in FACES:
        for name in getattr(face, "__all__", [n for n in vars(face) if not n.startswith("_")]):
            thing = getattr(face, name)
            if not getattr(thing, "__module__", "").startswith("tensorstash"):
                continue
            if inspect.isfunction(thing):
                yield name, thing
            elif inspect.isclass(thing):
                yield from methods(thing)
    for cls in HANDED_OUT:
        yield from methods(cls)


def methods(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    if not cls.__module__.startswith("tensorstash"):
        return
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        found = getattr(found, "__func__", found)
        if inspect.isfunction(found) and (not name.startswith("_") or name == "__init__"):
            yield f"{cls.__name__}.{name}", found


def keywords(function: types.FunctionType) -> str | None:
    """The name of the parameter that takes all other keywords, which signatures do not show."""
    code = function.__code__
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    before = code.co_argcount + code.co_kwonlyargcount
    return code.co_varnames[before + bool(code.co_flags & inspect.CO_VARARGS)]


def test_no_public_callable_takes_options_without_types() -> None:
    taking = {
        name: function.__annotations__.get(rest)
        for name, function in callables()
        if (rest := keywords(function))
    }
    assert len(taking) >= 10, "is the reader broken?"
    assert not [name for name, given in taking.items() if given in (None, "Any", Any)]


def test_signatures_show_every_option() -> None:
    for name, function in callables():
        rest = keywords(function)
        annotation = str(function.__annotations__.get(rest)) if rest else ""
        if annotation.startswith("Unpack["):
            options = getattr(sys.modules[function.__module__], annotation[7:-1])
            shown = inspect.signature(function).parameters
            assert set(options.__annotations__) <= set(shown), name
            assert rest not in shown, name


OPTIONS = [one for one in vars(tensorstash.options).values() if typing.is_typeddict(one)]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda cls: cls.__name__)
def test_options_have_the_types_of_what_takes_them(options: type) -> None:
    takers = (make_spec, open_place)
    if "rows_per_chunk" in options.__annotations__:
        takers = (layout.specs, *takers)
    for name, wanted in typing.get_type_hints(options).items():
        taker = next(one for one in takers if name in inspect.signature(one).parameters)
        names = vars(sys.modules[taker.__module__])
        assert typing.get_type_hints(taker, names)[name] == wanted, name


def test_unknown_options_are_refused() -> None:
    place: dict[str, Any] = {}
    tensorstash.create_group(place)
    for call in (tensorstash.create_group, tensorstash.open_group, tensorstash.open_records):
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\) got an unexpected .*'cach'"):
            call(place, cach="1GiB")  # type: ignore[call-arg]
