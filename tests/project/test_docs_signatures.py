"""What the pages say of names, parameters, defaults and classes is what the code has, both ways."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorstash
import tensorstash.drivers.redis.options
import tensorstash.errors
from tensorstash.create import make_spec
from tensorstash.drivers import file
from tests.support.project import ROOT

DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]
CODE = re.compile(r"```python\n(.*?)```|`([^`\n]+)`", re.DOTALL)
LETTERS = {
    "a": tensorstash.Array,
    "g": tensorstash.Group,
    "r": tensorstash.Records,
    "view": tensorstash.View,
    "repo": tensorstash.Repo,
    "t": tensorstash.Transaction,
    "v": tensorstash.Version,
}
SECTIONS = {
    "Array": tensorstash.Array,
    "View": tensorstash.View,
    "Group": tensorstash.Group,
    "Records": tensorstash.Records,
    "Repo": tensorstash.Repo,
    "Stats": tensorstash.Stats,
    "Explanation": tensorstash.Explanation,
    "Info": tensorstash.Info,
    "Ragged": tensorstash.Ragged,
}
# Not for users, as their docstrings say: for views, writers, adapters and loaders.
INNER: dict[str, set[str]] = {
    "Array": {
        *("as_axis", "as_rows", "as_value", "attributes", "check_stored", "make_writer"),
        *("read_transform", "write_transform", "copied", "read_unwatched", "write_unwatched"),
        *("check_same", "guard", "settle", "watch"),
    },
    "View": {"array", "fields", "transform"},
    "Group": {"attributes"},
    "Records": {"source"},
    "Ragged": {"checked", "join", "of", "dtype", "nbytes", "ndim"},
}


def without_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return True
    return False


def section(title: str, page: str = API) -> str:
    """From a heading to the next of its rank; of what has no heading, the line that begins so."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        found = re.search(rf"^(`{title}`:.*)$", page, re.MULTILINE)
    assert found, title
    return found[1]


def cells(text: str, heading: str = "") -> Iterator[tuple[str, ...]]:
    """Rows of the tables in ``text``, but their heads; of those whose first column is so called."""
    head: str | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        row = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if head is None:
            head = row[0]
        elif not set("".join(row)) <= set("-: ") and heading in ("", head):
            yield row


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return found


