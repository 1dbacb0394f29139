"""Redis and Valkey servers: password, ACL users, TLS, unix socket, persistence, memory limit."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.certificates import Certificates
from tests.servers.missing import program
from tests.servers.port import HOST, free_port
from tests.servers.process import Process, new_folder

DEBIAN = "apt-get install redis-server redis-tools"


@dataclass(frozen=True)
class Redis:
    """A running server. ``url`` has the password of the default user in it, if there is one."""

    port: int
    process: Process
    password: str | None = field(default=None, repr=False)
    certificates: Certificates | None = None

    @property
    def socket(self) -> Path:
        """The server's unix socket."""
        return self.process.folder / "redis.sock"

    @property
    def url(self) -> str:
        """``redis://`` or, with certificates, ``rediss://``; database 0."""
        user = f":{self.password}@" if self.password else ""
        if self.certificates is not None:
            return f"rediss://{user}localhost:{self.port}/0"
        return f"redis://{user}{HOST}:{self.port}/0"

    @property
    def options(self) -> dict[str, Any]:
        """What our driver needs beside :attr:`address`."""
        options: dict[str, Any] = {}
        if self.password:
            options["password"] = self.password
        if self.certificates is not None:
            options["ca_certs"] = str(self.certificates.authority)
        return options

    @property
    def address(self) -> str:
        """The URL without the password."""
        if self.certificates is not None:
            return f"rediss://localhost:{self.port}/0"
        return f"redis://{HOST}:{self.port}/0"

    def fresh(self) -> str:
        """A URL of this server (without the password) that no other test uses."""
        return f"{self.address}/t-{uuid.uuid4().hex[:16]}"

    def client(self, **options: Any) -> Any:
        """A redis-py client that tries everything once."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        if self.certificates is not None:
            options.setdefault("ssl_ca_certs", str(self.certificates.authority))
        given = {"password": self.password, "retry": Retry(NoBackoff(), 0)}
        return redis.Redis.from_url(self.address, **(given | options))

    def close(self) -> None:
        """Stop the server."""
        self.process.close()


def redis(
    *,
    binary: str | None = None,
    password: str | None = None,
    users: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    certificates: Certificates | None = None,
) -> Redis:
    """Debian's redis-server (or the program ``binary``) with a configuration of its own.

    ``users`` are ACL rules as in a configuration file (``alice on >pw ~t:* +@all``), ``settings``
    override the rest: ``{"appendonly": "yes", "maxmemory": "64mb"}``. Nothing is kept on disk
    unless they say so. With ``certificates`` the port speaks TLS only.
    """
    binary = binary or program("redis-server", DEBIAN)
    folder, port = new_folder(), free_port()
    lines = {
        "bind": HOST,
        "port": str(port),
        "unixsocket": f"{folder}/redis.sock",
        "unixsocketperm": "700",
        "dir": str(folder),
        "daemonize": "no",
        "save": '""',
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "repl-diskless-sync-delay": "0",
    }
    if certificates is not None:
        lines |= {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": str(certificates.certificate),
            "tls-key-file": str(certificates.key),
            "tls-ca-cert-file": str(certificates.authority),
            "tls-auth-clients": "no",
        }
    if password:
        lines["requirepass"] = password
    lines |= settings or {}
    text = [f"{name} {value}" for name, value in lines.items()]
    configuration = folder / "redis.conf"
    configuration.write_text("\n".join([*text, *(f"user {user}" for user in users), ""]))
    configuration.chmod(0o600)
    ping = _pings(folder / "redis.sock")
    process = Process([binary, configuration], ping, folder=folder)
    return Redis(port, process, password, certificates)


def _pings(path: Path) -> Callable[[], bool]:
    """Whether the server behind the unix socket has read its data and serves: PING in the
    protocol itself, as no client library need be installed to start a server."""

    def ready() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    return ready
