"""The control process: everything of a ztunnel that is not moving bytes.

It talks to the node agent (ZDS), the control plane (xDS) and the certificate
authority, tells the workers what they need, writes their log lines, sums up
their counters, and answers readiness, admin and metrics requests. When it
dies the workers go on with what they have, and tell its successor what that
is; they hear from it only once it knows the mesh itself.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import LogFormat, ProxyMode, UnknownPolicy
from ztunnel.linux.fds import raise_file_limit
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.native import is_compiled
from ztunnel.process import messages
from ztunnel.process.admin import admin_sources
from ztunnel.process.ahead import GRACE
from ztunnel.process.cannot_start import CannotStart
from ztunnel.process.certificate_desk import CertificateDesk
from ztunnel.process.channel import Channel, ChannelError, Message, close_all
from ztunnel.process.children import CANNOT_START
from ztunnel.process.local_mesh import LocalMesh
from ztunnel.process.mesh_feed import ADDRESS_TYPE, AUTHORIZATION_TYPE, MeshFeed
from ztunnel.process.pods import Pods
from ztunnel.process.servers import Server, serving
from ztunnel.process.worker_link import WorkerLink
from ztunnel.process.worker_links import WorkerLinks
from ztunnel.telemetry.admin import admin_handler
from ztunnel.telemetry.aggregate import Aggregate, UpdateError
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_format import drop_notice, install
from ztunnel.telemetry.log_writer import LogWriter
from ztunnel.telemetry.metrics_server import metrics_handler
from ztunnel.telemetry.process_metrics import measure
from ztunnel.telemetry.readiness import Readiness
from ztunnel.telemetry.shipping import Shipper
from ztunnel.xds.channel import ControlPlane
from ztunnel.xds.client import LookupTimeout, XdsClient
from ztunnel.xds.messages import node
from ztunnel.xds.protocol import Rejection, Resource
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

_LOG_FLUSH: Final = 2.0  # seconds for the last log lines at the end
_WARM_UP: Final = 10.0  # seconds that readiness waits for the CA
_LOOKUPS_AT_ONCE: Final = 64

STATE_TASK: Final = "state manager"
PROXY_TASK: Final = "proxy"
OWN_UID: Final = "own"  # in place of the uid that an agent would give
OWN_RETRY: Final = 1.0  # seconds

PODS_TASK: Final = "workload proxy manager"
CERTIFICATES_TASK: Final = "certificates"


class Control:
    """The control process.

    Args:
        supervisor: our end of the channel to the supervisor.

    Raises:
        ValueError: the configuration names something useless.
    """

    def __init__(self, config: Config, supervisor: socket.socket) -> None:
        telemetry = config.telemetry
        as_json = telemetry.log_format is LogFormat.JSON
        self.config = config
        self.log_filter = LogFilter.parse(telemetry.log_filter)
        self._writer = LogWriter(sys.stdout.fileno(), telemetry.log_queue, drop_notice(as_json))
        install(self._writer.queue, self.log_filter, as_json)
        self.state = MeshState(
            on_demand=config.xds.on_demand,
            ignore_unknown_policies=config.unknown_policy is UnknownPolicy.ALLOW,
        )
        self.counters = Counters()
        self.aggregate = Aggregate()
        self.readiness = Readiness(STATE_TASK)
        self._links = WorkerLinks(
            self.counters,
            self.aggregate,
            self._from_worker,
            self._nobody_left,
            self._writer.queue.put,
            as_json,
        )
        self.workers = self._links.workers
        self._shipper = Shipper(self.counters)
        self.feed = MeshFeed(self.state, lambda: list(self.workers.values()))
        self.certificates = CertificateDesk(config, self.state, self.workers, self.counters)
        self.pods = Pods(self.workers, self.counters, self._adopt)
        self.zds = ZdsClient(self.pods, config.inpod_socket, self._zds_failed)
        self.local = LocalMesh(self.feed, config.xds.local_path, config.xds.local_text)
        self._xds: XdsClient | None = None
        self._supervisor = Channel(supervisor, tolerant=True)
        self._ended = trio.Event()
        self._mesh_known = trio.Event()
        self._first_worker = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._serving = trio.CancelScope()

    async def run(self) -> None:
        """Runs until the supervisor says that it is over, or is gone.

        Raises:
            CannotStart: see there.
        """
        config = self.config
        self.feed.listen(self.certificates.mesh_changed)
        self.counters.gauge("istio_build", "ztunnel", config.node.istio_version).set(1)
        self.counters.gauge("ztunnel_compiled").set(is_compiled())
        if config.proxy_enabled:
            self.readiness.wait_for(PROXY_TASK)
            self.readiness.wait_for(CERTIFICATES_TASK)
            if config.mode is ProxyMode.SHARED:
                self.readiness.wait_for(PODS_TASK)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._links.serve_in(nursery)
            await nursery.start(self.certificates.manager.run)
            self.certificates.read_revocations()
            async with serving(nursery, self._servers()):
                nursery.start_soon(self._read_supervisor)
                nursery.start_soon(self._start_proxies)
                nursery.start_soon(self.certificates.watch_revocations)
                nursery.start_soon(self.pods.retry_forever)
                await self._ended.wait()
            nursery.cancel_scope.cancel()
        self.pods.close()

    async def close_log(self) -> None:
        """Writes down what is still to be said."""
        await trio.to_thread.run_sync(self._writer.close, _LOG_FLUSH)

    # ---- servers

    def _servers(self) -> list[Server]:
        config, telemetry = self.config, self.config.telemetry
        everywhere = ("::",) if config.sockets.ipv6 else ("0.0.0.0",)
        loopback = ("127.0.0.1", "::1")
        admin = admin_handler(admin_sources(self), config.node.istio_version)
        return [
            Server(everywhere, telemetry.readiness_port, self.readiness.handler()),
            Server(everywhere, telemetry.stats_port, metrics_handler(self._metrics)),
            Server(loopback, telemetry.admin_port, admin, own_machine_only=True),
        ]

    def _metrics(self) -> dict[Any, list[float]]:
        measure(self.counters)
        self.counters.gauge("ztunnel_workers").set(
            sum(worker.welcome for worker in self.workers.values())
        )
        self.counters.counter("ztunnel_log_lines_dropped").value = self._writer.queue.dropped
        state = self.zds.state
        self.counters.gauge("workload_manager_active_proxy_count").set(len(state.running))
        self.counters.gauge("workload_manager_pending_proxy_count").set(len(state.pending))
        encoded = self._shipper.encode()
        if encoded is not None:
            self.aggregate.update("control", encoded)
        return self.aggregate.snapshot()

    def _adopt(self, uid: str, info: WorkloadInfo, netns_fd: int) -> bool:
        return self.zds.adopt(uid, info, netns_fd)

    def _zds_failed(self, reason: str) -> None:
        self.counters.counter("ztunnel_zds_errors", reason).add()

    # ---- supervisor

    async def _read_supervisor(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._supervisor.socket)
            try:
                received = self._supervisor.receive()
            except (OSError, ChannelError) as error:
                log.error("the channel to the supervisor broke: %s", error)
                received = None
            if received is None:
                self._ended.set()
                return
            for message in received:
                if message.kind == messages.WORKER and not message.fds:
                    # The worker sees its own end close, and asks for another channel.
                    log.error("no descriptor is left for worker %d", message.values[0])
                elif message.kind == messages.WORKER:
                    self._links.joined(*message.values, fd=message.fds[0])
                elif message.kind == messages.WORKER_GONE:
                    self._links.gone(*message.values)
                elif message.kind == messages.DRAIN:
                    self._drain()
                elif message.kind == messages.END:
                    self._ended.set()
                    return

    def _drain(self) -> None:
        """The workers let their connections end; nothing new is taken on here either."""
        self.readiness.wait_for("drain")
        self._serving.cancel()
        self.pods.drain()

    def request_shutdown(self) -> None:
        """As SIGTERM to the whole ztunnel."""
        os.kill(os.getppid(), signal.SIGTERM)

    # ---- workers

    def _nobody_left(self) -> None:
        if self.config.proxy_enabled:
            self.readiness.wait_for(PROXY_TASK)

    def _from_worker(self, worker: WorkerLink, message: Message) -> None:
        kind, values = message.kind, message.values
        assert self._nursery is not None
        if kind == messages.LOGS:
            self._writer.queue.put(values[0])
        elif kind == messages.COUNTERS:
            try:
                self.aggregate.update(worker.name, values[0])
            except UpdateError as error:
                log.error("counters of worker %d are not taken in: %s", worker.slot, error)
        elif kind == messages.POD_HELD:
            uid, name, namespace, account, has_namespace, kinds = values
            netns_fd = message.fds.pop(0) if has_namespace else None
            info = WorkloadInfo(name, namespace, account)
            self.pods.held(worker, uid, info, netns_fd, kinds, message.fds)
        elif kind == messages.STARTED:
            worker.send(messages.LOG_FILTER, str(self.log_filter))
            self.certificates.welcome(worker)
            self._nursery.start_soon(self._welcome, worker, values[0])
        elif kind == messages.POD_READY:
            uid, serial, kinds = values
            self.pods.ready(worker, uid, serial, kinds, message.fds)
        elif kind == messages.POD_FAILED:
            self.pods.failed(worker, *values)
        elif kind == messages.CERTIFICATE_WANTED:
            self._nursery.start_soon(self.certificates.answer, worker, values[0])
        elif kind == messages.LOOKUP:
            self._nursery.start_soon(self._answer_lookup, worker, values[0])
        else:
            close_all(message.fds)
            log.error("worker %d sent a message of unknown kind %d", worker.slot, kind)

    async def _welcome(self, worker: WorkerLink, looked_up: list[str]) -> None:
        """Gives a worker the mesh and its pods, once the mesh is known here."""
        await self._links.read_predecessors(worker)
        await self._mesh_known.wait()
        await self._look_up_again(looked_up)
        if not worker.gone:
            await self.feed.welcome(worker)
        if worker.gone:
            return  # without it there may be nobody to serve: readiness must not say otherwise
        self.pods.welcome(worker)
        self.readiness.done(PROXY_TASK)
        self._first_worker.set()

    async def _look_up_again(self, keys: list[str]) -> None:
        """What a worker had found on demand before this process was there must not be lost."""
        limit = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)

        async def look_up(key: str) -> None:
            async with limit:
                await self._look_up(key)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(look_up, key)

    # ---- the mesh

    async def _start_proxies(self) -> None:
        """xDS first; pods only once the mesh is known."""
        config = self.config
        assert self._nursery is not None
        if config.xds.local_path is not None or config.xds.local_text is not None:
            try:
                await self.local.load()
            except (OSError, ValueError, ResourceError) as error:
                raise CannotStart(str(error)) from error
            self._nursery.start_soon(self.local.watch)
        if config.xds.address is not None:
            self._xds = self._xds_client(config.xds.address)
            self._nursery.start_soon(self._xds.run)
            await self._xds.warm.wait()
        self._mesh_known.set()
        self.readiness.done(STATE_TASK)
        if not config.proxy_enabled:
            return
        await self._first_worker.wait()  # a pod can only be served by one
        with self._serving:
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
                self._nursery.start_soon(self._serve_own, info)
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
        if self.feed.waits_for_policies and self._nursery is not None:
            self._nursery.start_soon(self._settle)
        return [Rejection(name, reason) for name, reason in refused]

    async def _settle(self) -> None:
        await trio.sleep(GRACE)
        await self.feed.settle()

    async def _answer_lookup(self, worker: WorkerLink, key: str) -> None:
        worker.send(messages.LOOKED_UP, key, await self._look_up(key))

    async def _look_up(self, key: str) -> bool:
        """Whether the control plane answered for `key`; the state then holds what there is."""
        if self._xds is None:
            return False
        try:
            await self._xds.lookup(ADDRESS_TYPE, key)
        except (LookupTimeout, ValueError) as error:
            log.warning("%s", error)
            return False
        return True

    # ---- the pods

    async def _serve_own(self, info: WorkloadInfo) -> None:
        """Serves the workload of our own namespace, of which no agent tells."""
        complaint = ""
        while not self._ended.is_set():
            try:
                await self.pods.add(OWN_UID, info, None)
            except RuntimeError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("%s cannot be served: %s", info, complaint)
                await trio.sleep(OWN_RETRY)
            else:
                return

    async def _follow_pods(self) -> None:
        """Ready is who has applied a snapshot and still has the agent."""
        ready = False
        while True:
            if self.zds.state.ready != ready:
                ready = not ready
                if ready:
                    self.readiness.done(PODS_TASK)
                    await self._warm_up()
                else:
                    self.readiness.wait_for(PODS_TASK)
            await trio.sleep(0.1)

    async def _warm_up(self) -> None:
        """At first, ready is only who has asked the CA for all that the pods need."""
        if CERTIFICATES_TASK not in self.readiness.pending:
            return
        identities = []
        for info in self.pods.known.values():
            workload = self.state.local_workload(
                info.name, info.namespace, info.service_account, self.config.node.node_name
            )
            if workload is not None and workload.tunnel_protocol is TunnelProtocol.HBONE:
                identities.append(workload.identity)
        missing = await self.certificates.settled(identities, _WARM_UP)
        if missing:
            log.warning(
                "the CA has not answered within %gs for %s; readiness waits no longer",
                _WARM_UP, ", ".join(missing),
            )  # fmt: skip
        self.readiness.done(CERTIFICATES_TASK)

    # ---- admin

    async def connections(self) -> list[dict[str, Any]]:
        """Live connections of all workers."""
        found: list[dict[str, Any]] = []

        async def ask(worker: WorkerLink) -> None:
            found.extend(await worker.connections())

        async with trio.open_nursery() as nursery:
            for worker in list(self.workers.values()):
                nursery.start_soon(ask, worker)
        return found

    def set_log_filter(self, chosen: LogFilter) -> None:
        """Changes what is logged, here and in the workers."""
        self.log_filter = chosen
        chosen.apply()
        for worker in self.workers.values():
            worker.send(messages.LOG_FILTER, str(chosen))


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _run(control: Control) -> int:
    status = 0
    try:
        await control.run()
    except* CannotStart as group:
        for error in _leaves(group):
            log.error("cannot start: %s", error)
        status = CANNOT_START
    finally:
        with trio.CancelScope(shield=True):
            await control.close_log()
    return status


def main(config: Config, supervisor: socket.socket) -> int:
    """Runs the control process. The exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor tells us
    raise_file_limit()
    try:
        control = Control(config, supervisor)
    except ValueError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return CANNOT_START
    return trio.run(_run, control)
