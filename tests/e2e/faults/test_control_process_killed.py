"""The control process is killed: traffic does not notice, a successor takes everything over."""

import os
import signal
import socket

import pytest

from tests.support.faults import FaultLab
from tests.support.pod_sockets import Steady, connect, echo, exchange, steady
from tests.support.ztunnel_processes import (
    ZtunnelProcesses,
    most_descriptors,
    open_descriptors,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]


def _kill_control(lab: FaultLab, ztunnel: ZtunnelProcesses) -> None:
    """Returns when there is a successor, and it is ready."""
    victim = ztunnel.control
    ztunnel.kill(victim)
    lab.mesh.wait(lambda: ztunnel.control not in (0, victim), "there is a new control process")
    lab.mesh.wait(ztunnel.ready, "it is ready")


def _all_go_on(lab: FaultLab, flows: Steady) -> None:
    before = flows.mark()
    lab.mesh.wait(lambda: flows.all_went_on(before), "all flows go on")


def test_connections_go_on_and_new_ones_are_made_meanwhile(lab: FaultLab) -> None:
    with (
        echo(lab.mesh, "server", 7000),
        steady(lab.mesh, "client", lab.server, 20) as flows,
    ):
        for ztunnel in (lab.near, lab.far):
            workers = ztunnel.workers
            os.kill(ztunnel.supervisor, signal.SIGSTOP)  # so that no successor is started yet
            ztunnel.kill(ztunnel.control)
            _all_go_on(lab, flows)
            with connect(lab.mesh, "client", lab.server) as new:
                assert exchange(new, b"new") == b"new"
            os.kill(ztunnel.supervisor, signal.SIGCONT)
            lab.mesh.wait(ztunnel.ready, "there is a successor, and it is ready")
            _all_go_on(lab, flows)
            assert ztunnel.workers == workers, "the workers are the same"
            ztunnel.log.says(r"control ended \(signal SIGKILL\).*starting it again")
            ztunnel.log.says("the control process is gone; what is known goes on being served")
            ztunnel.log.says(r"pod default/\w+ is served by worker 0 already")
            assert ztunnel.log.count("joined again") == 0, "a fresh channel is not replaced again"


def test_what_changes_afterwards_arrives(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        held = connect(lab.mesh, "client", lab.server)
        exchange(held, b"before")
        _kill_control(lab, lab.far)
        rule = "{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}"
        lab.mesh.policy("only-nobody", f"{{action: ALLOW, rules: [{rule}]}}")
        with held, pytest.raises((ConnectionError, socket.timeout)) as cut:
            held.settimeout(10)
            exchange(held, b"after")
        assert isinstance(cut.value, ConnectionError), "the change closes the live connection"
        lab.far.log.says("closed due to policy change.*default/only-nobody")


def test_a_pod_that_left_meanwhile_is_let_go_by_the_workers(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        (worker,) = lab.far.workers
        os.kill(lab.far.supervisor, signal.SIGSTOP)
        lab.far.kill(lab.far.control)
        lab.mesh.write(
            "namespace-default.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {}}\n",
        )
        lab.mesh.wait(
            lambda: "default/server" not in lab.mesh.observer.captured(), "the agent lets go"
        )
        os.kill(lab.far.supervisor, signal.SIGCONT)
        lab.far.log.says(r"pod default/server is no longer served: the pod left the mesh")
        lab.mesh.settle(outside=["default/client", "default/server"])
        assert lab.far.workers == [worker]
        with connect(lab.mesh, "client", lab.server) as plain:
            assert exchange(plain, b"plain") == b"plain"


def test_many_successors_leave_no_descriptor_behind(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000):
        with connect(lab.mesh, "client", lab.server) as first:
            exchange(first, b"first")
        _kill_control(lab, lab.near)
        (worker,) = lab.near.workers
        control = lab.near.control
        before = most_descriptors(lab.mesh, worker, lab.near.supervisor, control)
        of_control = before.pop(control)
        for _ in range(3):
            _kill_control(lab, lab.near)
        lab.mesh.wait(
            lambda: all(open_descriptors(pid) <= count for pid, count in before.items()),
            f"worker and supervisor have no more descriptors than before ({before})",
        )
        lab.mesh.wait(
            lambda: open_descriptors(lab.near.control) <= of_control,
            f"the control process has no more descriptors than its predecessor ({of_control})",
        )
