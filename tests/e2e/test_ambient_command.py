"""``ambient`` as people run it: as a command, from several terminals, with and without root."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemonset

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(daemonset.__file__).resolve().parent.parent
EXAMPLE = ROOT / "daemonset" / "local" / "examples" / "shop"
PATIENCE = 240

# What is left of root without its capabilities: a user like any other. CAP_SETFCAP stays, because
# since Linux 5.12 only who has it may map user 0 of the machine into a namespace.
NO_CAPABILITIES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in set(range(64)) - {31}:
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

NO_USER_NAMESPACES = (
    """
import sys
from pathlib import Path
from daemonset.local.privileges import become_root
become_root()
Path("/proc/sys/user/max_user_namespaces").write_text("0")
"""
    + NO_CAPABILITIES
)


class Ambient:
    """Runs the command with a run directory of the test's own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environment = {
            **os.environ,
            "AMBIENT_RUN_DIR": str(place / "run"),
            "PYTHONPATH": str(ROOT),
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, prelude: str | None = None) -> "subprocess.Popen[str]":
        before = [sys.executable] if prelude is None else [sys.executable, "-c", prelude]
        process = subprocess.Popen(
            [*before, "-m", "daemonset.cli", *words],
            env=self.environment,
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str, prelude: str | None = None) -> tuple[int, str]:
        """Exit status, and everything that was said."""
        process = self.start(*words, prelude=prelude)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def is_gone(self) -> bool:
        return not (self.place / "run").exists()


@pytest.fixture
def ambient() -> Iterator[Ambient]:
    with tempfile.TemporaryDirectory(prefix="ambient-", ignore_cleanup_errors=True) as place:
        command = Ambient(Path(place))
        try:
            yield command
        finally:
            for process in command.started:
                if process.poll() is None:
                    process.kill()
                process.communicate()


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """What a process says up to and with the line that ends *text*, which may be broken in two."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in " ".join(seen.split()):
            return seen
    raise AssertionError(f"it ended without saying {text!r}:\n{seen}")


def processes_of(process: "subprocess.Popen[str]") -> list[int]:
    """Descriptors that become readable when a child of *process* has ended."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [os.pidfd_open(int(pid)) for pid in children]


def assert_all_end(descriptors: list[int]) -> None:
    assert descriptors
    for descriptor in descriptors:
        ready, _, _ = select.select([descriptor], [], [], 60)
        os.close(descriptor)
        assert ready, "a process is still there"


def until_logged(ambient: Ambient, text: str, who: str, prelude: str | None = None) -> None:
    """A line is written a moment after what it tells of."""
    deadline = time.monotonic() + 60
    while text not in (output := ambient.run("logs", who, prelude=prelude)[1]):
        assert time.monotonic() < deadline, output


def assert_shown(output: str) -> None:
    for pattern in (
        r"captured between the nodes: \d+ packets with data",
        r"6 pods are in the mesh",
        r"no application was restarted",
        r"[1-9]\d* packets to and from port 15008, [1-9]\d* TLS records",
        r"spiffe://cluster.local/ns/shop/sa/web → spiffe://cluster.local/ns/shop/sa/orders",
        r"\d+ ms after it was written the visitor's connection was cut",
        r"shop/orders-only-for-web \(rule 1\)",
        r"the visitor is out of the mesh",
        r"istio_tcp_connections_opened_total",
    ):
        assert re.search(pattern, re.sub(r"\s+", " ", output)), f"{pattern} is not in:\n{output}"


def test_the_demo_shows_what_it_says(ambient: Ambient) -> None:
    code, output = ambient.run("demo")
    assert code == 0, output[-2000:]  # what went wrong is said at the end
    assert_shown(output)
    assert ambient.is_gone()


def test_the_demo_works_without_root(ambient: Ambient) -> None:
    code, output = ambient.run("demo", prelude=NO_CAPABILITIES)
    assert code == 0, output
    assert_shown(output)
    assert ambient.is_gone()


def test_where_neither_is_possible_it_says_what_is_missing(ambient: Ambient) -> None:
    code, output = ambient.run("demo", prelude=NO_USER_NAMESPACES)
    assert code == 1
    assert "A mesh needs network namespaces" in output
    assert "sudo sysctl user.max_user_namespaces=10000" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("prelude", [None, NO_CAPABILITIES], ids=["root", "user"])
def test_a_kept_demo_can_be_played_with_and_ends_with_ctrl_c(
    ambient: Ambient, prelude: str | None
) -> None:
    demo = ambient.start("demo", "--keep", prelude=prelude)
    shown = read_until(demo, "Ctrl-C here ends it")
    assert "exec web -- " in shown
    get = ("python", "-m", "daemonset.local.app", "get")
    code, output = ambient.run("exec", "web", "--", *get, "http://orders/", prelude=prelude)
    assert code == 0, output
    assert '"pod": "orders"' in output
    code, output = ambient.run("why", "web", "orders", "80", prelude=prelude)
    assert (code, "allowed by policy shop/orders-only-for-web (rule 1)" in output) == (0, True)
    assert "AuthorizationPolicy shop/orders-only-for-web: orders-only-for-web.yaml:12" in output
    code, output = ambient.run("why", "visitor", "orders", "80", prelude=prelude)
    assert (code, "street/visitor is not in the mesh" in output) == (1, True), output
    code, output = ambient.run("status", prelude=prelude)
    assert "ztunnel on node-2   running" in output
    until_logged(ambient, "connection complete", "node-1/ztunnel", prelude)
    watched = processes_of(demo)
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does it
    rest, _ = demo.communicate(timeout=PATIENCE)
    assert "everything is removed" in rest
    assert demo.returncode == 0
    assert_all_end(watched)
    assert ambient.is_gone()


