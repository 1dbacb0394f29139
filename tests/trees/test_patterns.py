"""Patterns on paths against pathlib's, and what is not looked at for them."""

from __future__ import annotations

import fnmatch
import json
import random
import re
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from tensorstash.errors import Invalid
from tensorstash.trees.patterns import Choice, matches

NAMES = st.text("ab.-0 ü[]!*?\n", min_size=1, max_size=3).filter(lambda name: name.strip("."))
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
PARTS = st.one_of(
    st.sampled_from(
        ["**", "*", "a", "b", "?", "*a", "a*", "[ab]", "[!a]", "[", "[]", "a**", "[a-"]
    ),
    st.text("ab.*?[]!-0ü", min_size=1, max_size=4).filter(lambda part: part.strip(".")),
)
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)


def slow(path: str, pattern: str) -> bool:
    """What Python 3.13 makes of a pattern: one expression, in which ``**`` matches whole parts."""
    *parts, last = pattern.split("/")
    text = ""
    for k, part in enumerate(parts):
        if part != "**":
            text += within(part) + "/"
        elif [*parts, last][k + 1] != "**":
            text += "(?:.+/)?"
    text += ".*" if last == "**" else within(last)
    return re.fullmatch(text, path, re.DOTALL) is not None


def within(part: str) -> str:
    """Of one name: nothing of it matches a slash; sets of letters are compared elsewhere."""
    part = re.sub(r"\*+", "*", part)
    if part == "*":
        return "[^/]+"
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter)) for letter in part)


def full_match(path: str, pattern: str) -> bool:
    if sys.version_info >= (3, 13):
        return PurePosixPath(path).full_match(pattern)
    return slow(path, pattern)


@given(PATHS, PATTERNS)
@example("raw", "raw/**")
@example("raw/x", "raw/**")
@example("raw", "**/raw")
@example("raw/a/b", "raw/**/b")
@example("raw/b", "raw/**/b")
@example("raw", "**/**")
@example("a/b", "a?b")
def test_as_pathlib_has_them(path: str, pattern: str) -> None:
    if "[" not in pattern:  # for Python a set such as [!a] may hold the slash
        assert matches(path, pattern) == full_match(path, pattern)


PYTHON = """
import json, sys
from pathlib import PurePosixPath
pairs = json.load(sys.stdin)
print(json.dumps([PurePosixPath(path).full_match(pattern) for path, pattern in pairs]))
"""


def test_as_python_3_13_has_them() -> None:
    """By that interpreter, where it is on this machine: what others are compared with, too."""
    rng = random.Random(0)
    names = ["a", "b", "ab", "ba", "b.a", "\u00fc", "-", "0", ".a"]
    parts = ["**", "**", "*", "a", "b", "?", "??", "*a", "a*", "a*b", "a**"]
    parts += ["[ab]", "[a-b]*", "[", "]"]
    paths = ["/".join(rng.choices(names, k=rng.randint(1, 5))) for _ in range(20_000)]
    pairs = [(path, "/".join(rng.choices(parts, k=rng.randint(1, 5)))) for path in paths]
    command = [sys.executable if sys.version_info >= (3, 13) else "python3.13", "-c", PYTHON]
    try:
        run = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True)
    except OSError:
        pytest.skip("no Python 3.13 here")
    if run.returncode:
        pytest.skip("no Python 3.13 here")
    theirs = json.loads(run.stdout)
    assert 1000 < sum(theirs) < 19_000
    assert [matches(*pair) for pair in pairs] == theirs
    for (path, pattern), found in zip(pairs, theirs, strict=True):
        if "[" not in pattern:
            assert slow(path, pattern) is found, (path, pattern)


@given(NAMES, PARTS)
def test_within_a_name_as_fnmatch_has_them(name: str, part: str) -> None:
    if part != "**":
        assert matches(name, part) == fnmatch.fnmatchcase(name, part)


@pytest.mark.parametrize(
    ("path", "pattern", "found"),
    [
        ("a/b", "a[!x]b", False),
        ("a/b", "a[+-a]b", False),
        ("a/b", "a/[!x]", True),
        ("a/b", "/a/b/", True),
        ("a/b", "a//b", True),
        ("a/b", "./a/./b", True),
        ("a/b/c", "a/**", True),
        ("a", "a/**", False),
        ("a", "**", True),
        (".zz", "*", True),
        ("A", "a", False),
        ("a[1]", "a[[]1]", True),
        ("run7x", "run[0-9]?", True),
    ],
)
def test_what_is_said_of_them(path: str, pattern: str, found: bool) -> None:
    assert matches(path, pattern) is found
    assert matches(path, [pattern, "nothing"]) is found
    assert matches(path, exclude=pattern) is not found


@given(PATHS, st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=3))
def test_many_at_once(path: str, include: list[str], exclude: list[str]) -> None:
    above = [path[:k] for k in range(1, len(path) + 1) if path[k : k + 1] in ("", "/")]
    wanted = any(matches(path, one) for one in include)
    wanted = wanted and not any(matches(one, two) for one in above for two in exclude)
    assert matches(path, include, exclude) is wanted
    assert matches(path, iter(include), tuple(exclude)) is wanted
    assert matches(path, None, exclude) is not any(matches(a, b) for a in above for b in exclude)


@given(PATHS, PATHS, st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2))
def test_what_lies_below_a_place_that_is_not_looked_at_is_not_wanted(
    above: str, below: str, include: list[str], exclude: list[str]
) -> None:
    choice = Choice.of(include, exclude)
    for name in above.split("/"):
        choice = choice.below(name)
    if not choice.may_hold:
        assert not matches(f"{above}/{below}", include, exclude)


@pytest.mark.parametrize("bad", ["", "/", "..", "a/../b", ".", 3, b"a", [b"a"], [""], ["a", 3]])
def test_what_is_no_pattern_is_refused(bad: Any) -> None:
    for option in ("include", "exclude"):
        with pytest.raises(Invalid, match=option):
            Choice.of(**{"include": None, "exclude": None, option: bad})


def test_a_long_pattern_takes_no_time_that_grows_without_end() -> None:
    assert not matches("/".join("a" * 200), "/".join(["**", "a"] * 100) + "/b")
