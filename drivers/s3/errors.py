"""What went wrong with a request to S3, as one of our errors."""

from __future__ import annotations

from tensorstash.drivers.s3.client import Failed
from tensorstash.errors import (
    Denied,
    DriverError,
    NoSpace,
    NotFound,
    StashError,
    TimedOut,
    Unavailable,
    Unsupported,
)

SCHEME = "s3"


def error_of(failed: Failed, verb: str, key: str, url: str) -> StashError:
    """The error to raise for ``failed``: which class, and what to do next."""
    what = f"cannot {verb} {key!r} in {url}"
    said = str(failed)
    if failed.kind == "denied":
        advice = "check the keys, their token, and their rights"
        if verb == "read":
            advice = (
                "the credentials are wrong or lack s3:GetObject, or the object is absent and "
                "they lack s3:ListBucket, without which the server does not say so "
                "(options={'denied_is_absent': True} reads it as absent)"
            )
        if "no usable credentials" in said:
            advice = (
                "give options 'key' and 'secret', or 'connection' where a pickle travels, or set "
                "AWS_ACCESS_KEY_ID"
            )
        return Denied(f"{what}: the server denies it ({said}); {advice}", key=key, driver=SCHEME)
    if failed.kind == "no space":
        return NoSpace(
            f"{what}: the server has no room ({said}); free some, or have the quota raised",
            key=key,
            driver=SCHEME,
        )
    if failed.kind == "no bucket":
        bucket = url.partition("://")[2].partition("/")[0]
        return NotFound(f"no bucket {bucket!r} at this endpoint; create it, or correct the URL")
    if failed.kind == "refused":
        return Unsupported(f"{what}: the server does not do this ({said}); use another one")
    if failed.kind == "redirected":
        return Denied(
            f"{what}: {said}, which gets no credentials and is not believed; give the right "
            "endpoint or region",
            key=key,
            driver=SCHEME,
        )
    if failed.kind == "busy":
        return Unavailable(
            f"{what}: the server kept refusing to be asked that fast ({said}); ask for less at "
            "once (option 'concurrency'), or raise option 'timeout'",
            key=key,
            driver=SCHEME,
        )
    if failed.kind == "lost" and failed.timed_out:
        return TimedOut(
            f"{what}: {said}; check the endpoint and the network, or raise option 'timeout'",
            key=key,
            driver=SCHEME,
        )
    if failed.kind == "lost":
        return Unavailable(
            f"{what}: it kept failing ({said}); check the endpoint and the network, then try again",
            key=key,
            driver=SCHEME,
        )
    if said.startswith("TLS"):
        said += "; name the file of its authority as option 'ca', or correct the endpoint"
    return DriverError(f"{what}: {said}", key=key, driver=SCHEME)


def unknown(key: str, url: str) -> DriverError:
    """A conditional put may or may not have been carried out."""
    return DriverError(
        f"outcome unknown: the answer to a conditional put of {key!r} in {url} was lost, and "
        "another writer has written since; read it again and decide",
        key=key,
        driver=SCHEME,
    )
