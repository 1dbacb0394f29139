"""What a user says to the Redis driver: options; by the URL a server, a database and a prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tensorstash.driver import check_key
from tensorstash.drivers.redis.keys import is_ours
from tensorstash.errors import Invalid

Connection = Callable[[], Mapping[str, Any]]

_PORT = 6379


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
    """What the user's ``connection`` returns, checked; it is called once a process."""
    if connection is None:
        return {}
    answer = connection()
    if not isinstance(answer, Mapping):
        raise Invalid(f"connection() returns a dict of options, not {type(answer).__name__}")
    takes = _NAMES - _OF_THE_DRIVER
    for name in answer:
        if name not in takes:
            raise Invalid(
                f"connection() returned the option {name!r}; it may return "
                f"{', '.join(sorted(takes))}"
            )
    return dict(answer)


# -- by the URL ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """A server, a database and a prefix; no secrets."""

    scheme: str
    host: str = ""
    port: int = _PORT
    path: str = ""
    """Of a unix socket, absolute."""
    db: int = 0
    prefix: str = ""
    """Without slashes at its ends; may be empty."""

    def __post_init__(self) -> None:
        if self.prefix:
            check_key(self.prefix)
            if is_ours(self.prefix):
                raise Invalid(
                    f"prefix {self.prefix!r}: names like .tag{{...}} are kept; use another"
                )

    @property
    def server(self) -> str:
        """The server alone, for messages."""
        if self.path:
            return f"{self.scheme}://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """What names this place again; a path added to it with ``/`` goes to the prefix."""
        if self.path:
            return f"{self.server}?db={self.db}&prefix={self.prefix}"
        return f"{self.server}/{self.db}" + (f"/{self.prefix}" if self.prefix else "")


def tcp_place(scheme: str, rest: str) -> tuple[RedisPlace, dict[str, str]]:
    """``[user:password@]host[:port][/db[/prefix]]`` as a place and the credentials in it, which
    are percent-decoded; the prefix is taken as it is. Messages quote nothing before the path."""
    authority, _, path = rest.partition("/")
    user, _, server = authority.rpartition("@")
    try:
        split = urlsplit("//" + server)
        # redis:///0/name is this host, as TensorDict and redis-py have it.
        host, port = (
            split.hostname or ("" if server or not path else "localhost"),
            split.port or _PORT,
        )
    except ValueError:
        host, port = "", 0
    if not host or any(mark in server for mark in "?#"):
        raise Invalid(
            f"a Redis URL is {scheme}://[user:password@]host[:port][/db[/prefix]], with special "
            "characters of user and password as %XX"
        )
    number, _, prefix = path.partition("/")
    if number and not (number.isascii() and number.isdigit()):
        raise Invalid(
            f"{scheme}://.../{path}: a database number comes before the prefix; "
            f"write {scheme}://.../0/{path}"
        )
    name, _, word = user.partition(":")
    credentials = {"username": unquote(name), "password": unquote(word)}
    place = RedisPlace(scheme, host, port, db=int(number or 0), prefix=prefix.strip("/"))
    return place, {option: value for option, value in credentials.items() if value}


def unix_place(rest: str) -> RedisPlace:
    """``/path.sock[?db=0][&prefix=...]`` as a place; the prefix comes last and is taken as it is,
    so that a path may be added to the URL."""
    path, _, query = rest.partition("?")
    head, mark, prefix = query.partition("prefix=")
    rest_of = dict(parse_qsl(head, keep_blank_values=True))
    number = rest_of.pop("db", "0")
    if (
        not path.startswith("/")
        or rest_of
        or (mark and head and head[-1] != "&")
        or not (number.isascii() and number.isdigit())
    ):
        raise Invalid(
            "a URL of a Redis socket is unix:///path/of.sock?db=0&prefix=some/prefix, with the "
            "prefix last; user and password are options"
        )
    return RedisPlace("unix", path=path, db=int(number), prefix=prefix.strip("/"))
