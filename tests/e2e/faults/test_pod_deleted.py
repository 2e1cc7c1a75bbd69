"""A pod is deleted while it has connections."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab
from tests.support.lab import pod_yaml
from tests.support.pod_sockets import connect, echo, exchange, steady
from tests.support.ztunnel_processes import most_descriptors, open_descriptors

pytestmark = [pytest.mark.root, pytest.mark.slow]

QUICK = {"ZTUNNEL_PING_INTERVAL": "1s", "ZTUNNEL_PING_TIMEOUT": "3s"}
HELD = 10


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FaultLab]:
    with fault_lab(tmp_path, QUICK) as found:
        yield found


@pytest.mark.parametrize("side", ["client", "server"])
def test_its_connections_end_on_both_sides_and_all_others_go_on(lab: FaultLab, side: str) -> None:
    mesh = lab.mesh
    number = 1 if side == "client" else 2
    goes = pod_yaml("goes", number, command="[sleep, infinity]", account="goes")
    local, remote = (lab.near, lab.far) if side == "client" else (lab.far, lab.near)
    (worker,) = local.workers
    with echo(mesh, "server", 7000), steady(mesh, "client", lab.server, 10) as others:
        mesh.wait(lambda: others.all_went_on([0] * 10), "all others are there")
        before = most_descriptors(mesh, worker)[worker]
        mesh.write("goes.yaml", goes)
        mesh.wait(lambda: "default/goes" in mesh.mesh.topology.pods, "the pod is made")
        mesh.settle(in_mesh=["default/goes"])
        with echo(mesh, "goes", 7000):
            ends = ("goes", lab.server) if side == "client" else ("client", (mesh.ip("goes"), 7000))
            held = [connect(mesh, *ends) for _ in range(HELD)]
            for sock in held:
                exchange(sock, b"before")
            mesh.remove("goes.yaml")
            local.log.says("pod default/goes is no longer served: the pod left the mesh")
            words = f'connection complete.*{"src" if side == "client" else "dst"}.workload="goes"'
            # Its link goes with it: nothing reaches the other end, which finds out by PING.
            mesh.wait(lambda: local.log.count(words) == HELD, "their end is written down there")
            mesh.wait(lambda: remote.log.count(words) == HELD, "and at the other end")
            assert local.log.count(f"{words}.*error=") == HELD, "as cut, not as whole"
            for sock in held:
                if side == "server":
                    with pytest.raises(ConnectionError):
                        exchange(sock, b"after")
        marked = others.mark()
        mesh.wait(lambda: others.all_went_on(marked), "all others go on")
        # What was made for the others meanwhile: sockets made ahead of need, TLS contexts.
        ahead = 16 + 2
        mesh.wait(
            lambda: open_descriptors(worker) <= before + ahead,
            f"nothing of the pod is left in the worker (before: {before})",
        )


def test_pods_that_come_and_go_leave_nothing_behind(lab: FaultLab) -> None:
    mesh = lab.mesh
    goes = pod_yaml("goes", 2, command="[sleep, infinity]", account="goes")
    processes = (*lab.far.workers, lab.far.control)
    counted: list[list[int]] = []
    for _ in range(4):
        mesh.write("goes.yaml", goes)
        mesh.wait(lambda: "default/goes" in mesh.mesh.topology.pods, "the pod is made")
        mesh.settle(in_mesh=["default/goes"])
        with (
            echo(mesh, "goes", 7000),
            connect(mesh, "client", (mesh.ip("goes"), 7000)) as sock,
        ):
            assert exchange(sock, b"it works") == b"it works"
        mesh.remove("goes.yaml")
        mesh.wait(lambda: "default/goes" not in mesh.observer.captured(), "the agent lets go")
        counted.append([open_descriptors(pid) for pid in processes])
    # What the pods that stay need is not all there from the first moment on.
    begun = dict(zip(processes, map(max, counted[0], counted[1]), strict=True))
    mesh.wait(
        lambda: all(open_descriptors(pid) <= count for pid, count in begun.items()),
        f"workers and control process have as many descriptors as at the beginning ({counted})",
    )
