"""The control process: everything of a ztunnel that is not moving bytes.

It talks to the node agent (ZDS), the control plane (xDS) and the certificate
authority, tells the workers what they need, writes their log lines, sums up
their counters, and answers readiness, admin and metrics requests. When it
dies the workers go on with what they have.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import LogFormat, ProxyMode, UnknownPolicy
from ztunnel.linux.fds import raise_file_limit
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.identity import Identity, IdentityError
from ztunnel.mesh.local_file import read_resources
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.process import messages
from ztunnel.process.admin import admin_sources
from ztunnel.process.channel import Channel, Message
from ztunnel.process.mesh_feed import ADDRESS_TYPE, AUTHORIZATION_TYPE, MeshFeed
from ztunnel.process.pods import Pods
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.admin import admin_handler
from ztunnel.telemetry.aggregate import Aggregate, UpdateError
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.http_server import Handler, HttpServer, open_listeners
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_format import drop_notice, install
from ztunnel.telemetry.log_writer import LogWriter
from ztunnel.telemetry.metrics_server import metrics_handler
from ztunnel.telemetry.process_metrics import measure
from ztunnel.telemetry.readiness import Readiness
from ztunnel.telemetry.shipping import Shipper
from ztunnel.tls.ca_client import CaClient
from ztunnel.tls.certificates import (
    CertificateManager,
    CertificateUnavailable,
    WorkloadCertificate,
)
from ztunnel.tls.crl import CrlFile
from ztunnel.xds.channel import ControlPlane
from ztunnel.xds.client import LookupTimeout, XdsClient
from ztunnel.xds.messages import node
from ztunnel.xds.protocol import Rejection, Resource
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

_WATCH_EVERY: Final = 2.0  # seconds between looks at files that may have changed
_LOG_FLUSH: Final = 2.0  # seconds for the last log lines at the end

STATE_TASK: Final = "state manager"
PROXY_TASK: Final = "proxy"
PODS_TASK: Final = "workload proxy manager"


class Control:
    """The control process.

    Args:
        supervisor: our end of the channel to the supervisor.
    """

    def __init__(self, config: Config, supervisor: socket.socket) -> None:
        telemetry = config.telemetry
        as_json = telemetry.log_format is LogFormat.JSON
        notice = drop_notice(as_json)
        self.config = config
        self.log_filter = LogFilter.parse(telemetry.log_filter)
        self._writer = LogWriter(sys.stdout.fileno(), telemetry.log_queue, notice)
        install(self._writer.queue, self.log_filter, as_json)
        self.workers: dict[int, WorkerLink] = {}
        self.state = MeshState(
            on_demand=config.xds.on_demand,
            ignore_unknown_policies=config.unknown_policy is UnknownPolicy.ALLOW,
        )
        self.feed = MeshFeed(self.state, lambda: list(self.workers.values()))
        self.pods = Pods(self.workers)
        self.counters = Counters()
        self.aggregate = Aggregate()
        self._shipper = Shipper(self.counters)
        self.certificates = CertificateManager(
            _Authority(config), ttl=config.ca.certificate_lifetime
        )
        self.readiness = Readiness(STATE_TASK, PROXY_TASK)
        self.zds: ZdsClient | None = None
        self._xds: XdsClient | None = None
        self._crl = CrlFile(config.ca.crl_path) if config.ca.crl_path is not None else None
        self._supervisor = Channel(supervisor)
        self._ended = trio.Event()
        self._first_worker = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._prefetched: set[Identity] = set()
        self.static_config: dict[str, Any] = {}

    async def run(self) -> None:
        """Runs until the supervisor says that it is over, or is gone."""
        config = self.config
        if config.mode is ProxyMode.SHARED:
            self.readiness.wait_for(PODS_TASK)
        self.feed.listen(self._mesh_changed)
        self.certificates.listen(self._certificate_changed)
        self.counters.gauge("istio_build", "ztunnel", config.node.istio_version).set(1)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.certificates.run)
            async with self._servers(nursery):
                nursery.start_soon(self._read_supervisor)
                nursery.start_soon(self._start_proxies)
                if self._crl is not None:
                    nursery.start_soon(self._watch_revocations)
                await self._ended.wait()
            nursery.cancel_scope.cancel()
        self.pods.close()
        await trio.to_thread.run_sync(self._writer.close, _LOG_FLUSH)

    # ---- servers

    @asynccontextmanager
    async def _servers(self, nursery: trio.Nursery) -> AsyncIterator[None]:
        config, telemetry = self.config, self.config.telemetry
        everywhere = ["::"] if config.sockets.ipv6 else ["0.0.0.0"]
        admin = admin_handler(admin_sources(self), config.node.istio_version)
        wanted: list[tuple[list[str], int, Handler, bool]] = [
            (everywhere, telemetry.readiness_port, self.readiness.handler(), False),
            (everywhere, telemetry.stats_port, metrics_handler(self._metrics), False),
            (["127.0.0.1", "::1"], telemetry.admin_port, admin, True),
        ]
        servers = [
            HttpServer(await open_listeners(hosts, port), handler, loopback_names_only=local)
            for hosts, port, handler, local in wanted
        ]
        for server in servers:
            nursery.start_soon(server.serve)
        try:
            yield
        finally:
            for server in servers:
                server.stop()

    def _metrics(self) -> dict[Any, list[float]]:
        measure(self.counters)
        self.counters.gauge("ztunnel_workers").set(len(self.workers))
        self.counters.counter("ztunnel_log_lines_dropped").value = self._writer.queue.dropped
        if self.zds is not None:
            state = self.zds.state
            self.counters.gauge("workload_manager_active_proxy_count").set(len(state.running))
            self.counters.gauge("workload_manager_pending_proxy_count").set(len(state.pending))
        encoded = self._shipper.encode()
        if encoded is not None:
            self.aggregate.update("control", encoded)
        return self.aggregate.snapshot()

    # ---- supervisor and workers

    async def _read_supervisor(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._supervisor.socket)
            received = self._supervisor.receive()
            if received is None:
                self.quit()
                return
            for message in received:
                if message.kind == messages.WORKER:
                    self._worker_started(message.values[0], message.fds[0])
                elif message.kind == messages.WORKER_GONE:
                    self.counters.counter("ztunnel_worker_restarts").add()
                elif message.kind == messages.DRAIN:
                    self.quit()
                    return

    def quit(self) -> None:
        """Ends the process, after the last words of the workers."""
        self._ended.set()

    def request_shutdown(self) -> None:
        """As SIGTERM to the whole ztunnel."""
        os.kill(os.getppid(), signal.SIGTERM)

    def _worker_started(self, slot: int, fd: int) -> None:
        assert self._nursery is not None
        worker = WorkerLink(slot, Channel(socket.socket(fileno=fd)), self._from_worker)
        self._nursery.start_soon(self._serve_worker, worker)

    async def _serve_worker(self, worker: WorkerLink) -> None:
        old = self.workers.get(worker.slot)
        if old is not None:
            old.gone = True
        self.workers[worker.slot] = worker
        try:
            await worker.run()
        finally:
            self.aggregate.end(worker.name)
            if self.workers.get(worker.slot) is worker:
                del self.workers[worker.slot]

    def _from_worker(self, worker: WorkerLink, message: Message) -> None:
        kind, values = message.kind, message.values
        if kind == messages.LOGS:
            self._writer.queue.put(values[0])
        elif kind == messages.COUNTERS:
            try:
                self.aggregate.update(worker.name, values[0])
            except UpdateError as error:
                log.error("counters of worker %d are not taken in: %s", worker.slot, error)
        elif kind == messages.STARTED:
            worker.pid = values[0]
            if self._crl is not None and self._crl.data:
                worker.send(messages.REVOCATIONS, self._crl.data)
            self.feed.welcome(worker)
            self.pods.welcome(worker)
            self.readiness.done(PROXY_TASK)
            self._first_worker.set()
        elif kind == messages.POD_READY:
            self.pods.ready(worker, values[0], values[1], message.fds)
        elif kind == messages.POD_FAILED:
            self.pods.failed(worker, *values)
        elif kind == messages.CERTIFICATE_WANTED:
            assert self._nursery is not None
            self._nursery.start_soon(self._answer_certificate, worker, values[0])
        elif kind == messages.LOOKUP:
            assert self._nursery is not None
            self._nursery.start_soon(self._answer_lookup, worker, values[0])

    # ---- certificates

    async def _answer_certificate(self, worker: WorkerLink, uri: str) -> None:
        try:
            identity = Identity.parse(uri)
            worker.identities.add(uri)
            certificate = await self.certificates.fetch(identity)
        except (CertificateUnavailable, IdentityError) as error:
            worker.send(messages.CERTIFICATE_FAILED, uri, str(error))
        else:
            worker.send(messages.CERTIFICATE, certificate.to_bytes())

    def _certificate_changed(
        self, identity: Identity, certificate: WorkloadCertificate | None
    ) -> None:
        name = "ztunnel_certificate_expiry_timestamp_seconds"
        if certificate is None:
            self.counters.forget(name, identity.uri)
        else:
            self.counters.gauge(name, identity.uri).set(certificate.not_after)
        for worker in self.workers.values():
            if identity.uri not in worker.identities:
                continue
            if certificate is None:
                worker.send(
                    messages.CERTIFICATE_FAILED, identity.uri, "it may not be used any more"
                )
            else:
                worker.send(messages.CERTIFICATE, certificate.to_bytes())

    def _mesh_changed(self, changes: Changes) -> None:
        """Asks for the certificates of this node's workloads before anybody needs them."""
        node = self.config.node.node_name
        if not node or self.config.mode is ProxyMode.DEDICATED:
            return
        for uid in changes.workloads:
            workload = self.state.workload(uid)
            if workload is None or workload.node != node:
                continue
            if workload.tunnel_protocol is TunnelProtocol.HBONE or workload.native_tunnel:
                self._prefetched.add(workload.identity)
                self.certificates.prefetch(workload.identity)
        for identity in [*self._prefetched] if changes.removed_workloads else ():
            local = self.state.workloads_by_identity(identity)
            if not any(workload.node == node for workload in local):
                self._prefetched.discard(identity)
                self.certificates.forget(identity)

    async def _watch_revocations(self) -> None:
        crl = self._crl
        assert crl is not None
        while True:
            if crl.refresh():
                self.certificates.set_revocations(crl.current)
                for worker in self.workers.values():
                    worker.send(messages.REVOCATIONS, crl.data)
            await trio.sleep(_WATCH_EVERY)

    # ---- the mesh

    async def _start_proxies(self) -> None:
        """xDS first; pods only once the mesh is known."""
        config = self.config
        assert self._nursery is not None
        if config.xds.local_path is not None or config.xds.local_text is not None:
            await self._nursery.start(self._follow_local_file)
        if config.xds.address is not None:
            self._xds = self._xds_client(config.xds.address)
            self._nursery.start_soon(self._xds.run)
            await self._xds.warm.wait()
        self.readiness.done(STATE_TASK)
        await self._first_worker.wait()  # a pod can only be served by one
        if config.mode is ProxyMode.DEDICATED:
            assert config.workload is not None
            await self.pods.add(
                "dedicated",
                WorkloadInfo(
                    config.workload.name,
                    config.workload.namespace,
                    config.workload.service_account,
                ),
                None,
            )
            return
        self.zds = ZdsClient(self.pods, config.inpod_socket)
        self._nursery.start_soon(self._follow_pods)
        await self.zds.run()

    def _xds_client(self, address: str) -> XdsClient:
        config = self.config
        return XdsClient(
            ControlPlane(
                address,
                config.xds.roots,
                config.token,
                config.node.cluster_id,
                config.xds.headers,
                config.xds.alternative_hostname,
            ),
            node(config.node, config.xds.metadata),
            {ADDRESS_TYPE: not config.xds.on_demand, AUTHORIZATION_TYPE: True},
            self,
            self.counters,
            config.xds.lookup_timeout,
        )

    async def apply(
        self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]
    ) -> list[Rejection]:
        """One xDS response; see `ztunnel.xds.client.Handler`."""
        refused = await self.feed.apply_encoded(
            type_url, [(resource.name, resource.body) for resource in resources], removed
        )
        return [Rejection(name, reason) for name, reason in refused]

    async def _follow_pods(self) -> None:
        """Ready is who has applied a snapshot and still has the agent."""
        assert self.zds is not None
        ready = False
        while True:
            if self.zds.state.ready != ready:
                ready = not ready
                if ready:
                    self.readiness.done(PODS_TASK)
                else:
                    self.readiness.wait_for(PODS_TASK)
            await trio.sleep(0.1)

    async def _follow_local_file(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Applies the local file, and applies it again whenever it changes."""
        config = self.config.xds
        seen = ""
        started = False
        while True:
            try:
                text = config.local_text
                source = "LOCAL_XDS"
                if config.local_path is not None:
                    source = str(config.local_path)
                    text = await trio.Path(config.local_path).read_text()
                if text is not None and text != seen:
                    seen = text
                    loaded = read_resources(text, source)
                    self.static_config = {"path": source, "loadedAt": time.time()}
                    await self.feed.replace(loaded)
            except (OSError, ValueError, ResourceError) as error:
                if not started:
                    raise
                log.error("the last good version stays in force: %s", error)
            if not started:
                started = True
                task_status.started()
            await trio.sleep(_WATCH_EVERY)

    async def _answer_lookup(self, worker: WorkerLink, key: str) -> None:
        answered = False
        if self._xds is not None:
            try:
                await self._xds.lookup(ADDRESS_TYPE, key)
                answered = True
            except (LookupTimeout, ValueError) as error:
                log.warning("%s", error)
        worker.send(messages.LOOKED_UP, key, answered)

    # ---- admin

    async def connections(self) -> list[dict[str, Any]]:
        """Live connections of all workers."""
        found: list[dict[str, Any]] = []
        for worker in list(self.workers.values()):
            found += await worker.connections()
        return found

    def set_log_filter(self, chosen: LogFilter) -> None:
        """Changes what is logged, here and in the workers."""
        self.log_filter = chosen
        chosen.apply()
        for worker in self.workers.values():
            worker.send(messages.LOG_FILTER, str(chosen))


class _Authority:
    """The CA, or the reason why there is none."""

    def __init__(self, config: Config) -> None:
        self._client: CaClient | None = None
        if config.ca.address is not None:
            self._client = CaClient(
                config.ca.address,
                root=_root(config),
                token=config.token.path or config.token.literal,
                cluster_id=config.node.cluster_id,
                headers=config.ca.headers,
                server_name=config.ca.alternative_hostname,
                impersonate=config.mode is ProxyMode.SHARED,
            )

    async def sign(self, identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        """See `CertificateAuthority`."""
        if self._client is None:
            raise RuntimeError("CA_ADDRESS is empty: there is no certificate authority")
        return await self._client.sign(identity, csr_pem, ttl)


def _root(config: Config) -> Path | bytes | None:
    roots = config.ca.roots
    return roots.path if roots.path is not None else roots.read()


def main(config: Config, supervisor: socket.socket) -> int:
    """Runs the control process. The exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor tells us
    raise_file_limit()
    trio.run(Control(config, supervisor).run)
    return 0
