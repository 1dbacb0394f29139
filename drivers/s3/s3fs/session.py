"""An s3fs file system for our event loop: connected by its first request, repeating nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import aiohttp
import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.loaders import create_loader
from yarl import URL

from tensorstash.drivers import body
from tensorstash.drivers.s3.options import Settings

_REDIRECTS = (301, 302, 303, 307, 308)
_READS = ("GET", "HEAD")
_HOPS = 5
_REGION = "x-amz-bucket-region"


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
        session._response_class = _Short
        return _Staying(session)


class Elsewhere(Exception):
    """A request was redirected to where it does not go; ``location`` as the server said it."""

    def __init__(self, location: str) -> None:
        super().__init__("redirected")
        self.location = location


class _Staying:
    """Follows redirects of reads within the server's own domain only. One that names the bucket's
    region botocore makes a request to that region of, which it signs anew; all others it would ask
    about again and again."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, url: URL, **options: Any) -> aiohttp.ClientResponse:
        """The answer to a request."""
        first, location = url, ""
        for _ in range(_HOPS):
            answer = await self._session.request(method, url, allow_redirects=False, **options)
            if answer.status not in _REDIRECTS or _REGION in answer.headers:
                return answer
            location = answer.headers.get("Location", "")
            target = within(first, url, location) if location and method in _READS else None
            answer.close()
            if target is None:
                break
            url = target
        raise Elsewhere(location)


def within(first: URL, url: URL, location: str) -> URL | None:
    """Where an answer of ``url`` redirects to, if that is the server that was asked ``first``, or
    one below its name."""
    try:
        target = url.join(URL(location, encoded=True))
        same = (target.scheme, target.port) == (first.scheme, first.port)
        host, own = target.host or "", first.host or ""
    except ValueError:
        return None
    named = not own.replace(".", "").isdigit() and ":" not in own and host.endswith("." + own)
    return target if same and (host == own or named) else None


class _Short(aiohttp.ClientResponse):
    """What is read whole is a page of a listing, or words about an error: values are streamed."""

    async def read(self) -> bytes:
        """All of the body; :class:`~tensorstash.drivers.body.Surplus` where it does not end."""
        if self._body is None:
            try:
                self._body = await body.read(self.content.read, body.PAGE)
            except BaseException:
                self.close()
                raise
            self.release()
        return self._body


@cache
def _loader() -> Any:
    """The descriptions of S3 that every client is made from: reading them takes 100 ms, and what
    was read is good in a forked child too."""
    return create_loader()
