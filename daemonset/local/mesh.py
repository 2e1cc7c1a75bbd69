"""A whole mesh on one machine: a cluster's parts, the mesh's parts, and the pods, kept as a folder
of YAML describes them."""

import dataclasses
import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from daemonset.agent.status import PodState
from daemonset.control_plane.translation.service_addresses import ServiceAddresses
from daemonset.local import cluster_ips
from daemonset.local.cluster_dns import ClusterDns
from daemonset.local.folder_view import FolderView
from daemonset.local.kube_services import ClusterServices, ServiceReader, ServingPod, VirtualAddress
from daemonset.local.mesh_programs import MeshPrograms
from daemonset.local.namespaces import Keeper, Namespace
from daemonset.local.network import MeshNetwork
from daemonset.local.objects import TopologyError
from daemonset.local.pod_files import PodFiles
from daemonset.local.pod_runner import PodRunner
from daemonset.local.processes import Processes, Report
from daemonset.local.run_directory import Description, Place, RunDirectory
from daemonset.local.shared_files import FindingsFile, agent_of
from daemonset.local.topology import PodPlan, Topology, choose_pod, plan

TURN = 0.1
"""Seconds between two looks at the folder and the processes."""

_MAKERS = ("apps", "batch")
"""Groups whose objects are made into Pods by a cluster's controllers."""

_NOT_YET = "[NotCaptured]"
_AT_REST = (PodState.ENROLLED, PodState.NOT_IN_MESH)

LASTING = 1.5
"""Seconds after which a finding of the control plane is told."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a local mesh is called and which of its parts run."""

    name: str
    folder: Path
    with_mesh: bool = True
    """False: only what a cluster gives (nodes, pods, DNS, ClusterIPs)."""
    ztunnel: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More of the environment of every ztunnel."""
    cluster_domain: str = "cluster.local"
    dns_addresses: tuple[str, str] = ("10.96.0.10", "fd00:10:96::a")
    """ClusterIPs of the cluster's DNS; a mesh uses those of the families that its nodes have."""


