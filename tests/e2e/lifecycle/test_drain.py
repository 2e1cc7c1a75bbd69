"""SIGTERM, SIGINT and what becomes of live connections."""

import os
import signal
from pathlib import Path

import pytest

from daemonset.local.mesh_programs import ztunnel_name
from tests.support.faults import FaultLab, fault_lab
from tests.support.pod_sockets import connect, echo, exchange

pytestmark = [pytest.mark.root, pytest.mark.slow]


def _send(lab: FaultLab, number: int) -> None:
    """A signal to the near ztunnel, which is not started again."""
    running = lab.mesh.mesh.processes.running[ztunnel_name("node-1")]
    running.stopped = True
    os.kill(lab.near.supervisor, number)


def _status(lab: FaultLab) -> int | None:
    process = lab.mesh.mesh.processes.running[ztunnel_name("node-1")].process
    assert process is not None
    return process.poll()


def _has_ended(lab: FaultLab) -> bool:
    return _status(lab) is not None


def _is_refused(lab: FaultLab) -> bool:
    """A connection from client to server."""
    try:
        with connect(lab.mesh, "client", lab.server) as sock:
            exchange(sock, b"?")
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_live_connections_may_end_and_nothing_new_is_taken(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        fault_lab(tmp_path, {"CONNECTION_TERMINATION_DEADLINE": "60s"}) as lab,
        echo(lab.mesh, "server", 7000),
        echo(lab.mesh, "client", 7000),
    ):
        out = [connect(lab.mesh, "client", lab.server) for _ in range(5)]
        into = [connect(lab.mesh, "server", (lab.mesh.ip("client"), 7000)) for _ in range(5)]
        for sock in (*out, *into):
            exchange(sock, b"before")
        _send(lab, number)
        lab.near.log.says("draining: connections have 60s to end")
        lab.mesh.wait(lambda: _is_refused(lab), "nothing new is taken on")
        assert not lab.near.ready()
        for sock in (*out, *into):
            assert exchange(sock, b"goes on") == b"goes on"
        assert not _has_ended(lab)
        for sock in (*out, *into):
            sock.close()
        lab.mesh.wait(lambda: _has_ended(lab), "it ends with the last connection, long before")
        assert _status(lab) == 0
        assert lab.near.log.count("are cut") == 0
        # Others of a byte each may have come and gone before the worker heard of the drain.
        assert lab.near.log.count("connection complete.*bytes_sent=13 bytes_recv=13 ") == 10
        assert lab.near.log.count("connection complete.*error=") == 0


def test_the_deadline_cuts_what_is_left(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        held = [connect(lab.mesh, "client", lab.server) for _ in range(5)]
        for sock in held:
            exchange(sock, b"before")
        _send(lab, signal.SIGTERM)
        lab.near.log.says("the time to drain is over, 5 connections are cut")
        lab.mesh.wait(lambda: _has_ended(lab), "it has ended")
        assert _status(lab) == 0
        for sock in held:
            with pytest.raises(ConnectionError):
                exchange(sock, b"after")
        words = 'connection complete.*error="connection closed due to connection drain"'
        assert lab.near.log.count(words) == 5
        lab.mesh.wait(
            lambda: lab.far.log.count("connection complete") == 5, "the other side has seen it"
        )


def test_sigint_during_the_drain_ends_at_once_and_sigterm_does_not(tmp_path: Path) -> None:
    with (
        fault_lab(tmp_path, {"CONNECTION_TERMINATION_DEADLINE": "60s"}) as lab,
        echo(lab.mesh, "server", 7000),
        connect(lab.mesh, "client", lab.server) as held,
    ):
        exchange(held, b"before")
        _send(lab, signal.SIGTERM)
        lab.near.log.says("draining")
        os.kill(lab.near.supervisor, signal.SIGTERM)
        assert exchange(held, b"goes on") == b"goes on"
        os.kill(lab.near.supervisor, signal.SIGINT)
        lab.mesh.wait(lambda: _has_ended(lab), "it has ended")
        assert _status(lab) == 0
        lab.near.log.says("interrupted while draining: what is left is cut")
        with pytest.raises(ConnectionError):
            exchange(held, b"after")


def test_a_peer_that_drains_says_so_and_the_next_connection_gets_another_tunnel(
    tmp_path: Path,
) -> None:
    with (
        fault_lab(tmp_path, {"CONNECTION_TERMINATION_DEADLINE": "60s"}) as lab,
        echo(lab.mesh, "server", 7000),
    ):
        held = connect(lab.mesh, "client", lab.server)
        exchange(held, b"before")
        running = lab.mesh.mesh.processes.running[ztunnel_name("node-2")]
        draining, process = lab.far.supervisor, running.process
        os.kill(draining, signal.SIGTERM)
        lab.far.log.says("draining")
        # As a DaemonSet's rolling update with surge does it: the old one drains beside a new one.
        lab.mesh.wait(lambda: _is_refused(lab), "it takes nothing new")
        assert not lab.far.ready()
        assert exchange(held, b"goes on") == b"goes on"
        held.close()
        assert process is not None
        lab.mesh.wait(lambda: lab.far.supervisor != draining, "it has ended, and is started again")
        lab.mesh.wait(lab.far.ready, "it is ready")
        with connect(lab.mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
