"""What went wrong with a request to S3: which kind of failure a server's code and status mean,
whichever client read them, and which of our errors that is."""

from __future__ import annotations

from tensorstash.drivers.s3.client import Failed, Kind
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

_CODES: dict[str, Kind] = {
    "AccessDenied": "denied",
    "AuthorizationHeaderMalformed": "denied",
    "ExpiredToken": "denied",
    "InvalidAccessKeyId": "denied",
    "InvalidToken": "denied",
    "TokenRefreshRequired": "denied",
    "BadDigest": "lost",
    "IncompleteBody": "lost",
    "InternalError": "lost",
    "RequestTimeout": "lost",
    "XAmzContentSHA256Mismatch": "lost",
    "NoSuchBucket": "no bucket",
    "PreconditionFailed": "precondition",
    "RequestLimitExceeded": "busy",
    "SlowDown": "busy",
    "QuotaExceeded": "no space",
    "XMinioAdminBucketQuotaExceeded": "no space",
    "XMinioStorageFull": "no space",
}
_STATUSES: dict[int, Kind] = {
    400: "refused",
    401: "denied",
    403: "denied",
    405: "refused",
    409: "precondition",
    412: "precondition",
    429: "busy",
    500: "lost",
    501: "refused",
    502: "lost",
    503: "busy",
    504: "lost",
    507: "no space",
}


def is_hidden(code: str | None, status: int | None) -> bool:
    """Whether a server that does not say what is absent may have answered so. Wrong keys, wrong
    signatures and tokens that have expired have codes of their own."""
    return status == 403 and code in (None, "", "403", "AccessDenied", "Forbidden")


def kind_of(code: str | None, status: int | None) -> Kind:
    """What kind of failure it is; the code, where known, says it more exactly."""
    return _CODES.get(code or "") or _STATUSES.get(status or 0, "other")


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
        "what is there now is another writer's, or not to be read; read it again and decide",
        key=key,
        driver=SCHEME,
    )
