"""Free loopback ports."""

from __future__ import annotations

import itertools
import os
import socket

HOST = "127.0.0.1"

# Below the ports that the kernel gives to outgoing connections. Every process searches a block of
# its own, as pytest-xdist's workers start their servers at the same moment.
_FIRST, _BLOCK, _BLOCKS = 20_000, 32, 380
_next: dict[int, itertools.count[int]] = {}


def free_port() -> int:
    """A loopback port that nothing listens on; no two calls of a process give the same one."""
    numbers = _next.setdefault(os.getpid(), itertools.count((os.getpid() % _BLOCKS) * _BLOCK))
    for number in itertools.islice(numbers, _BLOCK * _BLOCKS):
        port = _FIRST + number % (_BLOCK * _BLOCKS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {_FIRST} and {_FIRST + _BLOCK * _BLOCKS}")


def listening(port: int) -> bool:
    """Whether something accepts connections on the loopback port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
