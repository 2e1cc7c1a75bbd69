"""15000: what a ztunnel tells of itself, to its own machine alone."""

import json
import socket

import pytest

from daemonset.local.mesh_programs import ztunnel_name
from tests.support.faults import FaultLab
from tests.support.pod_sockets import connect, echo, exchange

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLIENT = "spiffe://cluster.local/ns/default/sa/client"


def test_it_shows_the_mesh_connections_and_certificates(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000), connect(lab.mesh, "client", lab.server) as held:
        exchange(held, b"a live connection")
        dump = json.loads(lab.near.get(15000, "/config_dump")[1])
        assert {"workloads", "services", "policies", "certificates", "version", "config"} <= set(
            dump
        )
        assert {"client", "server"} <= {workload["name"] for workload in dump["workloads"]}
        certificate = next(one for one in dump["certificates"] if one["identity"] == CLIENT)
        assert certificate["certChain"]
        assert "PRIVATE KEY" not in json.dumps(dump)
        (state,) = dump["workloadState"].values()
        assert state["state"] == "Up"
        (outbound,) = state["connections"]["outbound"]
        assert outbound["originalDst"] == f"{lab.server[0]}:7000"
        connections = json.loads(lab.near.get(15000, "/connections")[1])
        assert str(lab.server[0]) in json.dumps(connections)
        assert CLIENT in lab.near.get(15000, "/certificates")[1]


def test_the_log_level_can_be_seen_and_changed_in_all_processes(lab: FaultLab) -> None:
    assert "info" in lab.near.request("POST", 15000, "/logging")[1]
    assert lab.near.request("POST", 15000, "/logging?level=debug")[0] == 200
    with echo(lab.mesh, "server", 7000):

        def opens_loudly() -> bool:
            with connect(lab.mesh, "client", lab.server) as one:
                exchange(one, b"a connection")
            return lab.near.log.count("debug\taccess\tconnection opened") > 0

        lab.mesh.wait(opens_loudly, "workers have heard of it")
        assert lab.near.request("POST", 15000, "/logging?level=ztunnel=loud")[0] == 400
        assert lab.near.request("POST", 15000, "/logging?reset")[0] == 200

        def opens_quietly() -> bool:
            opened = lab.near.log.count("connection opened")
            complete = lab.near.log.count("info\taccess\tconnection complete")
            with connect(lab.mesh, "client", lab.server) as another:
                exchange(another, b"another one")
            lab.mesh.wait(
                lambda: lab.near.log.count("info\taccess\tconnection complete") > complete,
                "its end is written down",
            )
            return lab.near.log.count("connection opened") == opened

        lab.mesh.wait(opens_quietly, "workers have heard of it, too")


def test_it_is_there_for_its_own_machine_alone(lab: FaultLab) -> None:
    node = lab.mesh.mesh.topology.nodes["node-1"]
    own = lab.mesh.mesh.network.nodes["node-1"]
    for address in node.addresses:
        with own.network.socket(*_tcp(str(address))) as sock:
            sock.settimeout(5)
            with pytest.raises(ConnectionRefusedError):
                sock.connect((str(address), 15000))
    status, _ = lab.near.request("GET", 15000, "/config_dump", host="rebound.example.org")
    assert status in (400, 403, 421), "a web page must not get in by a name of its own"


def _tcp(address: str) -> tuple[int, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM


def test_quitquitquit_ends_it_as_sigterm_does(lab: FaultLab) -> None:
    assert lab.near.request("GET", 15000, "/quitquitquit")[0] == 405
    old = lab.near.supervisor
    running = lab.mesh.mesh.processes.running[ztunnel_name("node-1")]
    assert lab.near.request("POST", 15000, "/quitquitquit")[0] == 200
    lab.near.log.says("draining: connections have 2s to end")
    lab.mesh.wait(lambda: lab.near.supervisor != old, "it has ended, and is started again")
    assert running.restarts == 1
    assert any("ztunnel on node-1 ended with status 0" in said for said in lab.mesh.reports)
