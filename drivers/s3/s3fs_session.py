"""An s3fs file system for our event loop: connected by its first request, repeating nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.loaders import create_loader

from tensorstash.drivers.s3.settings import Settings


def file_system(settings: Settings) -> Any:
    """The file system of an asynchronous caller."""
    path_style = settings.path_style
    if path_style is None:
        path_style = settings.endpoint is not None
    options: dict[str, Any] = {
        "read_timeout": settings.idle,
        "connect_timeout": settings.idle,
        "max_pool_connections": settings.concurrency,
        "http_session_cls": _Once,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if path_style:
        options["s3"] = {"addressing_style": "path"}
    client: dict[str, Any] = {"verify": settings.ca or settings.verify}
    if settings.ca is None and settings.verify:
        del client["verify"]  # botocore then heeds AWS_CA_BUNDLE
    if settings.region is not None:
        client["region_name"] = settings.region
    session = AioSession(profile=settings.profile)
    session.register_component("data_loader", _loader())
    fs = s3fs.S3FileSystem(
        anon=settings.anon,
        key=settings.key,
        secret=settings.secret,
        token=settings.token,
        endpoint_url=settings.endpoint,
        client_kwargs=client,
        config_kwargs=options,
        asynchronous=True,
        skip_instance_cache=True,
        use_listings_cache=False,
        session=session,
    )
    fs.retries = 1
    return fs


class _Once(AIOHTTPSession):  # type: ignore[misc]
    """Sends a request once. aiohttp by itself repeats a PUT whose answer was lost, and would then
    report that a condition did not hold where our own first PUT made it so."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


@cache
def _loader() -> Any:
    """The descriptions of S3 that every client is made from: reading them takes 100 ms, and what
    was read is good in a forked child too."""
    return create_loader()
