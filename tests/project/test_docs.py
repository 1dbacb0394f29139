"""The documentation is true: its code runs, its links hold, and nothing public is missing."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tensorstash
import tensorstash.errors
from tensorstash import registry
from tests.servers.redis import Redis
from tests.servers.s3 import S3
from tests.support.project import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


# Places that pages name, in the words that stand for the tests' own servers.
ON_S3 = re.compile(r"s3://my-bucket|http://localhost:9000")
ON_REDIS = re.compile(r"redis://localhost:6379/0")
ELSEWHERE = re.compile(
    r"s3://(?!my-bucket)|https?://(?!localhost:9000)|\b(?:gs|az|abfs|hf|s?ftp)://"
    # What pages make themselves: a socket that is not there, a port that they listen on.
    r"|rediss?://(?!localhost:6379/0|127\.0\.0\.1:\{)|unix://(?!/no\.sock)"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """``(line, language, code)`` of every Python block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in BLOCK.finditer(text)
    ]


class Stage:
    """The tests' servers, each started when a page first names one, in the place of the reader's:
    a bucket and a prefix of the page's own."""

    def __init__(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.request = request
        self.monkeypatch = monkeypatch
        self.names: dict[str, str] = {}

    def set(self, code: str) -> str:
        """``code``, leading to servers that are there."""
        if ON_S3.search(code) and "s3://my-bucket" not in self.names:
            server: S3 = self.request.getfixturevalue("s3")
            self.names["s3://my-bucket"] = f"s3://{server.make_bucket()}"
            self.names["http://localhost:9000"] = server.endpoint
            self.names["my-key"], self.names["my-secret"] = server.key, server.secret
            for variable, value in (
                ("AWS_ENDPOINT_URL", server.endpoint),
                ("AWS_ACCESS_KEY_ID", server.key),
                ("AWS_SECRET_ACCESS_KEY", server.secret),
                ("AWS_DEFAULT_REGION", "us-east-1"),
            ):
                self.monkeypatch.setenv(variable, value)
        if ON_REDIS.search(code) and "redis://localhost:6379/0" not in self.names:
            redis: Redis = self.request.getfixturevalue("valkey_server")
            self.names["redis://localhost:6379/0"] = redis.fresh()
        for word, ours in self.names.items():
            code = code.replace(word, ours)
        return code


# The README's blocks run as programs, twice: tests/project/test_readme.py.
@pytest.mark.parametrize("page", [p for p in PAGES[1:] if blocks(p)], ids=name)
def test_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """In order, in one namespace and one empty folder, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    stage = Stage(request, monkeypatch)
    module: Any = types.ModuleType("page")  # what a page defines can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    namespace: dict[str, Any] = vars(module)
    for line, language, text in blocks(page):
        code = stage.set(text)
        if language == "pycon":
            example = doctest.DocTestParser().get_doctest(code, namespace, name(page), None, line)
            report: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(example, out=report.append, clear_globs=False)
            assert not runner.failures, "".join(report)
            namespace.update(example.globs)
        else:
            # Blank lines before the code make a traceback show the page's own line numbers.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name)
def test_code_blocks_lead_to_servers_of_the_tests_only(page: Path) -> None:
    for line, _, code in blocks(page):
        found = ELSEWHERE.search(code)
        assert found is None, f"{name(page)}:{line}: nobody serves {found[0]} to the tests"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_fence_says_its_language(page: Path) -> None:
    # A block that is not marked is not run, and would rot.
    for fence in FENCE.findall(page.read_text(encoding="utf-8")):
        assert fence.partition("\n")[0] != "```", f"{name(page)}: {fence[:60]!r}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve()
        assert found.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(
        r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_architecture_names_the_files_there_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w*/]+\.py\b", text)) - {"drivers/x.py", "codecs/y.py"}
    assert named
    found: set[Path] = set()
    for one in named:
        paths = [*ROOT.glob(one), *ROOT.glob(f"tensorstash/{one}"), *ROOT.glob(f"*/{one}")]
        assert paths, f"docs/architecture.md names {one}, which is not there"
        found |= set(paths)
    ours = {*(ROOT / "tensorstash").glob("*.py"), *(ROOT / "tensorstash").glob("*/*.py")}
    unnamed = {
        path.relative_to(ROOT / "tensorstash").as_posix()
        for path in ours - found
        if path.name != "__init__.py" and path.parent.name not in ("testing", "drivers", "codecs")
    }
    assert not unnamed, f"docs/architecture.md does not say what these are: {sorted(unnamed)}"


def test_architecture_tells_the_plan_of_the_drivers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text.partition("## The drivers")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    shared = {code(row[0])[0]: code(row[2]) for row in rows if len(row) == 3}
    own = {code(row[0])[0]: code(row[1]) for row in rows if len(row) == 2}
    folders = {path for path in (ROOT / "drivers").iterdir() if [*path.glob("*.py")]}
    assert {"redis", "s3", "file"} <= {folder.name for folder in folders}
    for folder in folders:
        there = {path.stem for path in folder.glob("*.py")} - {"__init__", "driver"}
        said = {file for file, drivers in shared.items() if folder.name in drivers}
        assert said <= there, f"{folder.name} has no {said - there}"
        known = said | {*own.get(folder.name, ())}
        if folder.name != "posix":  # of several drivers
            assert there <= known, f"docs/architecture.md does not say what {there - known} are"


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


FOR_ADAPTERS = {
    # Public for views, writers and adapters, not for users: their docstrings say so.
    *(
        "as_axis",
        "as_rows",
        "as_value",
        "attributes",
        "check_same",
        "check_stored",
        "make_writer",
        "read_transform",
        "read_unwatched",
        "settle",
        "watch",
        "write_transform",
        "write_unwatched",
    ),
}


def corpus() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def mentioned(word: str, text: str) -> bool:
    """Whether ``word`` stands in ``text`` as code: in backticks or in a block."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", code) is not None


