"""Ports of this machine for programs that must be told theirs."""

import contextlib
import os
import random
import socket

_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000 + _PROCESS % 8, 32_000, 8)
"""Tests that run beside these in another process have others."""


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody has now, nor gets from the kernel for a connection before who
    asked listens there: they are below those that Linux gives."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as trying, contextlib.suppress(OSError):
            trying.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            return found
    raise OSError(f"no {number} ports are free between {_PORTS.start} and {_PORTS.stop}")
