"""Objects in an S3 bucket, of Amazon or any server that speaks its protocol:
``s3://bucket/path``.

``driver.py`` keeps the contract; ``requests.py`` sends, repeats, counts and logs; ``client.py`` is
what it asks of a library, ``s3fs/`` and ``obstore/`` two that carry it out. Nothing is imported,
started or sent before first use.
"""

from __future__ import annotations

from tensorstash.drivers.s3 import pool
from tensorstash.drivers.s3.driver import S3Driver
from tensorstash.drivers.s3.options import Connection, Limits, Settings, split
from tensorstash.errors import Invalid

__all__ = ["S3Driver", "connect"]


def connect(
    rest: str,
    *,
    key: str | None = None,
    secret: str | None = None,
    token: str | None = None,
    profile: str | None = None,
    region: str | None = None,
    endpoint: str | None = None,
    endpoint_url: str | None = None,
    anon: bool = False,
    path_style: bool | None = None,
    ca: str | None = None,
    verify: bool = True,
    connection: Connection | None = None,
    client: str = "auto",
    unsafe: bool = False,
    denied_is_absent: bool = False,
    timeout: float = 30.0,
    idle: float = 10.0,
    lease: float = 10.0,
    concurrency: int = 64,
    multipart_bytes: int = 64 << 20,
    part_bytes: int = 16 << 20,
) -> S3Driver:
    """The objects of the bucket that ``rest`` names up to its first ``/``, below the path that
    follows.

    Who asks and where: ``key``, ``secret``, ``token``, ``profile``, ``region``, ``endpoint`` (or
    ``endpoint_url``; for other servers than Amazon's), ``anon`` (unsigned requests),
    ``path_style`` (the bucket in the address's path; the default with an endpoint), ``ca`` (a
    file of certificates to trust) and ``verify``. What is not given comes from the usual chain:
    ``AWS_*`` variables, then ``~/.aws``, then the machine's role. ``connection`` is a function
    that returns a dict of these options; it is called once in each process and, unlike keys,
    travels in pickles.

    ``client`` is ``"s3fs"``, ``"obstore"``, or ``"auto"``: obstore where it can be used.
    ``timeout`` bounds a request with all its repetitions, in seconds, and grows by a second for
    each MiB; ``idle`` bounds a server's silence. ``concurrency``: requests under way at once.
    ``lease``: seconds after which the lock of a dead process is free. Values of
    ``multipart_bytes`` or more go up in parts of ``part_bytes``. ``unsafe`` allows servers that
    do not keep conditions: for a single writing process, see :class:`S3Driver`.

    ``denied_is_absent`` is for buckets that answer 403 where an object is absent, because who asks
    lacks ``s3:ListBucket``: reads that are denied so find nothing. The danger: a chunk that is
    stored and whose reading is denied reads as fill too, without an error. Writes, deletes and
    listings that are denied, wrong keys and expired tokens stay
    :class:`~tensorstash.errors.Denied`.
    """
    if not isinstance(denied_is_absent, bool):
        raise Invalid("option 'denied_is_absent' of s3:// must be True or False")
    if denied_is_absent and unsafe:
        raise Invalid(
            "s3:// takes denied_is_absent=True or unsafe=True, not both: an object that is denied "
            "would be replaced by one that is to be created"
        )
    if endpoint is not None and endpoint_url is not None:
        raise Invalid("options 'endpoint' and 'endpoint_url' of s3:// mean the same; give one")
    if connection is not None and not callable(connection):
        raise Invalid("option 'connection' of s3:// is a function that returns a dict of options")
    bucket, root = split(rest)
    settings = Settings(
        bucket,
        key=key,
        secret=secret,
        token=token,
        profile=profile,
        region=region,
        endpoint=endpoint if endpoint is not None else endpoint_url,
        anon=anon,
        path_style=path_style,
        ca=ca,
        verify=verify,
        concurrency=concurrency,
        idle=idle,
    )
    return S3Driver(
        settings.checked(),
        root,
        connection=connection,
        client=pool.check_kind(client),
        unsafe=bool(unsafe),
        denied_is_absent=denied_is_absent,
        limits=Limits(timeout, lease, multipart_bytes, part_bytes).checked(),
    )
