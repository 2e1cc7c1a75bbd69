"""Who tells the control process of pods, and when enough of them are served to be ready."""

import logging
from typing import Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import ProxyMode
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.process.certificate_desk import CertificateDesk
from ztunnel.process.pods import Pods
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.readiness import Readiness
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

PODS_TASK: Final = "workload proxy manager"
CERTIFICATES_TASK: Final = "certificates"
OWN_UID: Final = "own"  # in place of the uid that an agent would give
OWN_RETRY: Final = 1.0  # seconds
_WARM_UP: Final = 10.0  # seconds that readiness waits for the CA


class PodSource:
    """The node agent; in dedicated mode, and for ourselves, the configuration.

    Args:
        state: the mesh.
        workers: that serve them, by slot.

    Attributes:
        pods: that are known.
        zds: the node agent's client.
    """

    def __init__(
        self,
        config: Config,
        state: MeshState,
        workers: dict[int, WorkerLink],
        certificates: CertificateDesk,
        readiness: Readiness,
        counters: Counters,
    ) -> None:
        self.pods = Pods(workers, counters, self._adopt)
        self.zds = ZdsClient(self.pods, config.inpod_socket, self._failed)
        self._config = config
        self._state = state
        self._certificates = certificates
        self._readiness = readiness
        self._counters = counters
        if config.proxy_enabled:
            readiness.wait_for(CERTIFICATES_TASK)
            if config.mode is ProxyMode.SHARED:
                readiness.wait_for(PODS_TASK)

    def _failed(self, reason: str) -> None:
        self._counters.counter("ztunnel_zds_errors", reason).add()

    def _adopt(self, uid: str, info: WorkloadInfo, netns_fd: int) -> bool:
        return self.zds.adopt(uid, info, netns_fd)

    async def follow(self, nursery: trio.Nursery) -> None:
        """Has served who is to be served, from now on; there must be a worker, and the mesh be
        known. When it is cancelled nobody new is served, but whoever is stays."""
        config = self._config
        if config.mode is ProxyMode.DEDICATED:
            workload = config.workload
            assert workload is not None
            await self._serve_own(
                WorkloadInfo(workload.name, workload.namespace, workload.service_account)
            )
            await self._warm_up()
            return
        node = config.node
        if node.self_proxied:
            # So that peers reach our ports by tunnels and under policies, as any pod's.
            info = WorkloadInfo(node.pod_name, node.pod_namespace, node.service_account)
            nursery.start_soon(self._serve_own, info)
        nursery.start_soon(self._watch_agent)
        await self.zds.run()

    async def _serve_own(self, info: WorkloadInfo) -> None:
        """Serves the workload of our own namespace, of which no agent tells."""
        complaint = ""
        while True:
            try:
                await self.pods.add(OWN_UID, info, None)
            except RuntimeError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("%s cannot be served: %s", info, complaint)
                await trio.sleep(OWN_RETRY)
            else:
                return

    async def _watch_agent(self) -> None:
        """Ready is who has applied a snapshot and still has the agent."""
        ready = False
        while True:
            if self.zds.state.ready != ready:
                ready = not ready
                if ready:
                    self._readiness.done(PODS_TASK)
                    await self._warm_up()
                else:
                    self._readiness.wait_for(PODS_TASK)
            await trio.sleep(0.1)

    async def _warm_up(self) -> None:
        """At first, ready is only who has asked the CA for all that the pods need."""
        if CERTIFICATES_TASK not in self._readiness.pending:
            return
        identities = []
        for info in self.pods.known.values():
            workload = self._state.local_workload(
                info.name, info.namespace, info.service_account, self._config.node.node_name
            )
            if workload is not None and workload.tunnel_protocol is TunnelProtocol.HBONE:
                identities.append(workload.identity)
        missing = await self._certificates.settled(identities, _WARM_UP)
        if missing:
            log.warning(
                "the CA has not answered within %gs for %s; readiness waits no longer",
                _WARM_UP, ", ".join(missing),
            )  # fmt: skip
        self._readiness.done(CERTIFICATES_TASK)