def test_a_folder_is_run_followed_and_ended_from_another_terminal(ambient: Ambient) -> None:
    folder = ambient.place / "mine"
    shutil.copytree(EXAMPLE / "mesh", folder)
    (folder / "more.yaml").write_text(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}"
    )
    up = ambient.start("up", str(folder), "--no-mesh")
    shown = re.sub(r"\s+", " ", read_until(up, "Ctrl-C ends it"))
    assert "more.yaml:1: apps/v1 Deployment plays no part in the mesh and is ignored: noth" in shown
    code, output = ambient.run("up", str(folder))
    assert (code, "a mesh named mine is running already" in output) == (1, True)
    assert ambient.run("exec", "web", "--", "sh", "-c", "exit 7")[0] == 7
    assert ambient.run("exec", "web", "--", "hostname") == (0, "web\n")
    assert ambient.run("exec", "node/node-1", "--", "hostname") == (0, "node-1\n")
    code, output = ambient.run("exec", "nobody", "--", "true")
    assert (code, "there is no pod nobody" in output) == (1, True)
    (folder / "broken.yaml").write_text("kind: [")
    assert "(what the file said before stays" in read_until(up, "broken.yaml")
    assert ambient.run("down") == (0, "mesh mine is down\n")
    assert up.wait(PATIENCE) == 128 + signal.SIGTERM
    assert ambient.is_gone()


SIX = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Namespace,
     metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}}
  - {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: "fd00:1::/64"},
     status: {addresses: [{type: InternalIP, address: "fc00:9::2"}]}}
  - {apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDR: "fd00:2::/64"},
     status: {addresses: [{type: InternalIP, address: "fc00:9::3"}]}}
  - {apiVersion: v1, kind: Node, metadata: {name: n3}, spec: {podCIDR: "fd00:3::/64"},
     status: {addresses: [{type: InternalIP, address: "fc00:9::4"}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: app},
     spec: {nodeName: n1, containers: [{name: c, command: [sleep, infinity]}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: app, labels: {app: b}},
     spec: {nodeName: n3, serviceAccountName: b, containers: [{name: c, image: any,
       readinessProbe: {tcpSocket: {port: web}}, ports: [{name: web, containerPort: 8080}]}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: b, namespace: app},
     spec: {selector: {app: b}, ports: [{port: 80, targetPort: web}]}}
"""


L7 = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: l7, namespace: app}
spec:
  rules: [{to: [{operation: {methods: [GET]}}]}]
"""


def test_a_folder_of_three_nodes_without_ipv4(ambient: Ambient) -> None:
    folder = ambient.place / "six"
    folder.mkdir()
    (folder / "all.yaml").write_text(SIX)
    up = ambient.start("up", str(folder))
    shown = read_until(up, "Ctrl-C ends it")
    assert re.search(r"app/a +n1 +fd00:1::2 +in +c running", shown)
    assert re.search(r"app/b +n3 +fd00:3::2 +in +c running", shown)
    assert "WHAT IS WRONG" not in shown
    get = ("python", "-m", "daemonset.local.app", "get")
    code, output = ambient.run("exec", "a", "--", *get, "http://b/")
    assert (code, '"client": "fd00:1::2"' in output) == (0, True), output
    until_logged(ambient, 'src.identity="spiffe://cluster.local/ns/app/sa/default"', "n3/ztunnel")
    (folder / "policy.yaml").write_text(L7)
    assert "policy.yaml:6: error: AuthorizationPolicy app/l7" in read_until(up, "policy.yaml:6")
    assert "policy.yaml:6: error: AuthorizationPolicy app/l7" in ambient.run("status")[1]
    os.killpg(up.pid, signal.SIGINT)
    assert up.wait(PATIENCE) == 0
    assert ambient.is_gone()


def test_nothing_outlives_a_mesh_that_is_killed(ambient: Ambient) -> None:
    up = ambient.start("up", str(EXAMPLE / "mesh"), "--no-mesh")
    read_until(up, "Ctrl-C ends it")
    watched = processes_of(up)
    up.kill()
    assert_all_end(watched)
    code, output = ambient.run("down")
    assert code == 0
    assert "removed what was left of mesh mesh" in output
    assert ambient.is_gone()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["up", "nowhere"], "nowhere: No such file or directory"),
        (["up", "."], "there is no Node object"),
        (["status"], "no mesh is running; start one with `ambient up FOLDER`"),
        (["exec", "web", "--", "true"], "no mesh is running"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    ambient: Ambient, words: list[str], message: str
) -> None:
    code, output = ambient.run(*words)
    assert code == 1
    assert message in output
    assert output.count("\n") == 1
