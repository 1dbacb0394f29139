"""A dataset in one zip file: ``zip:///path/data.zip``, or ``zip://inner/path::/path/data.zip``.

After every put and delete the file is a whole zip for any program, and it is never anything
else: a change is written where it replaces nothing that counts, and takes effect in one step
(``writer.py``, decision 19). The directory costs about 90 bytes a key, twice, at every put:
beyond some 10,000 keys, use shards. What was replaced or deleted stays as dead bytes until it is
more than half of the file, which is then written anew beside its place and renamed, if there is
room for both.

Archives of others are read, and written to with all that is theirs kept: bytes before the
archive, comments, extra fields, modes, folders. What is no zip, or is damaged such that a put
could lose something, is refused and left as it is. Where members were lost, no key is called
absent. On anything but a local file, ``zip://inner::s3://bucket/data.zip``, fsspec's zip
filesystem reads, and nothing writes.
"""

from __future__ import annotations

from typing import Any

from tensorstash.driver import Driver
from tensorstash.drivers.zip.driver import ZipDriver
from tensorstash.errors import Invalid
from tensorstash.urls import file_path, split

__all__ = ["ZipDriver", "connect"]


def connect(rest: str, **options: Any) -> Driver:
    """The archive at the path ``rest``, or after ``::`` the archive and before it the folder
    within. Options are for an archive that is not a local file, and go to fsspec."""
    inner, chained, place = rest.partition("::")
    if not chained:
        inner, place = "", rest
    url = split(place)
    if url is not None and url[0] == "file":
        place, url = file_path(url[1]), None
    if url is None:
        if options:
            raise Invalid(f"a local zip takes no option, not {sorted(options)[0]!r}")
        return ZipDriver(place, inner)
    from tensorstash.drivers.fsspec import find

    factory = find("zip")
    assert factory is not None
    return factory(rest, **options)
