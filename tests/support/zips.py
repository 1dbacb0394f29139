"""Archives of every make, as tests need them, and what must hold of one after a change."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorstash.drivers.zip import ZipDriver

VALUES = {f"c/{i}": bytes([65 + i]) * (300 + i) for i in range(5)}


class Pipe(io.RawIOBase):
    """A file that cannot seek: what is written to it is streamed."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]

    def close(self) -> None:
        self._file.close()
        super().close()


def ours(path: Path) -> None:
    driver = ZipDriver(path)
    for key, value in VALUES.items():
        driver.put(key, value)


def plain(path: Path, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, value in VALUES.items():
            archive.writestr(key, value)


def deflated(path: Path) -> None:
    plain(path, zipfile.ZIP_DEFLATED)


def streamed(path: Path) -> None:
    with Pipe(path) as pipe, zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[type-var]
        for key, value in VALUES.items():
            archive.writestr(key, value)


def streamed_stored(path: Path) -> None:
    with Pipe(path) as pipe, zipfile.ZipFile(pipe, "w") as archive:  # type: ignore[type-var]
        for key, value in VALUES.items():
            archive.writestr(key, value)


def large(path: Path) -> None:
    """Every member with the extra field for large sizes."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in VALUES.items():
            with archive.open(key, "w", force_zip64=True) as member:
                member.write(value)


def commented(path: Path) -> None:
    plain(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"what it is about"


def extracting(path: Path) -> None:
    """Bytes before it that are of no zip, as programs that unpack themselves have."""
    plain(path)
    path.write_bytes(b"#!/bin/sh\nexit 1\n" * 50 + path.read_bytes())


def spelled(path: Path) -> None:
    """Every member with the extra field that holds another spelling of its name, which counts;
    the plain one has lost what code page 437 cannot say."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in VALUES.items():
            info = zipfile.ZipInfo(key.replace("c", "?"))
            content = b"\1" + struct.pack("<L", zlib.crc32(info.filename.encode())) + key.encode()
            info.extra = struct.pack("<2H", 0x7075, len(content)) + content
            archive.writestr(info, value)


def info_zip(path: Path) -> None:
    """By Info-ZIP's ``zip``: times, owners and modes in extra fields, folders as entries."""
    folder = path.parent / "unpacked"
    (folder / "c").mkdir(parents=True)
    for key, value in VALUES.items():
        (folder / key).write_bytes(value)
    subprocess.run(["zip", "-qr", str(path), "c"], cwd=folder, check=True)


MAKES: Mapping[str, Callable[[Path], None]] = {
    "ours": ours,
    "plain": plain,
    "deflated": deflated,
    "streamed": streamed,
    "streamed stored": streamed_stored,
    "large": large,
    "commented": commented,
    "extracting": extracting,
}


def content(path: Path) -> dict[str, bytes]:
    """What Python's own reader finds in it."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}


def read(path: Path) -> dict[str, bytes]:
    """What the driver finds in it."""
    driver = ZipDriver(path)
    found = {key: driver.get(key) for key in driver.list()}
    return {key: bytes(value) for key, value in found.items() if value is not None}


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