def wrong_call(call: ast.Call, function: Callable[..., Any]) -> str | None:
    """What a call in the docs gets wrong: a keyword that the function has not, too many values."""
    known = parameters(function)
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in known.values())
    positional = [p for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = [arg for arg in call.args if not is_ellipsis(arg)]
    if len(given) > len(positional) and not takes_any:
        return f"takes {len(positional)} positional arguments"
    for keyword in call.keywords:
        if keyword.arg and keyword.arg not in known:
            return f"has no parameter {keyword.arg}"
    return None


def is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def wrong_signature(call: ast.Call, function: Callable[..., Any]) -> str | None:
    """What a signature in the docs gets wrong: names, order, defaults, or what it leaves out."""
    wrong = wrong_call(call, function)
    if wrong is not None:
        return wrong
    known = parameters(function)
    kinds = inspect.Parameter
    positional = [p for p in known.values() if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    left_out = bool(call.args) and is_ellipsis(call.args[-1])
    said: set[str] = set()
    for k, arg in enumerate(call.args[: len(call.args) - left_out]):
        if is_ellipsis(arg):
            return "'...' stands last"
        if not isinstance(arg, ast.Name):
            return f"{ast.unparse(arg)} is no name"
        if any(p.kind is kinds.VAR_POSITIONAL for p in known.values()):
            continue
        if positional[k].name != arg.id:
            return f"parameter {k} is {positional[k].name}, not {arg.id}"
        said.add(arg.id)
        needed = positional[k].default in (inspect.Parameter.empty, None)
        if not needed:  # None may mean that another way to say it is left out: shape= by like=
            return f"{arg.id} has the default {positional[k].default!r}"
    for keyword in call.keywords:
        assert keyword.arg is not None
        said.add(keyword.arg)
        default = known[keyword.arg].default
        shown = ast.literal_eval(keyword.value)
        if shown != default or type(shown) is not type(default):
            return f"{keyword.arg} is {default!r}, not {shown!r}"
    missing = [
        p.name
        for p in known.values()
        if p.name not in said and p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    ]
    handed_on = any(p.kind is kinds.VAR_KEYWORD for p in known.values())
    if (missing or handed_on) and not left_out:
        return f"leaves out {missing or 'options'} without '...'"
    return None


def signatures() -> Iterator[tuple[str, str, ast.Call, Callable[..., Any], str]]:
    """``(text, name, call, function, what it gives)`` of every call that a table of api.md has."""
    for row in cells(API):
        for text in spans(row[0]):
            call = parsed(text)
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = call.func.value
            assert isinstance(owner, ast.Name), text
            where: Any = tensorstash if owner.id == "stash" else LETTERS[owner.id]
            yield text, call.func.attr, call, getattr(where, call.func.attr), row[1]


def test_signatures_are_those_of_the_code() -> None:
    wrong, count = [], 0
    for text, _, call, function, _ in signatures():
        count += 1
        why = wrong_signature(call, function)
        if why:
            wrong.append(f"{text}: {why}")
    assert count > 40
    assert not wrong, "\n".join(wrong)


def test_what_calls_return_is_what_they_say() -> None:
    count = 0
    for text, _, _, function, gives in signatures():
        named = re.match(r"(?:an? (?:new )?)?`([A-Z]\w+)`", gives)
        if named:
            count += 1
            returned = str(inspect.signature(function).return_annotation)
            assert returned.rsplit(".", 1)[-1] == named[1], f"{text}: {returned}"
    assert count >= 3


def test_every_function_and_class_is_in_the_list() -> None:
    said = {name for _, name, *_ in signatures()} | set(re.findall(r"\w+", " ".join(spans(API))))
    assert not {name for name in tensorstash.__all__ if name not in said} - set(
        tensorstash.errors.__all__
    )


def fields_of(cls: type) -> list[str]:
    return [one.name for one in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def own_members(cls: type) -> set[str]:
    members = {name for name in (*dir(cls), *fields_of(cls)) if not name.startswith("_")}
    made = vars(cls).get("__init__")
    if made is not None:  # attributes that __init__ sets
        text = inspect.getsource(cls)
        members |= set(
            re.findall(r"^        self\.([a-z]\w*)(?:: [^=\n]+)? = ", text, re.MULTILINE)
        )
    return members


@pytest.mark.parametrize("title", SECTIONS)
def test_every_member_is_listed_and_there(title: str) -> None:
    cls = SECTIONS[title]
    text = section(title)
    named = {
        name
        for span in spans(text)
        for name in re.findall(r"(?<![\w.\"'/])(?:[agrtv]\.|view\.|repo\.)?([a-z]\w*)", span)
    }
    missing = own_members(cls) - INNER.get(title, set()) - named
    assert not missing, f"docs/api.md lacks of {title}: {sorted(missing)}"
    letters = [letter for letter, owner in LETTERS.items() if owner is cls]
    for letter in letters:
        for name in re.findall(rf"\b{letter}\.(\w+)", " ".join(spans(text))):
            assert name in own_members(cls), f"docs/api.md: {letter}.{name} is not there"


def table_options(text: str, heading: str = "option") -> dict[str, str]:
    """Options of the tables in ``text``, with what stands under "left out"."""
    found: dict[str, str] = {}
    for row in cells(text, heading):
        names, values = spans(row[0]), row[-1]
        shown = values.split(", ") if len(names) > 1 else [values]
        shown = shown if len(shown) == len(names) else [""] * len(names)
        found |= dict(zip(names, shown, strict=True))
    return found


def check_options(said: dict[str, str], known: dict[str, Any]) -> None:
    """The names are the same, and where a default is shown as a value, it is that one."""
    assert set(said) == set(known)
    for name, shown in said.items():
        value = re.fullmatch(r"`([^`]+)`|([\d.]+)(; .*)?", shown)
        if value is None:
            continue
        text = value[1] or value[2]
        literal = parsed(text)
        if literal is not None and isinstance(literal, ast.Constant) and known[name] is not None:
            assert literal.value == known[name], f"{name}: {shown}, not {known[name]!r}"


def defaults(*functions: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: p.default
        for function in functions
        for name, p in parameters(function).items()
        if p.kind is p.KEYWORD_ONLY
    }


def test_options_of_arrays_and_handles() -> None:
    stored, handles = re.findall(r"^\*\*How .*?(?=^\*\*How |^## )", API, re.MULTILINE | re.DOTALL)
    layout = {**defaults(make_spec), "overwrite": False}
    check_options(table_options(stored), layout)
    handle = defaults(tensorstash.create, tensorstash.open, tensorstash.open_group)
    for name in (*layout, "shape", "dtype"):  # open takes these for create
        handle.pop(name, None)
    check_options(table_options(handles), handle)


@pytest.mark.skipif(without_torch(), reason="needs torch")
def test_arguments_of_the_loader() -> None:
    from tensorstash.torch import Loader

    known = {name: p.default for name, p in parameters(Loader).items() if name != "source"}
    page = (DOCS / "torch.md").read_text(encoding="utf-8")
    check_options(table_options(page, "argument"), known)


def test_options_of_records() -> None:
    said = table_options((DOCS / "records.md").read_text(encoding="utf-8"))
    known = defaults(tensorstash.create_records)
    assert set(said) == set(known) - {"like"}  # of create_records alone, in its own words


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Folders", defaults(file.connect)),
        (
            "Redis",
            {
                **{
                    field.name: field.default
                    for field in dataclasses.fields(tensorstash.drivers.redis.options.RedisOptions)
                },
                "connection": None,
            },
        ),
    ],
)
def test_options_of_drivers(title: str, known: dict[str, Any]) -> None:
    page = (DOCS / "drivers.md").read_text(encoding="utf-8")
    check_options(table_options(section(title, page)), known)


def test_classes_of_errors() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = list(cells(page, "class"))
    table = {spans(row[0])[0]: set(spans(row[1])) for row in rows if len(row) == 4}
    assert table.keys() == set(tensorstash.errors.__all__) - {"StashError"}
    for name, said in table.items():
        cls = getattr(tensorstash.errors, name)
        bases = {base.__name__ for base in cls.__bases__} - {"StashError"}
        above = {base.__name__ for base in cls.__mro__}
        assert bases - {"Invalid"} <= said <= above, f"{name}: {sorted(bases)}"
    for row in rows:  # of the table of what goes wrong with records: classes that there are
        for name in spans(row[-1] if len(row) == 2 else ""):
            if name[0].isupper():
                assert hasattr(tensorstash.errors, name) or hasattr(builtins, name), name


def calls(page: Path) -> Iterator[tuple[str, ast.AST]]:
    for block, span in CODE.findall(page.read_text(encoding="utf-8")):
        try:
            tree = ast.parse(block or span)
        except SyntaxError:
            continue
        yield block or span, tree


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_in_the_docs_can_be_made(page: Path) -> None:
    """Of functions of ours, wherever they are named: in tables and in the middle of a line too."""
    torch: Any = None
    if not without_torch():
        import tensorstash.torch as torch
    wrong = []
    for text, tree in calls(page):
        for node in ast.walk(tree):
            named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if named and node.value.id == "stash" and not hasattr(tensorstash, node.attr):
                wrong.append(f"{text[:60]}: no stash.{node.attr}")
            if not isinstance(node, ast.Call):
                continue
            function, name = None, ""
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                name = node.func.attr
                if node.func.value.id == "stash":
                    function = getattr(tensorstash, name, None)
            elif isinstance(node.func, ast.Name) and torch is not None:
                name = node.func.id
                function = getattr(torch, name, None) if name in torch.__all__ else None
            if inspect.isfunction(function) or (inspect.isclass(function) and name != "Batch"):
                why = wrong_call(node, function)
                if why:
                    wrong.append(f"{ast.unparse(node)[:80]}: {name} {why}")
    assert not wrong, "\n".join(wrong)
