"""What is built and installed is what stands in the tree, and importing it is cheap and safe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tensorstash.engine import native
from tests.support.project import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

KERNEL = "tensorstash/engine/native/_kernel"

HEAVY = {
    *("torch", "zarr", "fsspec", "s3fs", "redis", "matplotlib", "tqdm", "scipy", "pandas", "dask"),
    *("tensorstore", "ml_dtypes", "asyncio", "multiprocessing.pool", "concurrent.futures.process"),
}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """The output of a command that must succeed; nothing of this process's paths leaks in."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- the standard library's codecs -------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["-X", "frozen_modules=off"]])
def test_repository_root_does_not_shadow_the_standard_library(flags: list[str]) -> None:
    code = "import codecs; codecs.lookup('utf-8'); print(codecs.__file__)"
    out = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert not out.stdout.startswith(str(ROOT / "codecs")), out.stdout


def test_standard_library_modules_of_a_codecs_name_are_not_ours(tmp_path: Path) -> None:
    code = (
        "import gzip, codecs, tensorstash.codecs.gzip as ours; print(gzip.__file__, ours.__file__)"
    )
    theirs, ours = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split()
    assert Path(theirs).resolve() != Path(ours).resolve()
    assert Path(ours).resolve().parent == ROOT / "codecs"


# -- what import costs and pulls in ------------------------------------------------


def test_import_pulls_in_no_extras_and_starts_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, threading, tensorstash\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "print(' '.join(sys.modules))"
    )
    loaded = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split()
    assert "tensorstash" in loaded
    assert not HEAVY & set(loaded)


def test_reading_and_writing_pulls_in_no_extras(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, tensorstash\n"
        "tensorstash.save('x.zarr', numpy.arange(100))\n"
        "assert (tensorstash.load('x.zarr') == numpy.arange(100)).all()\n"
        "print(' '.join(sys.modules))"
    )
    loaded = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).split()
    extras = {"torch", "zarr", "fsspec", "s3fs", "redis", "matplotlib", "tqdm"}
    assert not extras & set(loaded)


# -- versions and lists --------------------------------------------------------------


def test_versions_agree() -> None:
    import tensorstash

    version = PROJECT["project"]["version"]
    assert tensorstash.__version__ == version
    headings = [
        line
        for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    ]
    assert headings[0].startswith((f"## [{version}]", "## [Unreleased]"))
    assert any(heading.startswith(f"## [{version}]") for heading in headings)


def test_every_package_folder_is_listed() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tensorstash").rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    for leaves in ("drivers", "codecs"):
        folders |= {
            ".".join(("tensorstash", *path.parent.relative_to(ROOT).parts))
            for path in (ROOT / leaves).rglob("*.py")
        }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_torch_is_pinned_and_every_extra_admits_the_pin() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    (pin,) = [pin for pin in pins if pin.name == "torch"]
    (version,) = [Version(part.version) for part in pin.specifier if part.operator == "=="]
    for extra, wanted in PROJECT["project"]["optional-dependencies"].items():
        for text in wanted:
            requirement = Requirement(text)
            if requirement.name == "torch":
                assert version in requirement.specifier, f"extra {extra}: {text}"


# -- sdist, wheel, installation --------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """``(sdist, wheel)``, the wheel built from the unpacked sdist. Needs no network."""
    pytest.importorskip("setuptools", "77")
    work = tmp_path_factory.mktemp("build")
    tree = work / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    without_caches = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("tensorstash", "drivers", "codecs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=without_caches)
    build = (
        "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"
    )
    run(sys.executable, "-c", build, "build_sdist", work, cwd=tree)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    run(sys.executable, "-c", build, "build_wheel", work, cwd=unpacked)
    (wheel,) = work.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def pure(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built where the kernel is turned off, or no compiler is found."""
    work = tmp_path_factory.mktemp("pure")
    with tarfile.open(built[0]) as archive:
        archive.extractall(work, filter="data")
    (unpacked,) = work.iterdir()
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, work, cwd=unpacked, TENSORSTASH_NATIVE="0")
    (wheel,) = work.glob("*.whl")
    return wheel


def test_a_wheel_without_the_kernel_is_for_every_machine(
    built: tuple[Path, Path], pure: Path
) -> None:
    assert pure.name.endswith("-py3-none-any.whl")
    names, more = (set(zipfile.ZipFile(wheel).namelist()) for wheel in (pure, built[1]))
    kernel = {name for name in more - names if ".dist-info/" not in name}
    assert kernel <= {f"{KERNEL}.abi3.so"}
    if kernel:
        assert "-cp311-abi3-" in built[1].name


def test_the_kernel_needs_no_library_but_the_system_s(built: tuple[Path, Path]) -> None:
    """So a wheel of it is one for every Linux of that libc, as auditwheel sees it."""
    pytest.importorskip("auditwheel")
    _, wheel = built
    if not (sys.platform == "linux" and "-cp311-abi3-" in wheel.name):
        pytest.skip("auditwheel looks at wheels of Linux with the kernel")
    found = run(sys.executable, "-m", "auditwheel", "show", wheel, cwd=wheel.parent)
    assert "manylinux_2_" in found.replace("\n", " ")
    assert "libc.so.6" in found
    assert "libcrypto" not in found
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert config["cibuildwheel"]["build"] == "cp311-*"
    assert {*config["cibuildwheel"]["linux"]["archs"]} == {"x86_64", "aarch64"}
    assert {*config["cibuildwheel"]["macos"]["archs"]} == {"x86_64", "arm64"}


def test_without_a_compiler_the_build_succeeds(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    run(
        sys.executable,
        "-c",
        build,
        tmp_path,
        cwd=unpacked,
        CC="/nowhere/cc",
        LDSHARED="/nowhere/cc",
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_wheel_from_sdist_holds_exactly_the_modules_of_the_tree(built: tuple[Path, Path]) -> None:
    _, wheel = built
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tensorstash").rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    for folder in ("drivers", "codecs"):
        found = (ROOT / folder).rglob("*.py")
        wanted |= {f"tensorstash/{path.relative_to(ROOT)}" for path in found}
    compiled = {f"{KERNEL}.abi3.so"} if native.available() else set()
    assert names - {f"{KERNEL}.abi3.so"} == wanted | {"tensorstash/py.typed"}
    assert compiled <= names, "a compiler built the kernel here, and not for the wheel"


def test_sdist_carries_the_license(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    folder = ROOT / "tensorstash" / "engine" / "native"
    assert {str(path.relative_to(ROOT)) for path in folder.glob("*.[ch]")} <= names


def test_wheel_works_installed_outside_the_checkout(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = built
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    # Its dependencies are those of this environment: listed after its own folder, so that
    # the wheel wins over any tensorstash installed here.
    (site / "dependencies.pth").write_text(f"{Path(np.__file__).parent.parent}\n")
    code = (
        "import numpy, tensorstash\n"
        "import tensorstash.drivers.file, tensorstash.codecs.gzip, tensorstash.testing\n"
        "data = numpy.arange(60, dtype='u2').reshape(6, 10)\n"
        "a = tensorstash.create('x.zarr', shape=(6, 10), dtype='u2', chunks=(4, 4))\n"
        "a[...] = data\n"
        "assert (tensorstash.open('x.zarr')[:, ::-2] == data[:, ::-2]).all()\n"
        "from tensorstash.engine import native\n"
        f"assert native.available() is {native.available()}, native.status()\n"
        "print(tensorstash.__file__, tensorstash.codecs.gzip.__file__, sep='\\n')"
    )
    python = tmp_path / "venv" / "bin" / "python"
    for path in run(python, "-I", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(site), path
