"""Pods leave the mesh while everybody goes on making connections, and some hold theirs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemonset.local.mesh_programs import agent_name
from tests.support.faults import FaultLab, fault_lab
from tests.support.mesh_lab import MeshLab, namespace_yaml
from tests.support.pod_sockets import Address, connect, echo, exchange

pytestmark = [pytest.mark.root, pytest.mark.slow]

PIECE = bytes(range(200))


class Requests:
    """One short connection after the other, from one pod.

    Attributes:
        answered: how many have had their answer.
        problems: of those that have not.
    """

    def __init__(self, mesh: MeshLab, pod: str, address: Address) -> None:
        self.answered = 0
        self.problems: list[str] = []
        self._mesh = mesh
        self._pod = pod
        self._address = address
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"requests of {pod}")
        self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            try:
                with connect(self._mesh, self._pod, self._address) as sock:
                    assert exchange(sock, PIECE) == PIECE
                self.answered += 1
            except OSError as error:
                self.problems.append(f"{self._pod} after {self.answered} answers: {error!r}")

    def stop(self) -> None:
        self._ending = True
        self._thread.join()


@contextmanager
def requests(mesh: MeshLab, *ends: tuple[str, Address]) -> Iterator[list[Requests]]:
    """From each of these pods to its address; at the end none may have failed."""
    running = [Requests(mesh, pod, address) for pod, address in ends]
    try:
        yield running
    finally:
        for one in running:
            one.stop()
    problems = [problem for one in running for problem in one.problems[:5]]
    assert not problems, f"{problems}{mesh.logs()}"


def test_no_request_is_lost_by_those_that_leave_nor_by_their_peers(tmp_path: Path) -> None:
    pods = {"stays/near": 1, "stays/far": 2, "outside/stranger": 1}
    with fault_lab(tmp_path, pods=pods) as lab:
        mesh = lab.mesh
        mesh.enrol("stays")
        far = (mesh.ip("stays/far"), 7000)
        ends = [
            ("client", lab.server),  # both leave
            ("stays/near", lab.server),
            ("stays/far", lab.server),  # on one node
            ("client", far),
            ("outside/stranger", lab.server),
        ]
        with (
            echo(mesh, "server", 7000),
            echo(mesh, "stays/far", 7000),
            requests(mesh, *ends) as running,
        ):

            def all_go_on() -> None:
                since = [one.answered for one in running]
                mesh.wait(
                    lambda: all(
                        one.problems or one.answered > before + 20
                        for one, before in zip(running, since, strict=True)
                    ),
                    "all are answered",
                )

            all_go_on()
            mesh.release()
            all_go_on()


def test_what_does_not_end_is_cut_after_a_while_and_the_log_says_so(lab: FaultLab) -> None:
    mesh = lab.mesh
    running = mesh.mesh.processes.running
    agents = [running[agent_name(node)].program.log for node in ("node-1", "node-2")]
    with echo(mesh, "server", 7000), connect(mesh, "client", lab.server) as held:
        exchange(held, b"before")
        mesh.write("namespace-default.yaml", namespace_yaml("default", in_mesh=False))
        mesh.wait(lambda: "default/server" not in mesh.observer.captured(), "it begins to leave")
        assert exchange(held, b"it may still end by itself") == b"it may still end by itself"
        mesh.settle(outside=["default/client", "default/server"])
        # Both pods leave at one moment: whose agent is first cuts, and then there is nothing left.
        words = "leaves the mesh: 1 connections that began before and have not ended"
        mesh.wait(lambda: any(words in log.read_text() for log in agents), "an agent says so")
        cut = "connection complete.*the pod left the mesh"  # by who comes first; the other sees it
        mesh.wait(
            lambda: any(one.log.count(cut) for one in (lab.near, lab.far)), "and so does a ztunnel"
        )
        with pytest.raises(ConnectionError):
            exchange(held, b"after")
        with connect(mesh, "client", lab.server) as direct:
            assert exchange(direct, b"and new ones are made") == b"and new ones are made"
