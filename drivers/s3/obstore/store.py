"""obstore's store of one bucket, and whether obstore can run in this process at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import botocore.session
import obstore
from obstore.store import MemoryStore, S3Store

from tensorstash.drivers import loop
from tensorstash.drivers.s3.client import Failed
from tensorstash.drivers.s3.obstore.futures import all_done, tracked
from tensorstash.drivers.s3.options import Settings

# botocore renews temporary credentials ten minutes before they expire, at the latest.
_HOLD = timedelta(minutes=8)
_NEVER = timedelta(days=365)
_PROBE_SECONDS = 2.0
_NOWHERE = "http://127.0.0.1:0"

_running: dict[int, bool] = {}
"""Whether obstore's runtime runs, by process."""

_Provider = Callable[[], Awaitable[dict[str, Any]]]


def usable() -> bool:
    """Whether obstore may be used in this process. Its runtime, one for the whole process, does
    not survive a fork: in a child of a process that used it, a request waits for ever."""
    return _running.get(os.getpid(), not _running)


async def runs() -> bool:
    """Whether obstore's runtime answers. Someone else may have started it before a fork that we
    do not know of; nothing but its silence tells."""
    if not usable():
        return False
    pid = os.getpid()
    if pid not in _running:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await tracked(obstore.put_async(MemoryStore(), "probe", b""))
            _running[pid] = True
            loop.current().at_exit(all_done)
        except TimeoutError:
            _running[pid] = False
    return _running[pid]


def connect(settings: Settings) -> tuple[S3Store | None, bool]:
    """The store, which repeats nothing and has no time limit for a whole request, and whether
    it is Amazon's. May read files and ask for credentials: to be called in a thread.

    obstore follows redirects, and there is no option against it. It takes the signature off a
    request that goes to another host or port, but not a session token. So the way to all hosts
    but the endpoint's is closed: by a proxy where nobody can listen, which is asked for those.
    As that does not tell ports apart, and takes the place of a proxy of the environment, there
    is no store (``None``) for an endpoint that is not Amazon's where credentials have a token, or
    where there is such a proxy.
    """
    provider, region, endpoint, token = _chain(settings)
    own = f"s3.{region or 'us-east-1'}.amazonaws.com" if endpoint is None else _host(endpoint)
    proxied = bool(getproxies().keys() & {"http", "https", "all"}) and not proxy_bypass(own)
    if endpoint is not None and (token or proxied):
        return None, False
    # Each setting is given, even where it is the default: obstore takes the others from the
    # environment, where an endpoint or a token may belong to other keys.
    config: dict[str, Any] = {
        "region": region or "us-east-1",
        "skip_signature": settings.anon,
        "virtual_hosted_style_request": settings.path_style is False,
    }
    if endpoint is not None:
        if settings.path_style is False:
            parts = urlsplit(endpoint)
            endpoint = urlunsplit(parts._replace(netloc=f"{settings.bucket}.{parts.netloc}"))
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
    client: dict[str, Any] = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "allow_invalid_certificates": not settings.verify,
        "connect_timeout": timedelta(seconds=settings.idle),
        "timeout": _NEVER,
        "pool_max_idle_per_host": str(settings.concurrency),
    }
    if not proxied:
        client |= {"proxy_url": _NOWHERE, "proxy_excludes": own}
    ca = settings.ca or os.environ.get("AWS_CA_BUNDLE")
    try:
        if ca:
            client["root_certificate"] = Path(ca).read_bytes()
        store = S3Store(
            settings.bucket,
            config=config,  # type: ignore[arg-type]
            client_options=client,  # type: ignore[arg-type]
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
            credential_provider=provider,  # type: ignore[arg-type]
        )
    except OSError as error:
        raise Failed("other", f"option 'ca' of s3://: {error.strerror}: {ca!r}") from error
    except Exception:  # its text may repeat settings, secret ones too
        raise Failed("other", "obstore refuses these options of the connection") from None
    return store, endpoint is None


def _host(endpoint: str) -> str:
    return urlsplit(endpoint).hostname or ""


def _chain(settings: Settings) -> tuple[_Provider | None, str | None, str | None, bool]:
    """Credentials, region and endpoint: as given, else as botocore finds them; and whether the
    credentials have a session token."""
    session = botocore.session.Session(profile=settings.profile)
    try:
        region = settings.region or session.get_config_variable("region")
        endpoint = (
            settings.endpoint
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or session.get_scoped_config().get("endpoint_url")
        )
        if settings.anon:
            return None, region, endpoint, False
        if settings.key is not None:
            return _fixed(settings), region, endpoint, settings.token is not None
        found = session.get_credentials()
        token = (
            endpoint is not None
            and found is not None
            and found.get_frozen_credentials().token is not None
        )
    except Exception as error:
        said = f"no usable credentials ({type(error).__name__})"
        raise Failed("denied", said) from error
    if found is None:
        raise Failed("denied", "no usable credentials in the options, the environment or ~/.aws")
    return _renewed(found), region, endpoint, token


def _fixed(settings: Settings) -> _Provider:
    async def provide() -> dict[str, Any]:
        return {
            "access_key_id": settings.key,
            "secret_access_key": settings.secret,
            "token": settings.token,
            "expires_at": None,
        }

    return provide


def _renewed(credentials: Any) -> _Provider:
    async def provide() -> dict[str, Any]:
        until = datetime.now(UTC) + _HOLD
        # To renew them asks a server, and takes its time.
        frozen = await asyncio.to_thread(credentials.get_frozen_credentials)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": until,
        }

    return provide