@pytest.mark.parametrize("folder", ["drivers", "codecs"])
def test_every_leaf_is_documented(folder: str) -> None:
    page = (ROOT / "docs" / f"{folder}.md").read_text(encoding="utf-8")
    # A file without the entry function is shared by its neighbours, not a leaf of its own.
    entry = {"drivers": "def connect(", "codecs": "def make("}[folder]
    leaves = {
        path.parent.name if path.stem == "__init__" else path.stem
        for path in [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/__init__.py")]
        if entry in path.read_text(encoding="utf-8")
    }
    if folder == "drivers":
        leaves |= {*registry._ALIASES}
    assert leaves, f"{folder}/ is empty"
    missing = {
        leaf
        for leaf in leaves
        if not mentioned(leaf, page) and not mentioned(leaf.replace("_", "-"), page)
    }
    assert not missing, f"docs/{folder}.md does not mention {sorted(missing)}"


def test_every_error_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    missing = {name for name in tensorstash.errors.__all__ if not mentioned(name, page)}
    assert not missing


def test_every_public_name_is_documented() -> None:
    text = corpus()
    missing = {name for name in tensorstash.__all__ if not mentioned(name, text)}
    assert not missing


@pytest.mark.parametrize("cls", [tensorstash.Array, tensorstash.Group], ids=lambda c: c.__name__)
def test_every_public_member_is_documented(cls: type) -> None:
    text = corpus()
    members = {member for member in dir(cls) if not member.startswith("_")}
    assert members
    missing = {member for member in members - FOR_ADAPTERS if not mentioned(member, text)}
    assert not missing, f"no page mentions {cls.__name__}: {sorted(missing)}"


@pytest.mark.parametrize("cls", [tensorstash.Array, tensorstash.Group], ids=lambda c: c.__name__)
def test_every_public_member_has_a_docstring(cls: type) -> None:
    for member in dir(cls):
        if not member.startswith("_"):
            assert inspect.getdoc(inspect.getattr_static(cls, member)), f"{cls.__name__}.{member}"
