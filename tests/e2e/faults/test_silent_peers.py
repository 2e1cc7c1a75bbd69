"""Peers that connect and stay silent: in the TLS handshake, after it, and on the client's side."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab
from tests.support.lab import pod_yaml
from tests.support.pod_sockets import (
    Steady,
    connect,
    echo,
    exchange,
    is_served,
    listen,
    steady,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]

TIMEOUT = 2.0

SILENT = pod_yaml(
    "silent",
    2,
    namespace="outside",
    command="[sleep, infinity]",
    labels="{networking.istio.io/tunnel: http}",  # says that it has a proxy of its own
)


@contextmanager
def _steady(lab: FaultLab) -> Iterator[Steady]:
    """Twenty connections, once there are certificates and a tunnel: on a machine that is busy these
    may take longer than `TIMEOUT`."""
    lab.mesh.wait(lambda: is_served(lab.mesh, "client", lab.server), "the mesh serves")
    with steady(lab.mesh, "client", lab.server, 20) as flows:
        yield flows


def test_a_peer_that_accepts_and_stays_silent_is_given_up_in_time(tmp_path: Path) -> None:
    environment = {"ZTUNNEL_HANDSHAKE_TIMEOUT": f"{TIMEOUT:g}s"}
    with fault_lab(tmp_path, environment, objects=SILENT) as lab:
        mesh = lab.mesh
        peer = mesh.ip("outside/silent")
        listener = listen(mesh, "outside/silent", 15008)
        listener.settimeout(30)
        with echo(mesh, "server", 7000), _steady(lab) as flows:
            started = time.monotonic()
            waiting = [connect(mesh, "client", (peer, 7000)) for _ in range(5)]
            accepted, _address = listener.accept()
            with accepted:
                before = flows.mark()
                mesh.wait(lambda: flows.all_went_on(before, by=20), "all others go on")
                for sock in waiting:
                    with pytest.raises(ConnectionError):
                        exchange(sock, b"anybody there?")
            took = time.monotonic() - started
            assert TIMEOUT * 0.9 < took < TIMEOUT + 20
            words = "access.*the peer stayed silent in the handshake for 2s"
            mesh.wait(lambda: lab.near.log.count(words) == 5, "each is written down")


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01"], ids=["nothing", "half a hello"])
def test_a_client_that_never_says_anything_is_given_up_in_time(tmp_path: Path, says: bytes) -> None:
    environment = {"ZTUNNEL_HANDSHAKE_TIMEOUT": f"{TIMEOUT:g}s"}
    with fault_lab(tmp_path, environment, pods={"outside/stranger": 1}) as lab:
        mesh = lab.mesh
        with echo(mesh, "server", 7000), _steady(lab) as flows:
            silent = [
                connect(mesh, "outside/stranger", (mesh.ip("server"), 15008)) for _ in range(50)
            ]
            for sock in silent:
                sock.sendall(says)
            before = flows.mark()
            mesh.wait(lambda: flows.all_went_on(before, by=20), "all others go on")
            for sock in silent:
                assert _is_closed(sock)
            mesh.wait(
                lambda: (
                    lab.far.log.count("the peer stayed silent in the TLS handshake for 2s") == 50
                ),
                "each is written down",
            )


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True
