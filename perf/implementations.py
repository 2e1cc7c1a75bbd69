"""What can carry the load: each implementation is one class."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemonset.local.mesh_programs import ZTUNNEL_BIN, ztunnel_name
from perf.bench import CLIENT, PODS, SERVER, Bench
from perf.build import Tools
from tests.support import envoy_config
from tests.support.cache import Unavailable
from tests.support.envoy import Envoy, find_envoy
from tests.support.lab import Lab, lab
from tests.support.mesh_lab import mesh_lab
from tests.support.pki import make_root
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_expressions import destination, mark, protocol, redirect
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.mesh.identity import Identity

CAPTURE_PORT = 15001
MARK = 1337

_COMPLAINTS = 5  # that are told of each process


@dataclass(frozen=True)
class Running:
    """An implementation at work: where to measure, and the processes that do it.

    Descendants of `pids` count as well, and need not be named.

    Attributes:
        complaints: what they have logged that is not as it should be.
    """

    bench: Bench
    pids: list[int]
    complaints: Callable[[], list[str]] = list


class Implementation(Protocol):
    """Something between two pods."""

    @property
    def name(self) -> str:
        """In results and in options; a number at its end is that of its workers."""
        ...

    @property
    def title(self) -> str:
        """In tables."""
        ...

    def missing(self) -> str | None:
        """Why it cannot run on this machine; None when it can."""
        ...

    def running(self, tools: Tools, folder: Path) -> AbstractContextManager[Running]:
        """Two new pods, with this between them for as long as the block lasts.

        Args:
            tools: the load generator.
            folder: an empty folder.
        """
        ...


@dataclass(frozen=True)
class Direct:
    """Nothing at all: what the machine can do."""

    name: str = "direct"
    title: str = "direct"

    def missing(self) -> str | None:
        return None

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        with lab(pods=PODS, ipv6=False) as room:
            yield Running(_bench(room, tools), [])


@dataclass(frozen=True)
class EnvoyPair:
    """An Envoy in each pod: captured traffic, an mTLS HBONE tunnel between them, access logs on."""

    workers: int

    @property
    def name(self) -> str:
        return f"envoy-{self.workers}"

    @property
    def title(self) -> str:
        return f"Envoy pair, {self.workers} worker{'s' if self.workers > 1 else ''} each"

    def missing(self) -> str | None:
        try:
            find_envoy()
        except Unavailable as error:
            return str(error)
        return None

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        root = make_root()
        server = root.workload(Identity("cluster.local", "default", SERVER))
        client = root.workload(Identity("cluster.local", "default", CLIENT))
        terminate = envoy_config.server(envoy_config.ServerOptions(access_log=True))
        originate = envoy_config.client(
            envoy_config.ClientOptions(capture_port=CAPTURE_PORT, mark=MARK, access_log=True)
        )
        with lab(pods=PODS, ipv6=False) as room:
            bench = _bench(room, tools)
            with (
                Envoy(folder / "far", terminate, server, bench.server, self.workers) as far,
                Envoy(folder / "near", originate, client, bench.client, self.workers) as near,
            ):
                capture(bench.client)
                yield Running(bench, [near.pid, far.pid])


@dataclass(frozen=True)
class Ztunnel:
    """Our mesh, whole: control plane, node agents, and a ztunnel on each of two nodes.

    Counted are both ztunnels with their supervisors and control processes.

    Attributes:
        services: that the mesh has besides, which carry nothing.
        istio: Istio's ztunnel, which the environment variable ZTUNNEL_BIN names, below our agent
            and control plane.
    """

    workers: int
    services: int = 0
    istio: bool = False

    @property
    def name(self) -> str:
        crowd = f"{self.services}-services-" if self.services else ""
        return f"{'istio-' if self.istio else ''}ztunnel-{crowd}{self.workers}"

    @property
    def title(self) -> str:
        crowd = f", {self.services:,} services" if self.services else ""
        whose = "Istio's ztunnel" if self.istio else "ztunnel"
        return f"{whose}, {self.workers} worker{'s' if self.workers > 1 else ''} each{crowd}"

    def missing(self) -> str | None:
        if not self.istio:
            return None
        binary = os.environ.get(ZTUNNEL_BIN)
        if not binary:
            return f"{ZTUNNEL_BIN} does not name a binary of it"
        return None if os.access(binary, os.X_OK) else f"{binary} cannot be executed"

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        objects = services_yaml(self.services)
        with mesh_lab(folder, pods=PODS, objects=objects, ztunnel=self.environment()) as room:
            room.enrol()
            pods = room.mesh.network.pods
            bench = Bench(
                pods[f"default/{CLIENT}"].network,
                pods[f"default/{SERVER}"].network,
                room.ip(SERVER),
                tools,
            )
            running = [room.mesh.processes.running[ztunnel_name(room.node_of(pod))] for pod in PODS]
            yield Running(
                bench,
                [one.process.pid for one in running if one.process is not None],
                lambda: [line for one in running for line in complaints(one.program.log)],
            )

    def environment(self) -> dict[str, str]:
        """How the ztunnels are configured."""
        environment = {"ZTUNNEL_WORKER_THREADS": str(self.workers)}
        if self.istio:
            environment[ZTUNNEL_BIN] = os.environ[ZTUNNEL_BIN]
        return environment


def complaints(log: Path) -> list[str]:
    """The first lines of a ztunnel's log that are warnings or errors."""
    with log.open(errors="replace") as lines:
        levels = ("warn", "error")
        wanted = (line.rstrip() for line in lines if line.partition("\t")[2].startswith(levels))
        return list(itertools.islice(wanted, _COMPLAINTS))


def _bench(room: Lab, tools: Tools) -> Bench:
    client, server = room.pod(CLIENT).network, room.pod(SERVER).network
    return Bench(client, server, room.ip(SERVER), tools)


def services_yaml(count: int) -> str:
    """So many services, each with an address, and no endpoint."""
    return "".join(
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: service-{number}, "
        f"namespace: default}}\nspec: {{clusterIP: 10.96.{number >> 8}.{number & 255}, "
        f"ports: [{{port: 80}}]}}\n"
        for number in range(count)
    )


def capture(namespace: NetworkNamespace) -> None:
    """Redirect what the pod's processes send, but for marked packets and loopback."""
    rule = Rule(
        (
            *protocol(socket.IPPROTO_TCP),
            *mark(MARK, 0xFFF, negated=True),
            *destination("127.0.0.1", negated=True),
            *redirect(CAPTURE_PORT),
        )
    )
    chain = Chain("output", (rule,), hook="output", kind="nat", priority=-100)
    with Nftables(namespace) as nftables:
        nftables.replace(Table("capture", (chain,)))


ALL: tuple[Implementation, ...] = (
    Direct(),
    EnvoyPair(1),
    Ztunnel(1),
    EnvoyPair(2),
    Ztunnel(2),
    Ztunnel(1, istio=True),
    Ztunnel(2, istio=True),
    Ztunnel(1, services=1_000),
)