class Mesh:
    """Build, keep, and take down. All methods belong to one thread."""

    def __init__(self, settings: Settings, run: RunDirectory, report: Report) -> None:
        """Read the folder; nothing is built yet.

        Args:
            report: is told, in words, whatever happens while the mesh runs.

        Raises:
            TopologyError: the folder does not describe a mesh.
        """
        self.settings = settings
        self.run = run
        self.report = report
        self.view = FolderView(settings.folder)
        self.topology: Topology = plan(self.view.raw)
        self._services = ServiceReader(ServiceAddresses(), settings.cluster_domain)
        versions = {address.version for address in self.topology.underlay}
        self._dns_addresses = [
            address for address in settings.dns_addresses if _version(address) in versions
        ]
        self._files = PodFiles(run, self._dns_addresses[0], settings.cluster_domain)
        self._dns: ClusterDns | None = None
        self._described: Description | None = None
        self._findings = FindingsFile(run.path)
        self._found_since: dict[str, float] = {}
        self._told: set[str] = set()
        self._ignored: set[str] = set()
        self.keeper = Keeper(run.folder("netns"), self._files.of_nodes())
        self.network = MeshNetwork(self.keeper, self.topology)
        self.processes = Processes(self.keeper, report)
        self.pods = PodRunner(run, self.network, self.processes, self._files)
        self.programs = MeshPrograms(
            settings.folder, run, self.network, self.processes, settings.ztunnel
        )

    @classmethod
    def open(cls, settings: Settings, report: Report, run: RunDirectory | None = None) -> Self:
        """Read the folder, with a run directory that is made here or given; it is the mesh's from
        now on, and gone when this fails.

        Raises:
            RunDirectoryError: a mesh of that name is running.
            TopologyError, NamespaceError: as the constructor.
        """
        run = RunDirectory.create(settings.name) if run is None else run
        try:
            return cls(settings, run, report)
        except BaseException:
            run.remove()
            raise

    def start(self) -> None:
        """Build everything and wait until it is ready.

        Raises:
            NamespaceError: the kernel refused something.
            ProcessError: a part of the mesh did not become ready.
        """
        for warning in self.keeper.warnings:
            self.report(warning)
        self._report_ignored()
        for path in self._files.missing():
            self.report(f"this machine has no {path}, so pods have none either; `touch` one")
        self.network.build_nodes()
        underlay = self.network.underlay
        assert underlay is not None
        addresses = [str(address) for address in self.topology.underlay]
        self._dns = ClusterDns(underlay.network, addresses, self.settings.cluster_domain)
        self.pods.reconcile(self.topology)
        self._apply_services()
        if self.settings.with_mesh:
            self.programs.start()
        self.pods.await_ready()
        self._describe()

    def step(self) -> None:
        """One turn: restart what died, take over what changed in the folder."""
        self.processes.watch()
        problems = self.view.poll()
        if problems is not None:
            for problem in problems:
                self.report(f"{problem} (what the file said before stays in force)")
            self._report_ignored()
            self._reconcile()
        self._report_findings()
        self._describe()

    def _report_findings(self) -> None:
        """What the control plane finds wrong, once it has lasted: a pod that is on its way into
        the mesh is no news."""
        found = self._findings.read()
        now = time.monotonic()
        self._found_since = {text: self._found_since.get(text, now) for text in found}
        for text, since in self._found_since.items():
            # Refused files have been told when they were read.
            known = text in self._told or text in self.view.problems
            if not known and now - since > LASTING:
                self.report(text)
                self._told.add(text)
        self._told &= self._found_since.keys()

    def _report_ignored(self) -> None:
        for kind, place in self.view.ignored.items():
            if kind not in self._ignored:
                self._ignored.add(kind)
                makes_pods = kind.partition("/")[0] in _MAKERS
                advice = ": nothing here makes Pods of it, write them out" if makes_pods else ""
                self.report(f"{place}: {kind} plays no part in the mesh and is ignored{advice}")

    def is_settled(self) -> bool:
        """Whether every pod is in the mesh, or out of it, as its labels want, and the control plane
        has heard of it."""
        if any(text.endswith(_NOT_YET) for text in self._findings.read()):
            return False
        agents = [agent_of(self.run.path, node) for node in self.topology.nodes]
        return all(
            agent is not None
            and len(agent.pods) == len(self.topology.pods_on(node))
            and all(pod.state in _AT_REST for pod in agent.pods)
            for node, agent in zip(self.topology.nodes, agents, strict=True)
        )

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Keep the mesh going until *condition* holds; False after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.step()
            time.sleep(TURN / 4)
        return True

    def close(self) -> None:
        """End every process and remove everything, the run directory too."""
        try:
            self.processes.stop(list(self.processes.running))
        finally:
            if self._dns is not None:
                self._dns.close()
            self.keeper.close()
            self.run.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pod(self, name: str) -> PodPlan:
        """A pod by ``namespace/name``, or by its name where that is unique.

        Raises:
            TopologyError: there is no such pod, or several.
        """
        return self.topology.pods[choose_pod(name, list(self.topology.pods))]

    def namespace_of(self, pod: str) -> Namespace:
        return self.network.pods[self.pod(pod).key]

    def _reconcile(self) -> None:
        given = {key: pod.addresses for key, pod in self.topology.pods.items()}
        try:
            wanted = plan(self.view.raw, given)
        except TopologyError as error:
            self.report(f"{error} (nodes and pods stay as they are)")
            return
        if wanted.nodes != self.topology.nodes:
            self.report("nodes are made once, at the start: changes of Node objects are not taken")
            wanted = dataclasses.replace(wanted, nodes=self.topology.nodes)
        self.topology = self.network.topology = wanted
        self.pods.reconcile(wanted)
        self._apply_services()

    def _apply_services(self) -> None:
        assert self._dns is not None
        services = self._services.read(
            self.view.objects, self._serving_pods(), dict(self.view.external_names())
        )
        self._dns.services = services
        table = cluster_ips.service_table(
            (*services.virtual_addresses, *self._dns_service(services))
        )
        for node in self.network.nodes.values():
            cluster_ips.install(node.network, table)

    def _serving_pods(self) -> Iterator[ServingPod]:
        for pod in self.topology.pods.values():
            read = self.view.objects.pods.get((pod.namespace, pod.name))
            if read is not None:
                ports = {port.name: port.number for port in reversed(read.ports)}
                addresses = tuple(str(address) for address in pod.addresses)
                yield ServingPod(pod.namespace, pod.name, pod.labels, addresses, ports, read.ready)

    def _dns_service(self, services: ClusterServices) -> Iterator[VirtualAddress]:
        """The cluster's own DNS, unless the folder has a service at its address."""
        taken = {one.address for one in services.virtual_addresses}
        for address in self._dns_addresses:
            ends = tuple(
                (str(end), 53)
                for end in self.topology.underlay
                if end.version == _version(address) and address not in taken
            )
            for protocol in ("UDP", "TCP"):
                yield VirtualAddress("kube-system/kube-dns", address, 53, protocol, ends)

    def _describe(self) -> None:
        described = Description(
            name=self.settings.name,
            pid=own_pid(),
            folder=str(self.settings.folder.absolute()),
            pid_namespace=self.keeper.pid_namespace,
            underlay=_place(self.network.underlay, addresses=self.topology.underlay),
            nodes={
                name: _place(self.network.nodes[name], addresses=node.addresses)
                for name, node in self.topology.nodes.items()
            },
            pods={
                key: dataclasses.replace(
                    _place(self.network.pods[key], addresses=pod.addresses),
                    node=pod.node,
                    environment=self.pods.environment(pod),
                    containers=self.pods.states(pod),
                )
                for key, pod in self.topology.pods.items()
            },
            processes=self.programs.states(),
        )
        if described != self._described:
            self.run.describe(described)
            self._described = described


def own_pid() -> int:
    """This process as /proc numbers it."""
    return int(Path("/proc/self").readlink().name)


def _place(namespace: Namespace | None, addresses: Sequence[object] = ()) -> Place:
    assert namespace is not None
    return Place(
        net=namespace.network.fd,
        mnt=namespace.mnt,
        uts=namespace.uts,
        addresses=[str(address) for address in addresses],
    )


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version
