"""A worker: moves bytes for all pods of the node, and nothing else.

It gets the mesh state, pods and certificates from the control process and
serves from what it has while that process is away. It imports neither gRPC
nor Kubernetes nor a metrics library: memory is paid per worker.
"""

import logging
import os
import pickle
import signal
import socket
import time
from collections.abc import Sequence
from typing import Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import UnknownPolicy
from ztunnel.linux.fds import raise_file_limit
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.mesh.changes import Batch
from ztunnel.mesh.state import MeshState
from ztunnel.process import messages
from ztunnel.process.channel import Channel, Message
from ztunnel.process.link import Link
from ztunnel.process.logs import WorkerLogs
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.context import Context
from ztunnel.proxy.pod import PodInfo, PodProxy
from ztunnel.relay.engine import Engine
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.shipping import Shipper
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.workload_certificate import WorkloadCertificate

log = logging.getLogger("ztunnel.worker")

_SHIP_EVERY: Final = 1.0  # seconds


class Worker:
    """One worker process.

    Args:
        supervisor: the channel to the supervisor; its end is ours.
    """

    def __init__(self, config: Config, slot: int, supervisor: socket.socket) -> None:
        self._config = config
        self._slot = str(slot)
        self._supervisor_socket = supervisor
        self._engine = Engine()
        self._state = MeshState(
            on_demand=config.xds.on_demand,
            ignore_unknown_policies=config.unknown_policy is UnknownPolicy.ALLOW,
        )
        self._counters = Counters()
        self._shipper = Shipper(self._counters)
        self._certificates = CertificateStore(self._ask_certificate)
        self._logs = WorkerLogs(config.telemetry, self._ship_logs)
        self._control: Link | None = None
        self._pods: dict[str, PodProxy] = {}
        self._waiting: dict[str, list[trio.Event]] = {}
        self._have_snapshot = False
        self._draining = False
        self._done = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._context: Context | None = None

    async def run(self) -> None:
        """Runs until told to end, or until the supervisor is gone."""
        async with trio.open_nursery() as engine_nursery:
            engine_nursery.start_soon(self._engine.run)
            engine_nursery.start_soon(self._engine.watch_deadlines)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._context = Context(
                    self._config,
                    self._slot,
                    self._engine,
                    nursery,
                    self._state,
                    self._certificates,
                    self._logs.access,
                    self._counters,
                    self._resolve,
                    self._look_up,
                )
                Link(
                    self._engine,
                    Channel(self._supervisor_socket),
                    self._from_supervisor,
                    self._done.set,
                )
                nursery.start_soon(self._housekeeping)
                await self._done.wait()
                for pod in list(self._pods.values()):
                    pod.close("connection closed due to connection drain")
                await trio.sleep(0.05)  # the last writes of the engine
                self._ship()
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            engine_nursery.cancel_scope.cancel()

    @property
    def context(self) -> Context:
        """What the connections share."""
        assert self._context is not None
        return self._context

    # ---- supervisor

    def _from_supervisor(self, message: Message) -> None:
        if message.kind == messages.CONTROL:
            self._join_control(Channel(socket.socket(fileno=message.fds[0])))
        elif message.kind == messages.DRAIN:
            self._drain(message.values[0])

    def _drain(self, seconds: float) -> None:
        if self._draining:
            return
        self._draining = True
        for pod in self._pods.values():
            pod.drain()
        self.context.spawn(self._end_when_drained, seconds)

    async def _end_when_drained(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while len(self.context.registry):  # noqa: ASYNC110  (it has no event, and needs none)
                await trio.sleep(0.1)
        self._done.set()

    # ---- control process

    def _join_control(self, channel: Channel) -> None:
        if self._control is not None:
            self._control.close()
        self._control = Link(self._engine, channel, self._from_control, self._control_lost)
        self._shipper.restart()
        self._control.send(messages.STARTED, os.getpid())
        self._certificates.control_back()

    def _control_lost(self) -> None:
        log.warning("the control process is gone; what is known goes on being served")
        self._control = None
        self._certificates.control_lost()
        for events in self._waiting.values():
            for event in events:
                event.set()

    def _from_control(self, message: Message) -> None:
        kind, values = message.kind, message.values
        if kind == messages.UPDATE:
            self._update(*values)
        elif kind == messages.POD:
            self._add_pod(message)
        elif kind == messages.POD_GONE:
            self._remove_pod(values[0])
        elif kind == messages.PODS_COMPLETE:
            for uid in [uid for uid in self._pods if uid not in values[0]]:
                self._remove_pod(uid)
        elif kind == messages.CERTIFICATE:
            self._certificates.received(WorkloadCertificate.from_bytes(values[0]))
        elif kind == messages.CERTIFICATE_FAILED:
            self._certificates.failed(*values)
        elif kind == messages.REVOCATIONS:
            self._revoke(RevocationList.parse(values[0]))
        elif kind == messages.LOG_FILTER:
            self._logs.set_filter(values[0])
        elif kind == messages.LOOKED_UP:
            self._looked_up(values[0], values[1])
        elif kind == messages.DUMP:
            assert self._control is not None
            self._control.send(messages.DUMPED, values[0], self.context.registry.describe())

    def _update(
        self,
        sequence: int,
        resources: bytes,
        removed: Sequence[str],
        removed_policies: Sequence[str],
        snapshot: bool,
    ) -> None:
        # Our own control process made this, from what it has checked.
        upserts = pickle.loads(resources)
        if snapshot:
            changes = self._state.replace(upserts)
            self._have_snapshot = True
        else:
            changes = self._state.apply(Batch(upserts, removed, removed_policies))
        if changes:
            self.context.registry.rejudge(self._state, changes)
            for pod in self._pods.values():
                pod.mesh_changed()
        if self._control is not None:
            self._control.send(messages.APPLIED, sequence)

    def _add_pod(self, message: Message) -> None:
        uid, name, namespace, account, has_namespace, kinds = message.values
        fds = list(message.fds)
        netns = NetworkNamespace(fds.pop(0)) if has_namespace else None
        listeners = {kind: socket.socket(fileno=fd) for kind, fd in zip(kinds, fds, strict=True)}
        known = self._pods.get(uid)
        if known is not None and _same(known.namespace, netns):
            if netns is not None:
                netns.close()
            for sock in listeners.values():
                sock.close()
            self._pod_ready(known)
            return
        if known is not None:
            self._remove_pod(uid)
        try:
            pod = PodProxy(self.context, PodInfo(uid, name, namespace, account), netns, listeners)
        except OSError as error:
            if netns is not None:
                netns.close()
            if self._control is not None:
                self._control.send(messages.POD_FAILED, uid, str(error))
            return
        self._pods[uid] = pod
        self.context.spawn(pod.run)
        pod.mesh_changed()
        self._pod_ready(pod)

    def _pod_ready(self, pod: PodProxy) -> None:
        if self._control is not None:
            sockets = pod.sockets()
            self._control.send(
                messages.POD_READY,
                pod.uid,
                list(sockets),
                fds=[sock.fileno() for sock in sockets.values()],
            )

    def _remove_pod(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is not None:
            pod.close("the pod left the mesh")

    def _revoke(self, revocations: RevocationList) -> None:
        self.context.pools.revocations = revocations
        for pod in self._pods.values():
            pod.refuse_revoked(revocations)

    def _ask_certificate(self, uri: str) -> bool:
        if self._control is None:
            return False
        self._control.send(messages.CERTIFICATE_WANTED, uri)
        return True

    # ---- questions

    async def _look_up(self, key: str) -> bool:
        """Asks the control plane for `key`; the state then holds what there is."""
        if self._control is None:
            log.warning("%s cannot be looked up: the control process is not there", key)
            return False
        event = trio.Event()
        waiting = self._waiting.setdefault(key, [])
        waiting.append(event)
        if len(waiting) == 1:
            self._control.send(messages.LOOKUP, key)
        try:
            with trio.move_on_after(self._config.xds.lookup_timeout) as limit:
                await event.wait()
        finally:
            waiting.remove(event)
            if not waiting:
                self._waiting.pop(key, None)
        return not limit.cancelled_caught

    def _looked_up(self, key: str, answered: bool) -> None:
        if answered:
            self._state.lookup_finished(key)
        for event in self._waiting.get(key, ()):
            event.set()

    async def _resolve(self, hostname: str) -> Sequence[str]:
        try:
            with trio.fail_after(5):
                found = await trio.socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
        except (OSError, trio.TooSlowError, UnicodeError) as error:
            log.warning("name %r does not resolve: %s", hostname, error)
            return ()
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    # ---- housekeeping

    async def _housekeeping(self) -> None:
        while True:
            await trio.sleep(_SHIP_EVERY)
            now = time.monotonic()
            for pod in list(self._pods.values()):
                pod.tick(now)
            self.context.registry.count()
            self._gauges()
            self._ship()

    def _gauges(self) -> None:
        counters, engine = self._counters, self._engine
        totals = [0, 0, 0, 0]
        for pod in self._pods.values():
            for index, count in enumerate(pod.tunnel_counts):
                totals[index] += count
        counters.gauge("ztunnel_tunnels", "outbound").set(totals[0])
        counters.gauge("ztunnel_tunnel_streams", "outbound").set(totals[1])
        counters.gauge("ztunnel_tunnels", "inbound").set(totals[2])
        counters.gauge("ztunnel_tunnel_streams", "inbound").set(totals[3])
        counters.gauge("ztunnel_engine_flows", self._slot).set(len(self.context.registry))
        rounds = counters.counter("ztunnel_engine_rounds", self._slot)
        rounds.value = float(engine.rounds)

    def _ship(self) -> None:
        if self._control is None or self._control.congested:
            return
        encoded = self._shipper.encode()
        if encoded is not None:
            self._control.send(messages.COUNTERS, encoded)

    def _ship_logs(self) -> None:
        """Lines are waiting: hand them over, unless the control process is slow to take them."""
        if self._control is not None and not self._control.congested:
            batch = self._logs.take()
            while batch:
                self._control.send(messages.LOGS, batch)
                batch = self._logs.take()


def _same(one: NetworkNamespace | None, other: NetworkNamespace | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.identity == other.identity


def main(config: Config, slot: int, supervisor: socket.socket) -> int:
    """Runs a worker process. The exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor tells us
    raise_file_limit()
    trio.run(Worker(config, slot, supervisor).run)
    return 0
