"""What a user may say to the Redis driver beside the URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tensorstash.errors import Invalid

Connection = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Options of ``redis://``, ``rediss://`` and ``unix://``."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    """Never in pickles, messages or logs. Without one: ``REDISCLI_AUTH`` of the environment."""
    ca_certs: str | None = None
    """File of the authorities to trust (``rediss://``); default: those of the system."""
    certfile: str | None = None
    """File of this client's own certificate (``rediss://``)."""
    keyfile: str | None = None
    verify: bool = True
    """Whether the server's certificate must be valid and name its host (``rediss://``)."""
    timeout: float = 30.0
    """Seconds within which an operation succeeds or fails, repetitions included."""
    connect_timeout: float = 5.0
    """Seconds to wait for a connection."""
    expire: float | None = None
    """Seconds after which the server drops what was put; ``None`` keeps it."""
    lease: float = 10.0
    """Seconds after which a lock whose holder died is free."""
    cluster: bool = False
    """Whether the server is a node of a cluster, which names the others."""

    def __post_init__(self) -> None:
        for name in ("username", "password", "ca_certs", "certfile", "keyfile"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise Invalid(f"option {name!r} is a text, not {type(value).__name__}")
        for name in ("verify", "cluster"):
            if not isinstance(getattr(self, name), bool):
                raise Invalid(f"option {name!r} is True or False, not {getattr(self, name)!r}")
        for name in ("timeout", "connect_timeout", "expire", "lease"):
            value = getattr(self, name)
            if name == "expire" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0.001 <= value < 1e10:
                raise Invalid(f"option {name!r} is seconds, 0.001 or more, not {value!r}")


_NAMES = frozenset(each.name for each in fields(RedisOptions))
_OF_THE_DRIVER = frozenset({"expire", "lease", "cluster"})


def options_of(given: Mapping[str, Any], source: str) -> RedisOptions:
    """The options by name; :class:`Invalid` names a wrong one, ``source`` says whose it is."""
    for name in given:
        if name not in _NAMES:
            raise Invalid(
                f"{source} has no option {name!r}; it takes {', '.join(sorted(_NAMES))}, connection"
            )
    return RedisOptions(**given)


def from_factory(connection: Connection | None) -> dict[str, Any]:
    """What the user's ``connection`` answers, checked; it is asked once a process."""
    if connection is None:
        return {}
    answer = connection()
    if not isinstance(answer, Mapping):
        raise Invalid(f"connection() answers a dict of options, not {type(answer).__name__}")
    takes = _NAMES - _OF_THE_DRIVER
    for name in answer:
        if name not in takes:
            raise Invalid(
                f"connection() answered the option {name!r}; it may answer "
                f"{', '.join(sorted(takes))}"
            )
    return dict(answer)
