"""Runs the pods of a plan, as kubelets would: namespaces, files, and a process per container."""

import secrets
from collections.abc import Callable, Iterator

from daemonset.local.namespaces import NamespaceError
from daemonset.local.network import MeshNetwork
from daemonset.local.pod_files import PodFiles
from daemonset.local.processes import (
    Processes,
    Program,
    accepts,
    answers,
    base_environment,
    resolve,
)
from daemonset.local.run_directory import RunDirectory
from daemonset.local.shared_files import MadePod, PodsFile
from daemonset.local.topology import PodPlan, Probe, ProcessPlan, Topology

_START_LIMIT = 60.0
"""Seconds within which containers with a readiness probe must answer it."""


class PodRunner:
    """The pods that run now, and what each was made from."""

    def __init__(
        self, run: RunDirectory, network: MeshNetwork, processes: Processes, files: PodFiles
    ) -> None:
        self._run = run
        self._network = network
        self._processes = processes
        self._files = files
        self._pods: dict[str, PodPlan] = {}
        self._file = PodsFile(run.path)
        self._made: dict[str, MadePod] = {}

    def reconcile(self, wanted: Topology) -> None:
        """Make it so: end pods that are gone or made differently now, start those that are new.

        A change of labels alone changes nothing that runs.

        Raises:
            NamespaceError: a pod's namespaces could not be made.
        """
        before = dict(self._made) if self._made else None
        for key, old in list(self._pods.items()):
            new = wanted.pods.get(key)
            if new is None or _differs(old, new):
                self._end(old)
        for key, new in wanted.pods.items():
            if key not in self._pods:
                self._network.add_pod(new, self._files.of_pod(new))
                self._pods[key] = new
                self._made[key] = _made(new, self._network.pods[key].network.path)
                for process in new.processes:
                    self._start(new, process)
            else:
                self._pods[key] = new
        if self._made != before:
            self._file.write(self._made)

    def _end(self, pod: PodPlan) -> None:
        self._processes.stop(_program_name(pod, process) for process in pod.processes)
        self._network.remove_pod(pod)
        del self._pods[pod.key]
        del self._made[pod.key]

    def _start(self, pod: PodPlan, process: ProcessPlan) -> None:
        log = self._run.folder("logs", "pods") / f"{pod.namespace}_{pod.name}_{process.container}"
        program = Program(
            name=_program_name(pod, process),
            namespace=self._network.pods[pod.key],
            command=resolve(process.command),
            environment={**base_environment(), **process.environment},
            log=log.with_name(f"{log.name}.log"),
            restart=pod.restart,
            is_ready=self._probe(pod, process.probe),
        )
        try:
            self._processes.start(program)
        except NamespaceError as error:
            raise NamespaceError(
                f"pod {pod.key}, container {process.container}: {error}"
            ) from error

    def _probe(self, pod: PodPlan, probe: Probe | None) -> Callable[[], bool] | None:
        if probe is None:
            return None
        node, address = self._network.nodes[pod.node], str(pod.addresses[0])
        if probe.path is not None:
            return answers(node, address, probe.port, probe.path)
        return accepts(node, address, probe.port)

    def await_ready(self) -> None:
        """Wait until every container with a readiness probe answers it, probed from its node as
        kubelet does.

        Raises:
            ProcessError: one did not in time; its log is quoted.
        """
        names = [
            _program_name(pod, process)
            for pod in self._pods.values()
            for process in pod.processes
            if process.probe is not None
        ]
        self._processes.await_ready(names, _START_LIMIT)

    def environment(self, pod: PodPlan) -> dict[str, str]:
        """What a command that is executed in the pod has: as its first container."""
        own = pod.processes[0].environment if pod.processes else {}
        return {**base_environment(), **own}

    def states(self, pod: PodPlan) -> dict[str, str]:
        """Container -> what it does now, in words."""
        return dict(self._states(pod))

    def _states(self, pod: PodPlan) -> Iterator[tuple[str, str]]:
        for process in pod.processes:
            state = self._processes.running[_program_name(pod, process)].state
            note = " (our own application stands in for the image)" if process.stand_in else ""
            yield process.container, f"{state}{note}"


def _made(pod: PodPlan, netns: str) -> MadePod:
    addresses = tuple(str(address) for address in pod.addresses)
    return MadePod(
        f"{pod.uid}-{secrets.token_hex(4)}", addresses, "" if pod.host_network else netns
    )


def _program_name(pod: PodPlan, process: ProcessPlan) -> str:
    return f"pod {pod.key} {process.container}"


def _differs(old: PodPlan, new: PodPlan) -> bool:
    return any(
        getattr(old, name) != getattr(new, name)
        for name in ("uid", "node", "host_network", "addresses", "restart", "processes")
    )
