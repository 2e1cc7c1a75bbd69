"""The control plane goes away and comes back."""

import os
import signal

import pytest

from daemonset.local.mesh_programs import CONTROL_PLANE
from tests.support.faults import FaultLab
from tests.support.pod_sockets import connect, echo, exchange, steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

ONLY_NOBODY = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-nobody, namespace: default}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}]}
"""


def test_traffic_goes_on_and_a_change_made_meanwhile_arrives_after(lab: FaultLab) -> None:
    running = lab.mesh.mesh.processes.running[CONTROL_PLANE]
    with echo(lab.mesh, "server", 7000):
        with steady(lab.mesh, "client", lab.server, 10) as flows:
            assert running.process is not None
            pid = running.process.pid
            # Not watched meanwhile, so it stays away until the test looks after it again.
            os.kill(pid, signal.SIGKILL)
            running.process.wait()
            lab.mesh.write("policy-only-nobody.yaml", ONLY_NOBODY)
            before = flows.mark()
            running.stopped = True
            lab.mesh.wait(lambda: flows.all_went_on(before), "all flows go on")
            with connect(lab.mesh, "client", lab.server) as new:
                assert exchange(new, b"new") == b"new"
            lab.far.log.says("no stream to the control plane .* next attempt in")
            assert lab.far.ready(), "it is ready: it serves by what it knows"
            lab.mesh.wait(lambda: lab.far.metric("ztunnel_xds_connected") == 0, "it is counted")
        with connect(lab.mesh, "client", lab.server) as held:
            exchange(held, b"before")
            running.start()
            running.stopped = False
            with pytest.raises(ConnectionError):
                while True:
                    exchange(held, b"until the change arrives")
                    lab.mesh.mesh.step()
        lab.far.log.says("closed due to policy change.*default/only-nobody")
        lab.mesh.wait(lambda: lab.far.metric("ztunnel_xds_connected") == 1, "it is connected")
