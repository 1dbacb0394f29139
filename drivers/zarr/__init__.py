"""Values in a store of zarr-python's: ``ZipStore``, ``ObjectStore``, icechunk's, and any other.

Give the store itself as the location. A store tells no versions, so a tag is a digest of the
value, except where the store shows one version for good: a zip opened for reading, a read-only
icechunk session. There is no compare-and-swap and no lock.
"""

from __future__ import annotations

from zarr.abc.store import Store

from tensorstash.driver import check_key
from tensorstash.drivers.zarr.driver import Connection, ZarrDriver
from tensorstash.errors import Invalid

__all__ = ["ZarrDriver", "connect"]


def connect(
    rest: str,
    *,
    store: Store | None = None,
    connection: Connection | None = None,
    unsafe: bool = False,
) -> ZarrDriver:
    """What lies below the path ``rest`` of ``store``, or of the one that ``connection``
    returns as ``{"store": ...}``, in every process that uses the driver."""
    if store is None and connection is None:
        raise Invalid("zarr:// takes the store as a location, or as options={'store': ...}")
    prefix = rest.strip("/")
    return ZarrDriver(store, prefix and check_key(prefix) + "/", connection, unsafe)
