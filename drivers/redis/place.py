"""Where the Redis driver stores: the server, the database and the prefix that a URL names."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from tensorstash.driver import check_key
from tensorstash.drivers.redis.keys import is_ours
from tensorstash.errors import Invalid

_PORT = 6379


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
