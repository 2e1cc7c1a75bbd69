"""A whole mesh with its real processes, from inline YAML, for end-to-end tests.

::

    with mesh_lab(pods={"client": 1, "server": 2}) as mesh:
        mesh.serve("server", http=8080)      # or give pods commands of their own in YAML
        mesh.enrol("default")
        answer = mesh.get("client", "http://server:8080/")
        line = mesh.inbound("server").line(lambda line: line["src.workload"] == "client")

Names of pods are ``pod`` (namespace ``default``) or ``namespace/pod``. Waiting is always for a
condition, with the mesh kept going meanwhile, and a condition that does not come quotes the logs.
"""

import json
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemonset.local.access_lines import AccessLine
from daemonset.local.capture import Capture, Wire
from daemonset.local.mesh import Mesh, Settings
from daemonset.local.metrics_lines import Sample, parse_samples
from daemonset.local.observe import AccessLog, Observer
from daemonset.local.processes import last_lines, python
from daemonset.local.run_directory import RunDirectory
from daemonset.local.shared_files import agent_of
from daemonset.local.topology import PodPlan
from tests.support.lab import node_yaml, pod_yaml

PATIENCE = 60.0
"""Seconds that any condition may take; far more than it does, for machines that are busy."""

_LABEL = "istio.io/dataplane-mode"


class NotSeenError(AssertionError):
    """A condition did not come true; the text has the ends of all logs."""


class LogView:
    """The access log of one node since this view was made."""

    def __init__(self, lab: "MeshLab", log: AccessLog) -> None:
        self._lab = lab
        self._log = log

    def line(self, wanted: Callable[[AccessLine], bool]) -> AccessLine:
        """The first line that is wanted, waited for."""
        found: list[AccessLine] = []

        def written() -> bool:
            line = self._log.find(wanted)
            if line is not None:
                found.append(line)
            return line is not None

        self._lab.wait(written, "a line in the access log")
        return found[0]

    def lines(self) -> list[AccessLine]:
        return self._log.lines()


