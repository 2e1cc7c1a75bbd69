"""A mesh on one machine, whole: real processes, real packets."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from daemonset.local.processes import RunningProgram, http_get
from tests.support.mesh_lab import MeshLab, mesh_lab
from tests.support.pod_sockets import has_ended
from tests.support.requirements import without_direct, without_sockmap
from ztunnel.mesh.workload import HBONE_PORT

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node-2
  serviceAccountName: server
  containers:
    - name: main
      command: [python, -m, daemonset.local.app, serve, --http, "8080", --echo, "7000"]
      readinessProbe: {httpGet: {port: 8080}}
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[MeshLab]:
    with mesh_lab(
        tmp_path, pods={"client": 1, "other/stranger": 1}, objects=SERVICE, ipv6=True
    ) as lab:
        yield lab


def test_a_service_works_before_in_and_after_the_mesh(mesh: MeshLab) -> None:
    def seen() -> str:
        answer = mesh.get("client", "http://server/")
        assert answer["pod"] == "server"
        return str(answer["client"])

    own = (mesh.ip("client"), mesh.ip("client", 6))
    with mesh.wire("node-1") as before:
        assert seen() in own
    assert before.packets_with_port(15008) == 0
    mesh.enrol()
    with mesh.wire("node-1") as during:
        assert seen() in own
    assert during.packets_with_port(15008) > 0
    assert not during.shows(b"HTTP/1.1")
    mesh.release()
    for pod in ("client", "server"):
        mesh.wait(
            lambda pod=pod: has_ended(mesh, pod, HBONE_PORT),  # type: ignore[misc]
            f"the last packets of the tunnel of {pod}",
        )
    with mesh.wire("node-1") as after:
        assert seen() in own
    assert after.packets_with_port(15008) == 0
    assert after.shows(b"HTTP/1.1")


@pytest.mark.parametrize("version", [4, 6])
def test_both_families_go_through_the_tunnel(mesh: MeshLab, version: int) -> None:
    mesh.enrol()
    address = mesh.ip("server", version)
    host = f"[{address}]" if version == 6 else address
    log = mesh.access_log_of("server")
    with mesh.wire("node-1") as seen:
        answer = mesh.get("client", f"http://{host}:8080/", "x-marker: very-plain-text")
    assert answer["client"] == mesh.ip("client", version)
    assert not seen.shows(b"very-plain-text")
    records, strangers = seen.tls_records(15008)
    assert records > 0
    assert strangers == 0
    line = log.line(lambda line: line.inbound and line["src.workload"] == "client")
    assert line["src.identity"] == "spiffe://cluster.local/ns/default/sa/client"
    assert line["dst.identity"] == "spiffe://cluster.local/ns/default/sa/server"


def test_a_policy_is_enforced_and_named(mesh: MeshLab) -> None:
    mesh.enrol()
    mesh.get("client", "http://server/")
    log = mesh.access_log_of("server")
    rule = "{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}"
    mesh.policy("only-nobody", f"{{action: ALLOW, rules: [{rule}]}}")
    refused = mesh.try_get("client", "http://server/")
    assert refused.returncode == 1
    line = log.line(lambda line: line.inbound and bool(line["error"]))
    assert "default/only-nobody (rule 1)" in line["verdict"]
    mesh.remove("policy-default-only-nobody.yaml")
    mesh.wait(lambda: "default/only-nobody" not in mesh.observer.policies(), "the policy is gone")
    mesh.settle()
    mesh.get("client", "http://server/")


def test_pods_come_and_go_with_their_files(mesh: MeshLab) -> None:
    mesh.enrol()
    late = SERVICE.split("---")[2].replace("name: server,", "name: late,", 1)
    mesh.write("late.yaml", late)
    mesh.wait(lambda: "default/late" in mesh.mesh.topology.pods, "the mesh has made the pod")
    mesh.settle(in_mesh=["default/late"])
    address = mesh.ip("late")
    mesh.wait(
        lambda: mesh.try_get("client", f"http://{address}:8080/").returncode == 0,
        "the new pod answers",
    )
    mesh.remove("late.yaml")
    mesh.wait(lambda: "default/late" not in mesh.mesh.topology.pods, "the pod is gone")
    mesh.wait(lambda: "default/late" not in mesh.observer.captured(), "the agent has let go of it")
    assert mesh.try_get("client", f"http://{address}:8080/").returncode == 1


def test_a_file_with_an_error_changes_nothing(mesh: MeshLab) -> None:
    before = dict(mesh.mesh.topology.pods)
    mesh.write("objects.yaml", (mesh.folder / "objects.yaml").read_text() + "---\nkind: [")
    mesh.wait(lambda: any("objects.yaml" in said for said in mesh.reports), "the error is reported")
    assert mesh.mesh.topology.pods == before
    assert mesh.get("client", "http://server/")["pod"] == "server"


def _was_restarted(running: RunningProgram) -> bool:
    return running.restarts >= 1


def test_a_part_that_is_killed_comes_back(mesh: MeshLab) -> None:
    mesh.enrol()
    for name in ("control-plane", "agent on node-1", "ztunnel on node-2"):
        running = mesh.mesh.processes.running[name]
        assert running.process is not None
        os.kill(running.process.pid, signal.SIGKILL)
        mesh.wait(partial(_was_restarted, running), f"{name} is started again")
        ready = running.program.is_ready
        assert ready is not None
        mesh.wait(ready, f"{name} is ready again")
        assert any(f"{name} ended by SIGKILL" in said for said in mesh.reports)
    mesh.wait(
        lambda: mesh.try_get("client", "http://server/").returncode == 0,
        "the mesh works again",
    )
    with mesh.wire("node-1") as seen:
        mesh.get("client", "http://server/", "x-marker: very-plain-text")
    assert not seen.shows(b"very-plain-text")


def test_every_worker_says_which_kernel_paths_it_uses(mesh: MeshLab) -> None:
    def counted() -> dict[str, float]:
        samples = mesh.metrics("node-1")
        return {s.labels["path"]: s.value for s in samples if s.name == "ztunnel_kernel_path"}

    joins = without_sockmap() is None
    expected = {
        "splice": 1.0,
        "sockmap": float(joins),
        "ktls": 0.0,
        "direct": float(without_direct() is None),
    }
    mesh.wait(lambda: counted() == expected, "the metric of kernel paths")
    _, body = http_get(mesh.mesh.network.nodes["node-1"], "127.0.0.1", 15000, "/config_dump")
    [paths] = json.loads(body)["kernelPaths"].values()  # a mesh on one machine has one worker
    assert paths["splice"] == "on"
    assert paths["ktls"] == "switched off"
    assert (paths["sockmap"] == "on") is joins


_TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 10) as talk:
    for number in range(100):
        message = b"%d" % number
        talk.sendall(message)
        assert talk.recv(100) == message, number
"""


def test_pods_of_one_node_are_joined_in_the_kernel(tmp_path: Path) -> None:
    relayed = {"ZTUNNEL_DIRECT": "false"}
    with mesh_lab(tmp_path, nodes=1, pods={"one": 1, "two": 1}, ztunnel=relayed) as mesh:
        mesh.serve("two", echo=7000)
        mesh.enrol()
        mesh.wait(
            lambda: any(
                one.name == "ztunnel_kernel_path" and one.labels["path"] == "splice" and one.value
                for one in mesh.metrics("node-1")
            ),
            "the probe of kernel paths",
        )
        log = mesh.access_log("node-1")
        done = mesh.run("one", sys.executable, "-c", _TALK, mesh.ip("two"))
        assert done.returncode == 0, done.stdout
        for direction in ("inbound", "outbound"):
            line = log.line(lambda line, way=direction: line["direction"] == way)  # type: ignore[misc]
            assert line["path"] == ("sockmap" if without_sockmap() is None else "copy")
            assert line["bytes_sent"] == line["bytes_recv"] == "190"
            assert line["src.identity"].endswith("/sa/one")
            assert line["dst.identity"].endswith("/sa/two")
            assert line["dst.hbone_addr"] == ""
