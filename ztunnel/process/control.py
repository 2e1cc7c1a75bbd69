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
from collections.abc import Iterator
from typing import Any, Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import LogFormat, UnknownPolicy
from ztunnel.linux.fds import raise_file_limit
from ztunnel.mesh.state import MeshState
from ztunnel.native import is_compiled
from ztunnel.process import messages
from ztunnel.process.admin import admin_sources
from ztunnel.process.cannot_start import CannotStart
from ztunnel.process.certificate_desk import CertificateDesk
from ztunnel.process.channel import Channel, ChannelError, Message, close_all
from ztunnel.process.children import CANNOT_START
from ztunnel.process.mesh_feed import MeshFeed
from ztunnel.process.mesh_source import MeshSource
from ztunnel.process.pod_source import PodSource
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
from ztunnel.zds.messages import WorkloadInfo

log = logging.getLogger("ztunnel.control")

_LOG_FLUSH: Final = 2.0  # seconds for the last log lines at the end
STATE_TASK: Final = "state manager"
PROXY_TASK: Final = "proxy"


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
        if config.proxy_enabled:
            self.readiness.wait_for(PROXY_TASK)
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
        self._mesh = MeshSource(config, self.feed, self.counters)
        self.local = self._mesh.local
        self._pod_source = PodSource(
            config, self.state, self.workers, self.certificates, self.readiness, self.counters
        )
        self.zds = self._pod_source.zds
        self._pods = self._pod_source.pods
        self._supervisor = Channel(supervisor, tolerant=True)
        self._ended = trio.Event()
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
        self.counters.gauge("ztunnel_compiled").set(float(is_compiled()))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._links.serve_in(nursery)
            await nursery.start(self.certificates.manager.run)
            self.certificates.read_revocations()
            async with serving(nursery, self._servers()):
                nursery.start_soon(self._read_supervisor)
                nursery.start_soon(self._start_proxies)
                nursery.start_soon(self.certificates.watch_revocations)
                nursery.start_soon(self._pods.retry_forever)
                await self._ended.wait()
            nursery.cancel_scope.cancel()
        self._pods.close()

    async def _start_proxies(self) -> None:
        """xDS first; pods only once the mesh is known."""
        assert self._nursery is not None
        await self._mesh.load(self._nursery)
        self.readiness.done(STATE_TASK)
        if not self.config.proxy_enabled:
            return
        await self._first_worker.wait()  # a pod can only be served by one
        with self._serving:
            await self._pod_source.follow(self._nursery)

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
        self._pods.drain()

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
            self._pods.held(worker, uid, info, netns_fd, kinds, message.fds)
        elif kind == messages.STARTED:
            worker.send(messages.LOG_FILTER, str(self.log_filter))
            self.certificates.welcome(worker)
            self._nursery.start_soon(self._welcome, worker, values[0])
        elif kind == messages.POD_READY:
            uid, serial, kinds = values
            self._pods.ready(worker, uid, serial, kinds, message.fds)
        elif kind == messages.POD_FAILED:
            self._pods.failed(worker, *values)
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
        await self._mesh.wait_until_known()
        # What a worker had found on demand before this process was there must not be lost.
        await self._mesh.look_up_all(looked_up)
        if not worker.gone:
            await self.feed.welcome(worker)
        if worker.gone:
            return  # without it there may be nobody to serve: readiness must not say otherwise
        self._pods.welcome(worker)
        self.readiness.done(PROXY_TASK)
        self._first_worker.set()

    async def _answer_lookup(self, worker: WorkerLink, key: str) -> None:
        worker.send(messages.LOOKED_UP, key, await self._mesh.look_up(key))

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