class MeshLab:
    """One running mesh."""

    def __init__(self, mesh: Mesh, reports: list[str]) -> None:
        self.mesh = mesh
        self.reports = reports
        """What the mesh has told its user so far."""
        self.observer = Observer(mesh)
        self.sockets: list[socket.socket] = []
        """Of this process in pods; closed with the mesh."""
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def folder(self) -> Path:
        """The YAML that the mesh follows."""
        return self.mesh.settings.folder

    def ip(self, pod: str, version: int = 4) -> str:
        addresses = self.mesh.pod(_full(pod)).addresses
        return next(str(address) for address in addresses if address.version == version)

    def node_of(self, pod: str) -> str:
        return self.mesh.pod(_full(pod)).node

    # The folder

    def write(self, name: str, text: str) -> None:
        """Put a file into the folder, in one step."""
        temporary = self.folder / f".{name}.new"
        temporary.write_text(text)
        temporary.replace(self.folder / name)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def enrol(self, namespace: str = "default") -> None:
        """Label a namespace and wait until all its pods are in the mesh, everywhere."""
        self.write(f"namespace-{namespace}.yaml", namespace_yaml(namespace, in_mesh=True))
        self.settle(in_mesh=[pod.key for pod in self._pods(namespace)])

    def withdraw(self, namespace: str = "default") -> None:
        """Take the label away and wait until nobody reaches its pods through tunnels any more.
        Connections from before may go on for a while."""
        self.write(f"namespace-{namespace}.yaml", namespace_yaml(namespace, in_mesh=False))
        self.settle(outside=[pod.key for pod in self._pods(namespace)])

    def release(self, namespace: str = "default") -> None:
        """Take the label away and wait until nothing of the mesh is left in any of its pods."""
        self.withdraw(namespace)
        leaving = {pod.key for pod in self._pods(namespace)}

        def have_left() -> bool:
            agents = [agent_of(self.mesh.run.path, node) for node in self.mesh.topology.nodes]
            return not any(
                f"{pod.namespace}/{pod.name}" in leaving and not pod.out_of_mesh
                for agent in agents
                if agent is not None
                for pod in agent.pods
            )

        self.wait(have_left, f"{namespace} has left the mesh")

    def policy(self, name: str, spec: str, namespace: str = "default") -> None:
        """Write an AuthorizationPolicy (*spec* is YAML in flow style) and wait until each ztunnel
        has taken it over."""
        before = self.observer.generation()
        self.write(
            f"policy-{namespace}-{name}.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
            f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n",
        )
        self.wait(
            lambda: self.observer.generation() > before and self.observer.is_settled(),
            f"policy {name} is in force",
        )

    def settle(self, *, in_mesh: list[str] | None = None, outside: list[str] | None = None) -> None:
        """Wait until pods are captured (or not), published so, and acknowledged everywhere."""

        def settled() -> bool:
            captured = self.observer.captured()
            return (
                captured.issuperset(in_mesh or ())
                and captured.isdisjoint(outside or ())
                and self.observer.is_settled(in_mesh or (), outside or ())
            )

        self.wait(settled, f"{in_mesh or outside} are {'in' if in_mesh else 'out of'} the mesh")

    # Processes in pods

    def start(self, pod: str, *command: str) -> "subprocess.Popen[bytes]":
        """A process in a pod; stderr joins stdout, a pipe. It ends with the mesh."""
        plan = self.mesh.pod(_full(pod))
        process = self.mesh.keeper.spawn(
            self.mesh.network.pods[plan.key],
            command,
            environment=self.mesh.pods.environment(plan),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._started.append(process)
        return process

    def run(self, pod: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run to the end, the mesh kept going meanwhile."""
        process = self.start(pod, *command)
        self.wait(lambda: process.poll() is not None, f"{command} ends in {pod}")
        assert process.stdout is not None
        with process.stdout as output:
            text = output.read().decode()
        return subprocess.CompletedProcess(command, process.returncode, text)

    def serve(self, pod: str, *, http: int | None = None, echo: int | None = None) -> None:
        """Start our application in a pod and wait until it listens."""
        ports = [*(["--http", str(http)] if http else []), *(["--echo", str(echo)] if echo else [])]
        process = self.start(pod, *python("-m", "daemonset.local.app", "serve", *ports))
        assert process.stdout is not None
        first = process.stdout.readline()
        assert b"listens on" in first, f"{pod}: {(first + process.stdout.read()).decode()}"

    def try_get(self, pod: str, url: str, *headers: str) -> "subprocess.CompletedProcess[str]":
        """One HTTP request from a pod by our application's client; status 1 without an answer."""
        options = [word for header in headers for word in ("--header", header)]
        return self.run(pod, *python("-m", "daemonset.local.app", "get", url, *options))

    def get(self, pod: str, url: str, *headers: str) -> Any:
        """One HTTP request that must be answered; the answer, decoded from JSON."""
        done = self.try_get(pod, url, *headers)
        assert done.returncode == 0, f"{pod} got no answer from {url}: {done.stdout}{self.logs()}"
        return json.loads(done.stdout)

    # Looking

    def access_log(self, node: str) -> LogView:
        """What a node's ztunnel logs from now on."""
        return LogView(self, self.observer.follow_access(node))

    def access_log_of(self, pod: str) -> LogView:
        """What the ztunnel of a pod's node logs from now on."""
        return self.access_log(self.node_of(pod))

    def metrics(self, node: str) -> list[Sample]:
        """All samples of a node's ztunnel; waits until it answers."""
        pages: list[str] = []

        def answered() -> bool:
            pages.append(self.observer.metrics(node))
            return True

        self.wait(answered, f"the metrics of {node}")
        return list(parse_samples(pages[0]))

    @contextmanager
    def wire(self, node: str) -> Iterator[Capture]:
        """Capture between a node and the others; to be looked at after the block."""
        underlay = self.mesh.network.underlay
        assert underlay is not None
        wire = Wire(underlay.network, self.mesh.topology.nodes[node].link)
        capture = Capture()
        try:
            yield capture
            wire.read_into(capture)
        finally:
            wire.close()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Raises NotSeenError with all logs when *condition* does not come true in time. It is not
        true yet where somebody who is asked does not answer just now."""
        trouble = ""

        def holds() -> bool:
            nonlocal trouble
            try:
                return condition()
            except (TimeoutError, ConnectionRefusedError) as error:
                trouble = f" (at some time: {error})"
                return False

        if not self.mesh.wait(holds, PATIENCE):
            raise NotSeenError(f"not within {PATIENCE:g} s: {what}{trouble}{self.logs()}")

    def logs(self) -> str:
        """The ends of the logs of the mesh's own processes."""
        running = self.mesh.processes.running
        return "".join(
            f"\n{name} ({running[name].state}):\n{last_lines(running[name].program.log, 30)}"
            for name in self.mesh.programs.states()
        )

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.mesh.close()
        for process in self._started:
            if process.stdout is not None:
                process.stdout.close()

    def _pods(self, namespace: str) -> list[PodPlan]:
        return [pod for pod in self.mesh.topology.pods.values() if pod.namespace == namespace]


def namespace_yaml(name: str, *, in_mesh: bool) -> str:
    labels = f"{{{_LABEL}: ambient}}" if in_mesh else "{}"
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n"


@contextmanager
def mesh_lab(
    folder: Path,
    *,
    nodes: int = 2,
    pods: Mapping[str, int] | None = None,
    ipv6: bool = False,
    objects: str = "",
    with_mesh: bool = True,
    ztunnel: Mapping[str, str] | None = None,
) -> Iterator[MeshLab]:
    """Build it and wait until it is ready; nothing is enrolled yet.

    Args:
        folder: for its YAML, ``tmp_path`` of the test.
        pods: name (or namespace/name) -> number of the node; they idle until told to do something.
        objects: more YAML (pods, services, policies).
        ztunnel: more of the environment of every ztunnel.
    """
    yaml = folder / "yaml"
    yaml.mkdir()
    machines = "".join(node_yaml(number, ipv6=ipv6) for number in range(1, nodes + 1))
    (yaml / "nodes.yaml").write_text(machines)
    text = ""
    for pod, node in (pods or {}).items():
        namespace, _, name = _full(pod).partition("/")
        command = "[sleep, infinity]"
        text += pod_yaml(name, node, namespace=namespace, command=command, account=name)
    (yaml / "objects.yaml").write_text(text + objects)
    settings = Settings(name="test", folder=yaml, with_mesh=with_mesh, ztunnel=dict(ztunnel or {}))
    reports: list[str] = []
    # Not below the test's own folder: that is too deep for the paths of sockets.
    with tempfile.TemporaryDirectory(prefix="ambient-", ignore_cleanup_errors=True) as place:
        run = RunDirectory.create("test", Path(place))
        lab = MeshLab(Mesh.open(settings, reports.append, run), reports)
        try:
            lab.mesh.start()
            yield lab
        finally:
            lab.close()


def _full(pod: str) -> str:
    return pod if "/" in pod else f"default/{pod}"
