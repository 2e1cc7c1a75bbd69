"""A peer vanishes without FIN: its node is cut off the network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab, unreachable
from tests.support.pod_sockets import connect, echo, exchange, is_served, steady
from tests.support.ztunnel_processes import most_descriptors, open_descriptors

pytestmark = [pytest.mark.root, pytest.mark.slow]

QUICK = {
    "ZTUNNEL_PING_INTERVAL": "1s",
    "ZTUNNEL_PING_TIMEOUT": "4s",
    "ZTUNNEL_CONNECT_TIMEOUT": "3s",
}


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[FaultLab]:
    with fault_lab(tmp_path, QUICK, pods={"neighbour": 1}) as lab:
        yield lab


def test_the_tunnel_is_found_dead_its_flows_end_and_the_next_ones_get_a_new_one(
    quick: FaultLab,
) -> None:
    mesh = quick.mesh
    near_by = (mesh.ip("neighbour"), 7000)
    with echo(mesh, "server", 7000), echo(mesh, "neighbour", 7000):
        held = [connect(mesh, "client", quick.server) for _ in range(10)]
        for sock in held:
            exchange(sock, b"before")
        with steady(mesh, "client", near_by, 10) as others:
            with unreachable(mesh, "node-2"):
                words = "connection complete.*error=.*did not answer a PING for 4s"
                mesh.wait(lambda: quick.near.log.count(words) == 10, "all flows have ended")
                mesh.wait(lambda: quick.far.log.count(words) == 10, "on the other side, too")
                for sock in held:
                    with pytest.raises(ConnectionError):
                        exchange(sock, b"after")
                with connect(mesh, "client", quick.server) as vain, pytest.raises(ConnectionError):
                    exchange(vain, b"while it is away")
                quick.near.log.says(r"connection complete.*error=.connect to .*:15008")
                mesh.wait(
                    lambda: quick.near.metric("ztunnel_tunnels", direction="outbound") <= 1,
                    "no tunnel is left, but perhaps the neighbour's",
                )
            before = others.mark()
            mesh.wait(lambda: others.all_went_on(before), "others have gone on all the time")
        mesh.wait(
            lambda: is_served(mesh, "client", quick.server),
            "the next connection gets a new tunnel",
        )


def test_connections_that_are_opened_meanwhile_do_not_wait_for_the_old_tunnels_end(
    tmp_path: Path,
) -> None:
    patient = {**QUICK, "ZTUNNEL_PING_TIMEOUT": "60s"}
    with fault_lab(tmp_path, patient) as lab, echo(lab.mesh, "server", 7000):
        mesh = lab.mesh
        with connect(mesh, "client", lab.server) as first:
            exchange(first, b"there is a tunnel")
        with unreachable(mesh, "node-2"):
            words = r"connection complete.*error=.connect to .*:15008"

            def noticed() -> bool:
                # The first ones still go into the old tunnel; later ones find it suspicious.
                is_served(mesh, "client", lab.server, seconds=1)
                return lab.near.log.count(words) > 0

            mesh.wait(noticed, "a new tunnel is tried while the old one is in doubt")


def test_nothing_is_left_of_a_peer_that_vanished(quick: FaultLab) -> None:
    mesh = quick.mesh
    with echo(mesh, "server", 7000):
        (worker,) = quick.near.workers
        with connect(mesh, "client", quick.server) as first:
            exchange(first, b"all that is made once is there")
        before = most_descriptors(mesh, worker)[worker]
        held = [connect(mesh, "client", quick.server) for _ in range(20)]
        for sock in held:
            exchange(sock, b"before")
        with unreachable(mesh, "node-2"):
            mesh.wait(
                lambda: open_descriptors(worker) <= before,
                f"there are as many descriptors as before ({before})",
            )
