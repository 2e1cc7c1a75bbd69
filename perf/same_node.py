"""What can carry the load between two pods of one node.

Here the kernel works for some implementations in threads of its own, so that processor time is that
of the whole machine, less load generator and far end. It needs a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from daemonset.local.mesh_programs import ztunnel_name
from perf.bench import CLIENT, SERVER, Bench
from perf.build import Tools
from perf.implementations import (
    CAPTURE_PORT,
    MARK,
    EnvoyPair,
    Implementation,
    Running,
    Ztunnel,
    capture,
)
from tests.support import envoy_config
from tests.support.envoy import Envoy
from tests.support.lab import Lab, lab
from tests.support.mesh_lab import mesh_lab
from tests.support.pki import make_root
from ztunnel.kernel.direct_rules import TABLE, neighbour_sets
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import Nftables
from ztunnel.mesh.identity import Identity

PODS = {CLIENT: 1, SERVER: 1}
DIRECT = "node-direct"


@dataclass(frozen=True)
class DirectHere:
    """Nothing at all."""

    name: str = DIRECT
    title: str = "direct, one node"

    def missing(self) -> str | None:
        return None

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        with lab(nodes=1, pods=PODS, ipv6=False) as room:
            yield Running(_bench(room, tools), [])


@dataclass(frozen=True)
class TcpProxy:
    """One Envoy in the client's pod as a plain TCP proxy: captured, no TLS, access log on."""

    workers: int = 1
    name: str = "node-envoy-1"
    title: str = "one Envoy as tcp_proxy, one node"

    def missing(self) -> str | None:
        return EnvoyPair(self.workers).missing()

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        identity = make_root().workload(Identity("cluster.local", "default", CLIENT))
        config = envoy_config.plain(CAPTURE_PORT, MARK, access_log=True)
        with lab(nodes=1, pods=PODS, ipv6=False) as room:
            bench = _bench(room, tools)
            with Envoy(folder / "proxy", config, identity, bench.client, self.workers) as envoy:
                capture(bench.client)
                yield Running(bench, [envoy.pid])


@dataclass(frozen=True)
class ZtunnelHere:
    """Our mesh, whole, on one node.

    Attributes:
        way: how its pods are joined.
        settings: of the ztunnel, for that.
        past_the_proxy: new connections need no relay, from about a second after a pod has joined.
    """

    way: str
    title: str
    settings: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    istio: bool = False
    past_the_proxy: bool = False

    @property
    def name(self) -> str:
        return f"node-{self.way}-{self.workers}"

    def missing(self) -> str | None:
        return Ztunnel(self.workers, istio=self.istio).missing()

    @contextmanager
    def running(self, tools: Tools, folder: Path) -> Iterator[Running]:
        environment = Ztunnel(self.workers, istio=self.istio).environment() | dict(self.settings)
        with mesh_lab(folder, nodes=1, pods=PODS, ztunnel=environment) as room:
            room.enrol()
            pods = room.mesh.network.pods
            bench = Bench(
                pods[f"default/{CLIENT}"].network,
                pods[f"default/{SERVER}"].network,
                room.ip(SERVER),
                tools,
                whole_machine=True,
            )
            if self.past_the_proxy:
                room.wait(lambda: is_open(bench.client), "pods talk past the proxy")
            process = room.mesh.processes.running[ztunnel_name(room.node_of(SERVER))].process
            assert process is not None
            yield Running(bench, [process.pid])


def is_open(client: NetworkNamespace) -> bool:
    """Whether first packets of a pod to others of its node are asked about."""
    with Nftables(client) as nftables:
        return any(nftables.elements(TABLE, name) for name in neighbour_sets())


def _bench(room: Lab, tools: Tools) -> Bench:
    client, server = room.pod(CLIENT).network, room.pod(SERVER).network
    return Bench(client, server, room.ip(SERVER), tools, whole_machine=True)


SAME_NODE: tuple[Implementation, ...] = (
    DirectHere(),
    TcpProxy(),
    ZtunnelHere("ztunnel", "ztunnel, past the proxy, one node", past_the_proxy=True),
    ZtunnelHere(
        "ztunnel-relay", "ztunnel, joined by a relay, one node", {"ZTUNNEL_DIRECT": "false"}
    ),
    ZtunnelHere("ztunnel-tunnel", "ztunnel, tunnel, one node", {"ZTUNNEL_JOIN_PODS": "false"}),
    ZtunnelHere("istio-ztunnel", "Istio's ztunnel, one node", istio=True),
)
