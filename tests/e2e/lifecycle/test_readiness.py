"""15021: ready is who knows the mesh, serves the node's pods, and has asked for certificates."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemonset.local.mesh_programs import CONTROL_PLANE, agent_name
from tests.support.fake_ca import FakeCa, serving
from tests.support.faults import FaultLab, fault_lab
from tests.support.pod_sockets import connect, echo, exchange

pytestmark = [pytest.mark.root, pytest.mark.slow]


@contextmanager
def _stopped(lab: FaultLab, name: str) -> Iterator[None]:
    """A part of the mesh does not answer, for as long as the block lasts."""
    process = lab.mesh.mesh.processes.running[name].process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _pending(lab: FaultLab) -> str:
    """What readiness says; empty while nobody answers."""
    try:
        return lab.near.get(15021, "/healthz/ready")[1]
    except OSError:
        return ""


def _restart(lab: FaultLab) -> None:
    old = lab.near.kill_all()
    lab.mesh.wait(lambda: lab.near.supervisor not in old, "it is started again")


@pytest.mark.parametrize(
    ("part", "task"),
    [(CONTROL_PLANE, "state manager"), (agent_name("node-1"), "workload proxy manager")],
)
def test_it_waits_for_the_mesh_and_for_the_pods(lab: FaultLab, part: str, task: str) -> None:
    with _stopped(lab, part):
        _restart(lab)
        lab.mesh.wait(lambda: task in _pending(lab), f"it says that it waits for {task}")
        status, text = lab.near.get(15021, "/healthz/ready")
        assert status == 500
        assert text.startswith("not ready, pending: ")
    lab.mesh.wait(lab.near.ready, "it is ready")
    assert _pending(lab) == "ready\n"
    with echo(lab.mesh, "server", 7000), connect(lab.mesh, "client", lab.server) as sock:
        assert exchange(sock, b"it works") == b"it works"


def test_it_waits_for_certificates_but_not_for_ever(tmp_path: Path) -> None:
    ca = FakeCa()
    with fault_lab(tmp_path, ca.environment) as lab, serving(lab.mesh, ca):
        ca.open.clear()
        started = time.monotonic()
        _restart(lab)
        lab.mesh.wait(lambda: "pending: certificates\n" in _pending(lab), "it waits for the CA")
        lab.mesh.wait(lab.near.ready, "it waits no longer")
        assert time.monotonic() - started > 10
        # The request itself may take as long as readiness waits for it.
        lab.near.log.says("(the CA has not answered within 10s for|no certificate for) .*sa/client")


def test_it_is_ready_as_soon_as_the_certificates_are_there(tmp_path: Path) -> None:
    ca = FakeCa()
    with fault_lab(tmp_path, ca.environment) as lab, serving(lab.mesh, ca):
        ca.open.clear()
        _restart(lab)
        lab.mesh.wait(lambda: "pending: certificates\n" in _pending(lab), "it waits for the CA")
        ca.open.set()
        lab.mesh.wait(lab.near.ready, "it is ready")
        assert lab.near.log.count("readiness waits no longer") == 0


def test_other_methods_and_paths(lab: FaultLab) -> None:
    assert lab.near.get(15021, "/healthz/elsewhere")[0] == 404
    assert lab.near.request("POST", 15021, "/healthz/ready")[0] == 405
