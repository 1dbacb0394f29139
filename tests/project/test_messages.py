"""Messages are English sentences: one of a thing is not "1 things", and no word is half a word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.failures import failure
from tensorstash.errors import Invalid, counted
from tests.support.project import ROOT

NOUNS = (
    "arrays axes batches blocks boundaries bytes chunks codecs columns dimensions elements fields "
    "files folders indices items keys levels members objects offsets options pages parts "
    "places ranks records requests rows runs seconds shards sources units values windows workers"
)
COUNTS = re.compile(rf" (inner |stored |whole |missing |dimension_)?({NOUNS.replace(' ', '|')})\b")
# What is no count: a wrong value as it is, a dtype or a class by name, a constant.
NO_COUNT = re.compile(r"short\(.*|sorted\(.*|.*dtype.*|.*__name__|(\w+\.)*_?[A-Z][A-Z0-9_]+")
WRONG = {
    "a verb after 'cannot'": re.compile(r"\bcannot (exists|info|size|stat)\b"),
    "'is no thing'": re.compile(r"(?<!there )\bis no \w"),
    "'a' before a vowel": re.compile(r"\b[Aa] (?!(?:one|u(?:ni|s|r|int|tf))\w*)[aeiou]\w", re.I),
    "'an' before a consonant": re.compile(
        r"\b[Aa]n (?!lz4|fsspec|s3://|[A-Z]|h(?:our|onest))[^\Waeiou]"
    ),
    "an article before what is filled in": re.compile(r"\b[Aa]n? \{type\("),
}


@cache
def messages() -> list[tuple[str, ast.expr, str]]:
    """All of :func:`strings`."""
    return list(strings())


def strings() -> Iterator[tuple[str, ast.expr, str]]:
    """``(place, node, text)`` of every string that is no docstring; values as ``{expression}``."""
    for folder in ("tensorstash", "drivers", "codecs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "testing" in path.parts or any(p.is_symlink() for p in path.parents):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            passed = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.JoinedStr):
                    passed |= {id(part) for part in node.values}
                    text = "".join(
                        "{" + ast.unparse(part.value) + "}"
                        if isinstance(part, ast.FormattedValue)
                        else str(ast.literal_eval(part))
                        for part in node.values
                    )
                    yield place, node, text
                elif isinstance(node, ast.Constant) and id(node) not in passed:
                    yield place, node, str(node.value)


def test_counts_agree_with_what_they_count() -> None:
    wrong = []
    for place, node, _ in messages():
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in pairwise(parts):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            what = ast.unparse(value.value)
            found = COUNTS.match(str(after.value))
            if found and not NO_COUNT.fullmatch(what):
                wrong.append(f"{place}: {{{what}}}{found[0]}: say counted({what}, ...)")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("what", WRONG)
def test_messages_are_sentences(what: str) -> None:
    wrong = [f"{place}: {text}" for place, _, text in messages() if WRONG[what].search(text)]
    assert not wrong, "\n".join(wrong)


def test_counted() -> None:
    assert [counted(n, "axis", "axes") for n in (0, 1, 2)] == ["0 axes", "1 axis", "2 axes"]
    assert counted(1, "byte is", "bytes are") == "1 byte is"
    assert [counted(n, "row") for n in (1, 10**12)] == ["1 row", "1000000000000 rows"]


def message(call: Any, *values: Any, **how: Any) -> str:
    with pytest.raises(Invalid) as caught:
        call(*values, **how)
    return str(caught.value)


def test_one_of_each() -> None:
    a = stash.create({}, (1,), "uint8")
    a[...] = 1
    assert "1 dimension, 2 were" in message(a.read, np.s_[0, 0])
    assert "1 chunk from 1 object, 1 request," in str(a.explain())
    assert "of 1 object (" in str(a.info())
    assert "1 axis, the array has 2" in message(stash.create, {}, (1, 1), "i4", chunks=(1,))
    names = message(stash.create, {}, (1,), "i4", dimension_names=("a", "b"))
    assert names == "dimension_names has 2 names for 1 axis"
    r = stash.create_records({}, {"t": str}, length=1)
    assert "1 row of" in repr(r) and ": 1 row, " in str(r.info())
    assert "for 1 row" in message(r.__setitem__, slice(0, 1), {"t": ["a", "b"]})


@pytest.mark.parametrize("verb", ["exists", "info", "size", "get", "list"])
def test_what_a_driver_cannot_do_is_a_verb(verb: str) -> None:
    for error in (NotImplementedError(), OSError(5, "x")):
        said = str(failure(verb, "a place", "key", "gs", error))
        assert re.search(r"cannot (look (at|for)|get|list) 'a place'", said), said
