"""Which key a member's name stands for, as the programs that unpack archives take it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

UTF8 = 0x800
"""The flag of a member whose name is UTF-8."""
_UNICODE_PATH = 0x7075


def key_of(raw: bytes, flags: int, extra: bytes) -> tuple[str, str]:
    """The key, and what is wrong with it (or nothing). Folders end in ``/``.

    Backslashes separate, a leading ``/`` and ``.`` mean nothing: so every program unpacks.
    """
    text, wrong = _text(raw, flags, extra)
    if "\0" in text:
        return text.partition("\0")[0], "has a NUL in its name"
    if "\\" in text or "." in text or "//" in text or text[:1] == "/":
        parts = text.replace("\\", "/").split("/")
        folder = "/" if parts[-1] == "" else ""
        if ".." in parts:
            wrong = "has '..' in its name"
        text = "/".join(part for part in parts if part not in ("", ".", "..")) + folder
    return text, wrong


def fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """``(kind, content)`` of each extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        yield kind, extra[at + 4 : at + 4 + size]
        at += 4 + size


def spelling(extra: bytes) -> bytes:
    """Of extra fields the one that holds another spelling of the name, as it stands there."""
    found = (content for kind, content in fields(extra) if kind == _UNICODE_PATH)
    content = next(found, None)
    if content is None:
        return b""
    return struct.pack("<2H", _UNICODE_PATH, len(content)) + content


def _text(raw: bytes, flags: int, extra: bytes) -> tuple[str, str]:
    if extra and not flags & UTF8:
        for kind, content in fields(extra):
            if kind == _UNICODE_PATH and content[:1] == b"\1" and len(content) > 5:
                # The checksum tells whether the plain name was changed without this one.
                if content[1:5] == struct.pack("<L", zlib.crc32(raw)):
                    raw, flags = content[5:], UTF8
                break
    try:
        # Unix programs write UTF-8 without saying so; as code page 437 it would be nonsense.
        return raw.decode(), ""
    except UnicodeDecodeError:
        if flags & UTF8:
            return raw.decode(errors="replace"), "has a name that is not UTF-8"
        return raw.decode("cp437"), ""
