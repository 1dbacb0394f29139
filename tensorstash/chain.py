"""Codec chains as metadata documents spell them (Zarr v3 core, "Extension points", "Codecs")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .codec import Codec, reason, split
from .errors import Invalid, StashError, Unsupported, short
from .registry import make_codec


def parse_codecs(value: Any) -> tuple[Codec, ...]:
    """The chain that a ``codecs`` list describes, its order checked. A codec that need not be
    understood and is not known is left out."""
    if not isinstance(value, list) or not value:
        raise Invalid(f"codecs are {short(value)}, not a non-empty list")
    chain: list[Codec] = []
    for item in value:
        name, configuration, optional = extension(item, "codec")
        try:
            chain.append(make(name, configuration))
        except Unsupported:
            if not optional:
                raise
    split(chain)
    return tuple(chain)


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec, with whatever its maker raises turned into our errors."""
    try:
        return make_codec(name, configuration)
    except (StashError, MemoryError):
        raise
    except RecursionError as error:
        raise Unsupported("a codec chain nests too deeply to be read") from error
    except Exception as error:  # third-party codecs raise what they like
        detail = reason(error)
        raise Invalid(
            f"codec {short(name)} cannot have {short(configuration)}: {detail}"
        ) from error


def extension(value: Any, what: str) -> tuple[str, Mapping[str, Any], bool]:
    """Name, configuration and whether it may be ignored, of an extension object or shorthand."""
    if isinstance(value, str):
        return value, {}, False
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Invalid(f"{what} {short(value)} is neither a name nor an object with one")
    for key in value:
        if key not in ("name", "configuration", "must_understand"):
            raise Invalid(f"{what} {short(value['name'])} has an unknown key {short(key)}")
    configuration = value.get("configuration", {})
    understand = value.get("must_understand", True)
    if not isinstance(configuration, dict) or not isinstance(understand, bool):
        raise Invalid(f"{what} {short(value)}: configuration is an object, must_understand a bool")
    return value["name"], configuration, not understand
