"""The whole of a ztunnel is killed and started again, below a node agent that goes on."""

import pytest

from tests.support.faults import FaultLab
from tests.support.pod_sockets import connect, echo, exchange, start_connect
from tests.support.ztunnel_processes import ZtunnelProcesses

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("side", ["near", "far"])
def test_a_ztunnel_that_is_killed_comes_back_with_all_its_pods(lab: FaultLab, side: str) -> None:
    ztunnel: ZtunnelProcesses = getattr(lab, side)
    with echo(lab.mesh, "server", 7000):
        held = connect(lab.mesh, "client", lab.server)
        exchange(held, b"before")
        everybody = ztunnel.kill_all()
        with held, pytest.raises(ConnectionError):
            exchange(held, b"after")
        with start_connect(lab.mesh, "client", lab.server) as meanwhile:
            # Captured or dead: never in the clear, for the destination saw what came.
            meanwhile.settimeout(30)
            # (An end before anything was sent is no reset.)
            with pytest.raises(OSError, match=r"refused|reset|ended after 0 of"):
                exchange(meanwhile, b"in the clear")
        lab.mesh.wait(lambda: ztunnel.supervisor not in everybody, "it is started again")
        lab.mesh.wait(ztunnel.ready, "it is ready")
        ztunnel.log.says("ZDS snapshot applied: 1 pods")
        with connect(lab.mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
        assert any(
            f"ztunnel on {ztunnel.node} ended by SIGKILL" in said for said in lab.mesh.reports
        )


def test_when_only_the_supervisor_is_killed_the_others_end_and_all_come_back(
    lab: FaultLab,
) -> None:
    with echo(lab.mesh, "server", 7000):
        old = [lab.near.control, *lab.near.workers]
        supervisor = lab.near.supervisor
        lab.near.kill(supervisor)
        lab.mesh.wait(lambda: lab.near.supervisor != supervisor, "it is started again")
        lab.mesh.wait(lab.near.ready, "it is ready")
        assert not set(old) & {lab.near.control, *lab.near.workers}
        with connect(lab.mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
