"""The mesh's own processes: one control plane, and on each node an agent and a ztunnel."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from daemonset.agent.mark import packet_mark
from daemonset.local.network import MeshNetwork
from daemonset.local.processes import (
    Processes,
    Program,
    answers,
    base_environment,
    python,
)
from daemonset.local.run_directory import RunDirectory
from daemonset.local.shared_files import (
    agent_folder,
    captured_file,
    root_file,
    token_file,
    zds_socket,
)

XDS_PORT = 15012
STATUS_PORT = 15014
READINESS_PORT = 15021
METRICS_PORT = 15020

ZTUNNEL_BIN = "ZTUNNEL_BIN"
"""In the environment that is asked for: another program to run as ztunnel."""

CONTROL_PLANE = "control-plane"

START_LIMIT = 60.0
"""Seconds within which each part must be ready: ten times what it takes on a slow machine."""

RESTARTS = 2
"""How often a part may end before it is ready: the third time, waiting will not help."""


def agent_name(node: str) -> str:
    return f"agent on {node}"


def ztunnel_name(node: str) -> str:
    return f"ztunnel on {node}"


class MeshPrograms:
    """Starts them in the order in which they need each other, and knows how each is called."""

    def __init__(
        self,
        folder: Path,
        run: RunDirectory,
        network: MeshNetwork,
        processes: Processes,
        ztunnel: Mapping[str, str],
    ) -> None:
        """*ztunnel*: more of the environment of every ztunnel."""
        self._folder = folder.absolute()
        self._run = run
        self._network = network
        self._processes = processes
        self._more_for_ztunnel = ztunnel
        self._names: list[str] = []

    def start(self) -> None:
        """Start all of them and wait until they are ready.

        Raises:
            NamespaceError: a command cannot be run.
            ProcessError: one was not ready in time; its log is quoted.
        """
        nodes = list(self._network.topology.nodes)
        for node in nodes:
            self._run.check_socket(zds_socket(self._run.path, node))
            self._run.folder("nodes", node)
        self._run.folder("captured")
        self._start(self._control_plane())
        # A token and the roots are there when the control plane is: what needs them comes after.
        self._await_ready([CONTROL_PLANE])
        for node in nodes:
            self._start(self._agent(node))
            self._start(self._ztunnel(node))
        self._await_ready(map(agent_name, nodes))
        self._await_ready(map(ztunnel_name, nodes))

    def _await_ready(self, names: Iterable[str]) -> None:
        self._processes.await_ready(names, START_LIMIT, RESTARTS)

    def _start(self, program: Program) -> None:
        self._processes.start(program)
        self._names.append(program.name)

    def states(self) -> dict[str, str]:
        """Name -> what it does now, in words."""
        return {name: self._processes.running[name].state for name in self._names}

    @property
    def _address(self) -> str:
        return str(self._network.topology.underlay[0])

    def _control_plane(self) -> Program:
        underlay = self._network.underlay
        assert underlay is not None
        nodes = [word for node in self._network.topology.nodes for word in ("--node", node)]
        return Program(
            name=CONTROL_PLANE,
            namespace=underlay,
            command=python(
                *("-m", "daemonset.local.control_plane"),
                *("--source", str(self._folder)),
                *("--run", str(self._run.path)),
                *("--address", self._address),
                *nodes,
            ),
            environment=base_environment(),
            log=self._log("control-plane.log"),
            is_ready=answers(underlay, self._address, STATUS_PORT, "/ready"),
        )

    def _agent(self, node: str) -> Program:
        captured = captured_file(self._run.path, node)
        return Program(
            name=agent_name(node),
            namespace=self._network.nodes[node],
            command=python(
                *("-m", "daemonset.cli", "agent"),
                *("--run", str(self._run.path)),
                *("--node", node),
            ),
            environment=base_environment(),
            log=self._log("nodes", node, "agent.log"),
            is_ready=captured.exists,
        )

    def _ztunnel(self, node: str) -> Program:
        namespace = self._network.nodes[node]
        environment = {**base_environment(), **self.ztunnel_environment(node)}
        binary = environment.pop(ZTUNNEL_BIN, None)  # Istio's own reads the same variables
        return Program(
            name=ztunnel_name(node),
            namespace=namespace,
            command=(binary,) if binary else python("-m", "ztunnel"),
            environment=environment,
            log=self._log("nodes", node, "ztunnel.log"),
            is_ready=answers(namespace, "127.0.0.1", READINESS_PORT, "/healthz/ready"),
            grace=6.0,
        )

    def ztunnel_environment(self, node: str) -> dict[str, str]:
        """How a node's ztunnel is configured: by the variables that Istio's reads."""
        run = self._run.path
        host = f"[{self._address}]" if ":" in self._address else self._address
        control_plane = f"https://{host}:{XDS_PORT}"
        return {
            "NODE_NAME": node,
            "INPOD_UDS": str(zds_socket(run, node)),
            # The agent's secret: what carries it leaves capture.
            "PACKET_MARK": str(packet_mark(agent_folder(run, node))),
            "XDS_ADDRESS": control_plane,
            "CA_ADDRESS": control_plane,
            "XDS_ROOT_CA": str(root_file(run)),
            "CA_ROOT_CA": str(root_file(run)),
            "AUTH_TOKEN": str(token_file(run, node)),
            "ZTUNNEL_WORKER_THREADS": "1",
            # Nobody enforces anything on the links between the pods of a folder; where a
            # NetworkPolicy selects a pod, it is not joined here either.
            "ZTUNNEL_JOIN_PODS": "true",
            # With two nodes on one machine, nobody waits long for what is still open at the end.
            "CONNECTION_TERMINATION_DEADLINE": "2s",
            **self._more_for_ztunnel,
        }

    def _log(self, *parts: str) -> Path:
        path = self._run.path.joinpath("logs", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
