"""Real nodes and pods as network namespaces, for tests and benchmarks; no mesh in them.

One line makes a machine room::

    with lab(pods={"client": 1, "server": 2}) as room:
        assert room.run("client", "true").returncode == 0
        server = room.start("server", sys.executable, "-m", "daemonset.local.app", "serve", …)

Everything ends with the ``with`` block, and with the test process if that is killed.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from daemonset.local.namespaces import Keeper, Namespace
from daemonset.local.network import MeshNetwork
from daemonset.local.objects import parse
from daemonset.local.topology import PodPlan, Topology, plan

T = TypeVar("T")


def node_yaml(number: int, *, ipv6: bool = True) -> str:
    """Node ``node-N``: 172.18.0.(N+1), pods in 10.244.N.0/24; fc00:18::(N+1), fd00:244:N::/64."""
    addresses = f"{{type: InternalIP, address: 172.18.0.{number + 1}}}"
    ranges = f"10.244.{number}.0/24"
    if ipv6:
        addresses += f", {{type: InternalIP, address: 'fc00:18::{number + 1}'}}"
        ranges += f", 'fd00:244:{number}::/64'"
    return f"""---
apiVersion: v1
kind: Node
metadata: {{name: node-{number}}}
spec: {{podCIDRs: [{ranges}]}}
status: {{addresses: [{addresses}]}}
"""


def pod_yaml(
    name: str,
    node: int,
    *,
    namespace: str = "default",
    command: str = "[]",
    account: str = "default",
    labels: str = "{}",
) -> str:
    """A pod without an address of its own choice; *command* and *labels* are YAML in flow style."""
    return f"""---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}
spec:
  nodeName: node-{node}
  serviceAccountName: {account}
  containers: [{{name: main, command: {command}}}]
"""


class Lab:
    """Nodes and pods of one plan, ready to run things in. Names: ``pod`` or ``namespace/pod``."""

    def __init__(self, keeper: Keeper, topology: Topology) -> None:
        self.keeper = keeper
        self.network = MeshNetwork(keeper, topology)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def topology(self) -> Topology:
        return self.network.topology

    def plan_of(self, pod: str) -> PodPlan:
        """The pod's plan. Raises KeyError when there is none of that name."""
        return self.topology.pods[pod if "/" in pod else f"default/{pod}"]

    def ip(self, pod: str, version: int = 4) -> str:
        """The pod's address of one family, as text."""
        return next(str(a) for a in self.plan_of(pod).addresses if a.version == version)

    def pod(self, pod: str) -> Namespace:
        """``.network`` is a ztunnel.linux.netns.NetworkNamespace: ``with x.network.enter(): …``."""
        return self.network.pods[self.plan_of(pod).key]

    def node(self, number: int) -> Namespace:
        return self.network.nodes[f"node-{number}"]

    def where(self, place: str | int) -> Namespace:
        """A pod by its name, a node by its number."""
        return self.node(place) if isinstance(place, int) else self.pod(place)

    def start(
        self,
        place: str | int,
        *command: str,
        env: Mapping[str, str] | None = None,
        stdout: int | None = subprocess.PIPE,
        pass_fds: tuple[int, ...] = (),
    ) -> "subprocess.Popen[bytes]":
        """A process in a pod (or node, by number); stderr joins stdout. Killed with the lab."""
        process = self.keeper.spawn(
            self.where(place),
            command,
            environment=env,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
        self._processes.append(process)
        return process

    def run(
        self, place: str | int, *command: str, timeout: float = 20.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run to the end. Raises subprocess.TimeoutExpired after *timeout* seconds."""
        process = self.start(place, *command)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, output.decode())

    def app(self, pod: str, *, http: int | None = None, echo: int | None = None) -> None:
        """Start our own application in a pod and wait until it listens."""
        ports = [*(["--http", str(http)] if http else []), *(["--echo", str(echo)] if echo else [])]
        process = self.start(pod, sys.executable, "-m", "daemonset.local.app", "serve", *ports)
        assert process.stdout is not None
        first = process.stdout.readline()
        assert b"listens on" in first, f"{pod}: {(first + process.stdout.read()).decode()}"

    def close(self) -> None:
        """Everything ends: processes first, so that what they still say is not waited for."""
        self.keeper.close()
        for process in self._processes:
            if process.stdout is not None:
                process.stdout.close()

    def inside(self, place: str | int, function: Callable[[], T]) -> T:
        """Call *function* in a thread that is in the pod's network namespace."""
        return self.keeper.call(self.where(place), function)


@contextmanager
def lab(
    *,
    nodes: int = 2,
    pods: Mapping[str, int] | None = None,
    ipv6: bool = True,
    objects: str = "",
) -> Iterator[Lab]:
    """Build it: *pods* is name -> number of the node; *objects* is more YAML (pods, nodes)."""
    text = "".join(node_yaml(number, ipv6=ipv6) for number in range(1, nodes + 1))
    text += "".join(pod_yaml(name, node) for name, node in (pods or {}).items())
    topology = plan(parse(text + objects))
    room = Lab(Keeper(), topology)
    try:
        room.network.build()
        yield room
    finally:
        room.close()
