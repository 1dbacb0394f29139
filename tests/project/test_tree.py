"""The shape of the source: small files, no import cycles, nothing of one machine in it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorstash import registry
from tests.support.project import ROOT

SOURCES = ("tensorstash", "drivers", "codecs", "benchmarks", "examples", "tests")
MAX_LINES = 600
MAX_CLASS_LINES = 300


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        # tensorstash/drivers and tensorstash/codecs are links to the folders beside it.
        if not any(parent.is_symlink() for parent in path.parents)
    )


def tracked_files() -> list[Path]:
    """What git would keep: tracked, and new but not ignored. Outside git, the sources."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = [*python_files(*SOURCES), *ROOT.glob("*.*"), *(ROOT / "docs").rglob("*.md")]
    else:
        found = [ROOT / name for name in out.decode().split("\0") if name]
    return [path for path in found if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("path", python_files(*SOURCES), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_too_long_to_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it by concept"


# Those of one kind each, or where more would be split without a reason.
MAX_FILES = 12
LARGER = {
    "tensorstash": 28,
    "tensorstash/engine": 13,
    "tensorstash/records": 19,
    "drivers/redis": 14,
    "codecs": 23,
    "benchmarks": 40,
    "benchmarks/training": 36,
    "tests/arrays": 19,
    "tests/codecs": 14,
    "tests/faults": 15,
    "tests/project": 16,
    "tests/records": 26,
    "tests/servers": 17,
    "tests/support": 33,
}


@pytest.mark.parametrize("top", SOURCES)
def test_no_folder_has_more_files_than_can_be_kept_in_mind(top: str) -> None:
    counts = Counter(path.parent for path in python_files(top) if path.name != "__init__.py")
    found = {folder.relative_to(ROOT).as_posix(): count for folder, count in counts.items()}
    larger = {name: n for name, n in found.items() if n > LARGER.get(name, MAX_FILES)}
    assert not larger, f"{larger}: put what belongs together into a folder of its own"
    slack = {name: n for name, n in LARGER.items() if name in found and found[name] < n}
    assert not slack, f"{slack}: these have fewer files by now; lower their numbers"


LONGER_CLASSES = {
    # A contract's whole face, or not cut yet: none may grow.
    "Array": 530,
    "DiskCache": 347,
    "DriverRaces": 314,
    "DriverValues": 327,
    "FileDriver": 514,
    "Group": 522,
    "Records": 545,
    "Requests": 395,
    "S3Driver": 353,
    "S3fsClient": 318,
    "Writer": 558,
    "ZarrDriver": 312,
}


def class_lengths(path: Path) -> dict[str, int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def long_classes(path: Path) -> list[str]:
    return [
        f"{name} has {n} lines"
        for name, n in class_lengths(path).items()
        if n > LONGER_CLASSES.get(name, MAX_CLASS_LINES)
    ]


@pytest.mark.parametrize(
    "path",
    python_files("tensorstash", "drivers", "codecs"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_class_is_too_long_to_read(path: Path) -> None:
    assert not long_classes(path)


def test_what_is_said_of_longer_classes_is_no_more_than_they_have() -> None:
    longest: Counter[str] = Counter()
    for path in python_files("tensorstash", "drivers", "codecs"):
        longest |= Counter(class_lengths(path))  # the larger of two of one name
    slack = {name: longest[name] for name, n in LONGER_CLASSES.items() if longest[name] < n}
    assert not slack, f"{slack}: these are shorter by now; lower their numbers, or take them out"


def test_leaf_folders_have_no_init() -> None:
    # With codecs/__init__.py on the path, the standard library's codecs would be shadowed.
    assert not (ROOT / "drivers" / "__init__.py").exists()
    assert not (ROOT / "codecs" / "__init__.py").exists()


def test_drivers_have_one_plan() -> None:
    # connect stands in a folder's __init__, the class in driver.py; schemes beside it are aliases.
    found = [*(ROOT / "drivers").glob("*.py"), *(ROOT / "drivers").glob("*/__init__.py")]
    served = {path for path in found if "connect" in functions(path)}
    assert {"file", "redis", "s3"} <= {path.parent.name for path in served}
    for path in served:
        assert path.name == "__init__.py", f"{path.relative_to(ROOT)} is no folder"
        assert (path.parent / "driver.py").exists(), f"{path.parent.name} has no driver.py"
    for scheme, (module, function) in registry._ALIASES.items():
        assert function in functions(ROOT / "drivers" / module / "__init__.py"), scheme
        assert not (ROOT / "drivers" / scheme).exists()


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_vague_module_names() -> None:
    vague = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "base", "types"}
    named = {path.stem for path in python_files("tensorstash", "drivers", "codecs")}
    assert not named & vague


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("drivers", "codecs"):
        parts.insert(0, "tensorstash")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports at any depth, inside functions too; not those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not is_type_checking(node):
            yield from import_nodes(node)


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of ours that ``path`` imports."""
    name = module_name(path)
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        parents = package.split(".")
        prefix = parents[: len(parents) - (node.level - 1)] if node.level else []
        base = ".".join([*prefix, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            found.add(inner if inner in modules else base)
    return (found & modules) - {name}


def named_in_strings(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules of ours that a string names: an argument of ``import_module``, an entry of a
    table, the fixed start of an f-string (which may name any module below). A façade that does
    nothing but hand on is named by its own name only."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            first = node.values[0]
            text = first.value if isinstance(first, ast.Constant) else ""
            if isinstance(text, str) and IN_FRONT.fullmatch(text):
                found |= {name for name in modules if name.startswith(text)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.replace(":", ".")
            while named and IN_FULL.fullmatch(named):
                if named in modules:
                    found.add(named)
                    break
                named = named.rpartition(".")[0]
    return found


IN_FULL = re.compile(r"tensorstash(\.\w+)+")
IN_FRONT = re.compile(r"tensorstash\.(\w+\.)*\w*")
BY_NAME = {"tensorstash", "tensorstash.registry"}
"""These two import by name: what a user asks for by name (a codec of codecs among it), and what
costs time to import."""


def string_graph() -> dict[str, set[str]]:
    files = python_files("tensorstash", "drivers", "codecs")
    modules = {module_name(path) for path in files}
    trees = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    return {name: named_in_strings(tree, modules) - {name} for name, tree in trees.items()}


def import_graph() -> dict[str, set[str]]:
    files = python_files("tensorstash", "drivers", "codecs")
    modules = {module_name(path) for path in files}
    return {module_name(path): imported(path, modules) for path in files}


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*trail, name]):
                return found
        done.add(name)
        return None

    for name in sorted(graph):
        if found := visit(name, []):
            return found
    return None


def test_the_cycle_finder_finds_cycles() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_no_import_cycles_lazy_ones_included() -> None:
    # The package's own __init__ is the façade: everything stands behind it.
    strings = string_graph()
    graph = {
        module: (others | (set() if module in BY_NAME else strings[module])) - {"tensorstash"}
        for module, others in import_graph().items()
        if module != "tensorstash"
    }
    assert sum(map(len, graph.values())) > 5, "the import graph looks empty: is the reader broken?"
    found = cycle(graph)
    assert found is None, " -> ".join(found or [])


def test_strings_that_name_modules_are_found() -> None:
    modules = {"tensorstash.a", "tensorstash.a.b", "tensorstash.c"}

    def found(text: str) -> set[str]:
        return named_in_strings(ast.parse(text), modules)

    assert found("import_module('tensorstash.a.b')") == {"tensorstash.a.b"}
    assert found("x = {'k': 'tensorstash.c:make'}") == {"tensorstash.c"}
    assert found("import_module(f'tensorstash.a.{n}')") == {"tensorstash.a.b"}
    assert found("import_module(f'tensorstash.{n}')") == modules
    assert found("'see tensorstash.a', 'tensorstash', f'tensorstash needs {n}', 'numpy.a'") == set()


def test_only_the_registry_and_the_package_reach_modules_by_name() -> None:
    strings = string_graph()
    assert strings["tensorstash.registry"], "no strings are found: is the reader broken?"
    found = {name: others for name, others in strings.items() if others and name not in BY_NAME}
    assert not found, found


def test_leaves_import_their_contract_and_each_other_only() -> None:
    allowed = {
        # Threads are no contract, and need one pool whatever asks for them.
        "tensorstash.drivers": {
            "tensorstash.cached",
            "tensorstash.driver",
            "tensorstash.errors",
            "tensorstash.urls",
            "tensorstash.wrapper",
            "tensorstash.threads",
        },
        # Options that are numbers of the array's dtype are spelled as its fill value is.
        "tensorstash.codecs": {
            "tensorstash.codec",
            "tensorstash.dtype",
            "tensorstash.errors",
            "tensorstash.fill",
        },
    }
    for module, others in import_graph().items():
        folder = ".".join(module.split(".")[:2])
        if folder in allowed:
            foreign = {name for name in others if not name.startswith(folder + ".")}
            assert foreign <= allowed[folder], f"{module} imports {foreign - allowed[folder]}"


def test_the_core_imports_no_leaf_by_name() -> None:
    leaves = ("tensorstash.drivers.", "tensorstash.codecs.")
    for module, others in import_graph().items():
        if not module.startswith((*leaves, "tensorstash.testing")):
            assert not [name for name in others if name.startswith(leaves)], module


AT_THE_ROOT = {
    "setup.py",
    *SOURCES,
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "docs",
    "pyproject.toml",
}


def test_nothing_strange_lies_at_the_root() -> None:
    # A test that takes a URL for a path, say, leaves a folder of that name here.
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} <= AT_THE_ROOT


# Spelled in pieces, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(
        (r"/wo" + r"rk/", r"/tmp" + r"/v\b", r"/ro" + r"ot/", r"/ho" + r"me/\w", r"/Us" + "ers/")
    )
)


def test_no_machine_paths() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), 1)
            if MACHINE_PATHS.search(line)
        ]
    assert not found, "\n".join(found)


def test_no_leftovers() -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")))
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files(*SOURCES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, "\n".join(found)
