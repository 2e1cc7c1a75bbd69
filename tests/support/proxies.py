"""Our proxies in this very process, for pods that are real network namespaces.

No control plane, no agent, no workers: a state that the test fills, captured
pods, certificates of a test CA, one engine. What crosses the link between the
nodes is what a real mesh sends.
"""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import CaptureOptions
from tests.support import pki
from tests.support.lab import Lab
from ztunnel import config as configuration
from ztunnel.config.model import LogFormat
from ztunnel.kernel.direct_rules import find_queueing
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import (
    NetworkAddress,
    TunnelProtocol,
    Workload,
)
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.context import Context
from ztunnel.proxy.gatekeeper import Gatekeeper
from ztunnel.proxy.local_pod import LocalPods, PodInfo
from ztunnel.proxy.pod import PodProxy
from ztunnel.relay.engine import Engine
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.log_filter import LogFilter

MARK = 1337
NAMESPACE = "shop"


def workload(room: Lab, name: str, **changes: object) -> Workload:
    """A pod of the lab as the control plane would describe it, in the mesh."""
    values: dict[str, object] = {
        "uid": f"Kubernetes//Pod/{NAMESPACE}/{name}",
        "name": name,
        "namespace": NAMESPACE,
        "service_account": name,
        "addresses": (room.ip(name),),
        "tunnel_protocol": TunnelProtocol.HBONE,
        "canonical_name": name,
        "workload_name": name,
    }
    return Workload(**{**values, **changes})  # type: ignore[arg-type]


def service(name: str, vip: str, ports: dict[int, int]) -> Service:
    """A service of the lab's namespace."""
    return Service(
        name,
        NAMESPACE,
        f"{name}.{NAMESPACE}.svc.cluster.local",
        vips=(NetworkAddress("", vip),),
        ports=ports,
    )


class Proxies:
    """The proxies of some pods, and everything that they share."""

    def __init__(self, room: Lab, engine: Engine, nursery: trio.Nursery, env: dict[str, str]):
        self.room = room
        self.engine = engine
        self.nursery = nursery
        self.lines: list[str] = []
        self.authority = pki.make_root()
        settings = configuration.load(
            {"NODE_NAME": "", "ISTIO_META_DNS_CAPTURE": "false", "XDS_ADDRESS": "",
             "CA_ADDRESS": "", **env}
        )  # fmt: skip
        self.state = MeshState(on_demand=settings.xds.on_demand)
        self.asked: list[str] = []
        self.certificates = CertificateStore(self._ask)
        self.counters = Counters()
        self.context = Context(
            settings,
            "0",
            engine,
            nursery,
            self.state,
            self.certificates,
            AccessLog(
                lambda line: self.lines.append(line.decode()),
                LogFilter.parse("info"),
                settings.telemetry.log_format is LogFormat.JSON,
                lambda: 0.0,
            ),
            self.counters,
            self._resolve,
            self._look_up,
        )
        self.context.rng = random.Random(1)
        self.pods: dict[str, PodProxy] = {}
        self.neighbours: LocalPods = {}
        self.gatekeeper: Gatekeeper | None = None
        self.captures: list[Capture] = []
        self.names: dict[str, list[str]] = {}
        self.on_demand: dict[str, Sequence[Resource] | None] = {}
        self.looked_up: list[str] = []

    def _ask(self, uri: str) -> bool:
        self.asked.append(uri)
        return True

    async def _resolve(self, hostname: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return self.names.get(hostname, ())

    async def _look_up(self, key: str) -> bool:
        """The control plane answers with what is in `on_demand`, and not at all with None."""
        await trio.lowlevel.checkpoint()
        self.looked_up.append(key)
        found = self.on_demand.get(key, ())
        if found is None:
            return False
        self.apply(*found)
        self.state.lookup_finished(key)
        return True

    def apply(
        self,
        *resources: Resource,
        removed: Sequence[str] = (),
        removed_policies: Sequence[str] = (),
    ) -> None:
        """One step of the mesh, as an update from the control process makes it."""
        changes = self.state.apply(Batch(resources, removed, removed_policies))
        self.context.registry.rejudge(self.state, changes, self.pods)
        for pod in self.pods.values():
            pod.mesh_changed()

    def enroll(self, name: str, *, certificate: bool = True, **changes: object) -> Workload:
        """Captures a pod, serves it, and makes it known."""
        described = workload(self.room, name, **changes)
        if certificate:
            self.certificates.received(self.authority.workload(described.identity))
        network = self.room.pod(name).network
        info = PodInfo(name, name, NAMESPACE, described.service_account)
        namespace = network.duplicate()
        try:
            pod = PodProxy(self.context, self.neighbours, info, namespace, {})
        except OSError:
            namespace.close()
            raise
        self.pods[name] = pod
        self.nursery.start_soon(pod.run)
        capture = Capture(network, self._options())
        capture.apply()
        self.captures.append(capture)
        self.apply(described)
        return described

    def _options(self) -> CaptureOptions:
        return CaptureOptions(
            mark=self.context.mark or MARK,
            dns=self.context.config.dns.enabled,
            queueing=find_queueing(),
        )

    async def line(self, *parts: str) -> str:
        """The first log line that holds all of `parts`, waiting for it."""
        with trio.fail_after(30):
            while True:
                for line in self.lines:
                    if all(part in line for part in parts):
                        return line
                await trio.sleep(0.01)

    def close(self) -> None:
        for pod in self.pods.values():
            pod.close("test over")
        for capture in self.captures:
            capture.remove()


@asynccontextmanager
async def proxies(room: Lab, **env: str) -> AsyncIterator[Proxies]:
    """Proxies for pods of `room`; `env` are the settings of a ztunnel."""
    async with AsyncExitStack() as stack:
        engine = Engine()
        stack.callback(engine.close)  # after the tasks: what they give up, they close in it
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(engine.run)
        nursery.start_soon(engine.watch_deadlines)
        made = Proxies(room, engine, nursery, env)
        try:
            yield made
        finally:
            made.close()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
