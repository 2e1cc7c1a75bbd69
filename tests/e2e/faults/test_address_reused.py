"""An address goes from one pod to the next, which runs under another service account."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab
from tests.support.lab import pod_yaml
from tests.support.pod_sockets import connect, echo, exchange

pytestmark = [pytest.mark.root, pytest.mark.slow]
IDENTITY = "spiffe://cluster.local/ns/default/sa/"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FaultLab]:
    with fault_lab(tmp_path) as found:
        yield found


def put(lab: FaultLab, name: str, node: int) -> str:
    """A pod, in place of the one before it; its address."""
    mesh = lab.mesh
    mesh.write("one.yaml", pod_yaml(name, node, command="[sleep, infinity]", account=name))
    mesh.wait(lambda: f"default/{name}" in mesh.mesh.topology.pods, f"{name} is made")
    mesh.settle(in_mesh=[f"default/{name}"])
    return mesh.ip(name)


def test_a_client_does_not_inherit_what_its_address_was_allowed(lab: FaultLab) -> None:
    mesh = lab.mesh
    rule = f"{{from: [{{source: {{principals: [{IDENTITY.removeprefix('spiffe://')}heard]}}}}]}}"
    mesh.policy("only-one", f"{{action: ALLOW, rules: [{rule}]}}")
    with echo(mesh, "server", 7000):
        address = put(lab, "heard", 1)
        with connect(mesh, "heard", lab.server) as allowed:
            assert exchange(allowed, b"allowed") == b"allowed"
        assert put(lab, "heir", 1) == address
        log = mesh.access_log_of("server")
        with connect(mesh, "heir", lab.server) as refused, pytest.raises(ConnectionError):
            exchange(refused, b"refused")
        line = log.line(lambda line: line.inbound and line["src.workload"] == "heir")
        assert line["src.identity"] == f"{IDENTITY}heir"
        assert "default/only-one" in line["verdict"]
        assert put(lab, "heard", 1) == address
        with connect(mesh, "heard", lab.server) as again:
            assert exchange(again, b"again") == b"again"


def test_a_client_never_takes_the_next_server_for_the_one_before(lab: FaultLab) -> None:
    mesh = lab.mesh
    address = put(lab, "before", 2)
    with echo(mesh, "before", 7000):
        held = connect(mesh, "client", (address, 7000))
        with held:
            assert exchange(held, b"held") == b"held"
            assert put(lab, "after", 2) == address
            with echo(mesh, "after", 7000):
                log = mesh.access_log_of("client")
                with connect(mesh, "client", (address, 7000)) as sock:
                    assert exchange(sock, b"new") == b"new"
                line = log.line(lambda line: line["dst.workload"] == "after")
                assert line["dst.identity"] == f"{IDENTITY}after"
                with pytest.raises(ConnectionError):
                    exchange(held, b"to whom?")
