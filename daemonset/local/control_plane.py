"""The control plane of a mesh on one machine, as a process of its own.

It is ``ambient control-plane`` with what a cluster would add: the addresses of pods (which the mesh
that runs them knows), a token for each node's proxy, and the word of each node agent about which
pods are captured. All three pass through small files of the run directory.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from daemonset.control_plane.ca.tokens import TokenSubject
from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.server import ControlPlane
from daemonset.control_plane.sources.folder import FolderError
from daemonset.control_plane.translation.finding import Severity
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.local.shared_files import (
    FindingsFile,
    PodsFile,
    WantedFile,
    WantedPod,
    WatchedFile,
    acknowledged_file,
    captured_file,
    root_file,
    settled_file,
    token_file,
)

TOKEN_LIFETIME = 12 * 3600.0
"""Seconds; a new one is written at half of it."""

LOOK = 0.05
"""Seconds between two looks at what agents report."""

_PATIENCE = 1.0
"""Seconds that a new pod's address is waited for: mesh and control plane see its file at slightly
different moments. What comes later is taken then."""

_log = logging.getLogger("daemonset.local.control_plane")


class PodAddresses:
    """Fills in the addresses of pods whose objects say none."""

    def __init__(self, made: PodsFile) -> None:
        self._made = made
        self._missing: frozenset[str] = frozenset()

    def complete(self, objects: ObjectSet) -> ObjectSet:
        """The same objects, all pods with their addresses."""
        without = {
            f"{namespace}/{name}"
            for (namespace, name), pod in objects.pods.items()
            if not pod.ips and not pod.finished
        }
        if not without:
            self._missing = frozenset()
            return objects
        known = self._wait_for(without)
        pods = {
            key: dataclasses.replace(pod, ips=known["/".join(key)], phase="Running")
            if "/".join(key) in without & known.keys()
            else pod
            for key, pod in objects.pods.items()
        }
        return dataclasses.replace(objects, pods=pods)

    def _wait_for(self, names: set[str]) -> dict[str, tuple[str, ...]]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            known = {key: pod.addresses for key, pod in self._made.read().items()}
            missing = names - known.keys()
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for name in sorted(missing):
            _log.warning("pod %s has no address and stays out of the mesh until it has one", name)
        self._missing = frozenset(missing)
        return known

    def have_come(self) -> bool:
        """Whether one that was missing is there now; says so once. Raises OSError."""
        if not self._missing or self._missing.isdisjoint(self._made.read()):
            return False
        self._missing = frozenset()
        return True


class LocalControlPlane:
    """A control plane with the files around it."""

    def __init__(self, source: Path, run: Path, address: str, nodes: Sequence[str]) -> None:
        self._run = run
        self._nodes = nodes
        self._captured: dict[str, set[str]] = {}
        self._reports = {node: WatchedFile(captured_file(run, node)) for node in nodes}
        self._wanted = WantedFile(run)
        self._findings = FindingsFile(run)
        self._addresses = PodAddresses(PodsFile(run))
        self.plane = ControlPlane(
            ControlPlaneConfig(
                source=source,
                state=run / "control-plane",
                settings=MeshSettings(service_ips=SERVICE_IPS),
                address=address,
                server_names=(address,),
                agents_report=True,
            ),
            self._addresses.complete,
        )

    async def serve(self) -> None:
        """Serve until cancelled. Raises FolderError, OSError as ControlPlane.run does."""
        async with trio.open_nursery() as nursery:
            root_file(self._run).write_text(self.plane.roots_pem)
            nursery.start_soon(self._keep_tokens_fresh)
            self.plane.on_objects(self._tell_agents)
            await nursery.start(self.plane.run)
            nursery.start_soon(self._follow_agents)
            nursery.start_soon(self._follow_addresses)
            nursery.start_soon(self._say_when_settled)
            nursery.start_soon(self._tell_findings)

    async def _keep_tokens_fresh(self) -> None:
        while True:
            for node in self._nodes:
                subject = TokenSubject("istio-system", "ztunnel", node=node)
                path = token_file(self._run, node)
                _write_private(path, self.plane.mint_token(subject, TOKEN_LIFETIME))
            await trio.sleep(TOKEN_LIFETIME / 2)

    def _tell_agents(self, objects: ObjectSet) -> None:
        self._wanted.write(wanted_pods(objects))

    async def _follow_agents(self) -> None:
        while True:
            for node, report in self._reports.items():
                if report.has_changed():
                    self._take_report(node, set(json.loads(report.path.read_text())))
            await trio.sleep(LOOK)

    async def _follow_addresses(self) -> None:
        """A mesh on a machine that is busy makes a pod when its file was read long ago."""
        while True:
            if self._addresses.have_come():
                self.plane.refresh()
            await trio.sleep(LOOK)

    def _take_report(self, node: str, now: set[str]) -> None:
        before = self._captured.get(node, set())
        self._captured[node] = now
        for pod in sorted(before ^ now):
            namespace, _, name = pod.partition("/")
            self.plane.report_captured(namespace, name, pod in now)

    async def _tell_findings(self) -> None:
        known = -1
        while True:
            if self.plane.generation != known:
                known = self.plane.generation
                found = self.plane.complaints
                self._findings.write(text for severity, text in found if severity > Severity.INFO)
            await trio.sleep(LOOK)

    async def _say_when_settled(self) -> None:
        file = WatchedFile(settled_file(self._run))
        acknowledged = WatchedFile(acknowledged_file(self._run))
        known: tuple[int, frozenset[tuple[str, str]]] = (0, frozenset())
        while True:
            generation, captured = now = self.plane.generation, self.plane.captured
            if now != known:
                await self.plane.settled()
                file.replace(str(generation))
                acknowledged.replace(json.dumps(sorted(map("/".join, captured))))
                known = now
            await trio.sleep(LOOK)


def wanted_pods(objects: ObjectSet) -> Iterator[WantedPod]:
    """Pure: what agents have to know of the pods of these objects."""
    for pod in objects.pods.values():
        namespace = objects.namespaces.get(pod.meta.namespace)
        if not pod.finished:
            yield WantedPod(
                namespace=pod.meta.namespace,
                name=pod.meta.name,
                node=pod.node,
                service_account=pod.service_account,
                host_network=pod.host_network,
                labels=dict(pod.meta.labels),
                annotations=dict(pod.meta.annotations),
                namespace_labels={} if namespace is None else dict(namespace.meta.labels),
            )


def _write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m daemonset.local.control_plane")
    parser.add_argument("--source", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--address", required=True, help="to listen on")
    parser.add_argument("--node", action="append", default=[], help="may be repeated")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    local = LocalControlPlane(chosen.source, chosen.run, chosen.address, chosen.node)
    code = 0
    try:
        trio.run(local.serve)
    except* (FolderError, OSError) as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
