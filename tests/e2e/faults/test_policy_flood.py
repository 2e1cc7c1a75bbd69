"""Thousands of policy changes while traffic flows."""

import pytest

from tests.support.faults import FaultLab
from tests.support.pod_sockets import Steady, connect, echo, exchange, steady
from tests.support.ztunnel_processes import resident_kib

pytestmark = [pytest.mark.root, pytest.mark.slow]

POLICIES = 200
CHANGES = 15


def _policies(generation: int) -> str:
    """As many policies, all of them other ones than those of the generation before."""
    return "".join(
        f"""---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: flood-{number}, namespace: default}}
spec:
  action: DENY
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/default/sa/no-{generation}]}}}}]}}]
"""
        for number in range(POLICIES)
    )


def _change(lab: FaultLab, flows: Steady, text: str) -> None:
    mesh = lab.mesh
    known = mesh.observer.generation()
    marked = flows.mark()
    mesh.write("flood.yaml", text)
    mesh.wait(lambda: mesh.observer.generation() > known, "the change is published")
    mesh.wait(lambda: flows.all_went_on(marked, by=1), "all flows go on")


def test_connections_go_on_and_the_last_word_is_what_counts(lab: FaultLab) -> None:
    mesh = lab.mesh
    with echo(mesh, "server", 7000):
        with steady(mesh, "client", lab.server, 50) as flows:
            mesh.write("flood.yaml", _policies(0))
            last = f"default/flood-{POLICIES - 1}"
            mesh.wait(lambda: last in mesh.observer.policies(), "they are published")
            mesh.wait(mesh.observer.is_settled, "they are in force everywhere")
            workers = (*lab.near.workers, *lab.far.workers)
            before = {pid: resident_kib(pid) for pid in workers}
            for generation in range(1, CHANGES + 1):
                _change(lab, flows, _policies(generation))
            mesh.wait(mesh.observer.is_settled, "all of it is acknowledged")
            grown = {pid: resident_kib(pid) - before[pid] for pid in workers}
            assert max(grown.values()) < 16 * 1024, f"KiB more than before: {grown}"
        with connect(mesh, "client", lab.server) as held:
            exchange(held, b"before the last change")
            mesh.write("flood.yaml", _policies(0).replace("sa/no-0", "sa/client"))
            with pytest.raises(ConnectionError):
                while True:
                    exchange(held, b"until it arrives")
                    mesh.mesh.step()
        lab.far.log.says("closed due to policy change.*default/flood-")
        mesh.remove("flood.yaml")
        mesh.wait(lambda: last not in mesh.observer.policies(), "they are gone")
        mesh.wait(mesh.observer.is_settled, "that is in force, too")
        with connect(mesh, "client", lab.server) as again:
            assert exchange(again, b"again") == b"again"
