"""What an S3 server's error codes and statuses mean, whichever client read them."""

from __future__ import annotations

from tensorstash.drivers.s3.client import Kind

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
