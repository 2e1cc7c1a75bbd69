"""A worker: moves bytes for all pods of the node, and nothing else.

It gets the mesh state, pods and certificates from the control process and
serves from what it has while that process is away. It imports neither gRPC
nor Kubernetes nor a metrics library: memory is paid per worker.
"""

import gc
import logging
import signal
import socket
import time
from typing import Any, Final

import trio

from ztunnel.config import Config
from ztunnel.config.model import ProxyMode, UnknownPolicy
from ztunnel.linux.fds import raise_file_limit
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.mesh.state import MeshState
from ztunnel.process import messages
from ztunnel.process.channel import Channel, Message
from ztunnel.process.gates import Gates
from ztunnel.process.link import Link
from ztunnel.process.mesh_copy import MeshCopy
from ztunnel.process.questions import Questions, resolve
from ztunnel.process.reports import Reports
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.proxy.context import Context
from ztunnel.proxy.gathering import LOOK_EVERY, Business, look_at
from ztunnel.proxy.local_pod import LocalPods, PodInfo
from ztunnel.proxy.pod import PodProxy
from ztunnel.relay.engine import Engine
from ztunnel.relay.probe import probe_paths
from ztunnel.telemetry.counters import Counters
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.workload_certificate import WorkloadCertificate

log = logging.getLogger("ztunnel.worker")

_SHIP_EVERY: Final = 1.0  # seconds
_LAST_ROUND: Final = 0.02  # seconds, for the engine to write what it has
_LAST_WORDS: Final = 1.0  # seconds at the end for a control process that is slow to read


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
        self._certificates = CertificateStore(self._ask_certificate)
        self._control: Link | None = None
        self._supervisor: Link | None = None
        self._pods: dict[str, PodProxy] = {}
        self._neighbours: LocalPods = {}
        self._mesh = MeshCopy(self._state, self._pods, lambda: self.context.registry)
        self._gates = Gates(config, self._slot, self._pods, self._neighbours)
        self._reports = Reports(config, self._slot, self._engine, self._counters, self._gates)
        self._questions = Questions(
            self._state,
            lambda: self._control is not None,
            lambda key: self._send(messages.LOOKUP, key),
            config.xds.lookup_timeout,
        )
        self._complaint = ""  # why the control process cannot be joined, as last said
        self._joined = 0  # number of the channel to the control process
        self._draining = False
        self._done = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._context: Context | None = None

    async def run(self) -> None:
        """Runs until told to end, or until the supervisor is gone."""
        async with trio.open_nursery() as engine_nursery:
            engine_nursery.start_soon(self._engine.run)
            engine_nursery.start_soon(self._engine.watch_deadlines)
            engine_nursery.start_soon(self._find_kernel_paths)
            engine_nursery.start_soon(self._open_gates)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._context = Context(
                    self._config,
                    self._slot,
                    self._engine,
                    nursery,
                    self._state,
                    self._certificates,
                    self._reports.logs.access,
                    self._counters,
                    resolve,
                    self._questions.look_up,
                )
                self._reports.tell_of(self._context.registry)
                self._supervisor = Link(
                    self._engine,
                    Channel(self._supervisor_socket, tolerant=True),
                    self._from_supervisor,
                    self._done.set,
                )
                nursery.start_soon(self._housekeeping)
                if self._context.has_company:
                    nursery.start_soon(self._gather)
                await self._done.wait()
                for pod in list(self._pods.values()):
                    pod.close("connection closed due to connection drain")
                await self._say_last_words()
                nursery.cancel_scope.cancel()
            engine_nursery.cancel_scope.cancel()

    async def _say_last_words(self) -> None:
        """The engine writes what is pending, and the control process hears the last of us."""
        await trio.sleep(_LAST_ROUND)
        self._reports.count(self.context, self._pods.values())
        with trio.move_on_after(_LAST_WORDS):
            self._reports.ship()
            await trio.sleep(_LAST_ROUND)
            # What was held back while the control process was slow to read.
            while self._reports.held_back:
                await trio.sleep(_LAST_ROUND)
                self._reports.ship()

    @property
    def context(self) -> Context:
        """What the connections share."""
        assert self._context is not None
        return self._context

    # ---- supervisor

    def _from_supervisor(self, message: Message) -> None:
        if message.kind == messages.CONTROL:
            self._joined = message.values[0]
            if message.fds:
                self._join_control(Channel(socket.socket(fileno=message.fds[0])))
            else:
                self._not_joined("no descriptor is left for the channel")
        elif message.kind == messages.DRAIN:
            self._drain(message.values[0])

    def _drain(self, seconds: float) -> None:
        if self._draining:
            return
        self._draining = True
        self._gates.drain()
        for pod in self._pods.values():
            pod.drain()
        self.context.spawn(self._end_when_drained, seconds)

    async def _end_when_drained(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            # Peers' tunnels close when they have heard of it and nothing is left in them.
            while len(self.context.registry) or self._tunnels_in():  # noqa: ASYNC110  (no event)
                await trio.sleep(0.05)
        left = len(self.context.registry)
        if left:
            log.warning("the time to drain is over, %d connections are cut", left)
        self._done.set()

    def _tunnels_in(self) -> int:
        return sum(pod.tunnel_counts[2] for pod in self._pods.values())

    # ---- control process

    def _join_control(self, channel: Channel) -> None:
        """There is one, or a new one: it is told what is served here, and asked for the rest."""
        if self._control is not None:
            self._control.close()
        self._control = control = Link(
            self._engine, channel, self._from_control, self._control_lost
        )
        self._reports.begin(control)
        control.send(messages.KERNEL_PATHS, self._reports.kernel_paths())
        try:
            for pod in self._pods.values():
                self._offer(pod)
        except OSError as error:
            control.close()
            self._not_joined(error.strerror or str(error))
            return
        control.send(messages.STARTED, sorted(self._state.looked_up))
        self._certificates.control_back()
        for key in self._questions.open:
            control.send(messages.LOOKUP, key)  # its predecessor was asked, and cannot answer
        self._complaint = ""
        self._reports.ship()

    def _not_joined(self, reason: str) -> None:
        """For lack of descriptors; the supervisor makes another attempt in a moment."""
        if reason != self._complaint:
            self._complaint = reason
            log.error("the control process cannot be joined: %s; trying again", reason)
        self._control_gone()

    async def _find_kernel_paths(self) -> None:
        """Tries the kernel paths. Nobody waits for it: flows that begin before are copied."""
        kernel = self._config.kernel
        paths = await probe_paths(kernel.sockmap, kernel.splice, kernel.ktls)
        self._engine.use_paths(paths)
        self._send(messages.KERNEL_PATHS, self._reports.kernel_paths())

    async def _open_gates(self) -> None:
        if await self._gates.open():
            self._gates.keep(self.context)
        self._send(messages.KERNEL_PATHS, self._reports.kernel_paths())

    def _offer(self, pod: PodProxy) -> None:
        info, sockets = pod.info, pod.sockets()
        namespace = [pod.namespace.fd] if pod.namespace is not None else []
        self._send(
            messages.POD_HELD, pod.uid, info.name, info.namespace, info.service_account,
            pod.namespace is not None, list(sockets),
            fds=[*namespace, *(sock.fileno() for sock in sockets.values())],
        )  # fmt: skip

    def _control_lost(self) -> None:
        log.warning("the control process is gone; what is known goes on being served")
        self._control_gone()

    def _control_gone(self) -> None:
        self._control = None
        self._reports.pause()
        self._certificates.control_lost()
        self._questions.give_up()
        if self._supervisor is not None:
            # Where only the channel broke, nobody else would know of it.
            self._supervisor.send(messages.JOIN_AGAIN, self._joined)

    def _send(self, kind: int, *values: Any, fds: list[int] | None = None) -> None:
        if self._control is not None:
            self._control.send(kind, *values, fds=fds)

    def _from_control(self, message: Message) -> None:
        kind, values = message.kind, message.values
        if kind == messages.UPDATE:
            sequence, *update = values
            self._mesh.update(*update)
            self._gates.stir()
            self._send(messages.APPLIED, sequence)
        elif kind == messages.SNAPSHOT:
            self._mesh.begin_snapshot(values[0])
        elif kind == messages.SNAPSHOT_END:
            self._mesh.end_snapshot()
            self._gates.stir()
        elif kind == messages.POD:
            self._add_pod(message)
        elif kind == messages.POD_GONE:
            self._remove_pod(values[0])
        elif kind == messages.CERTIFICATE:
            self._certificates.received(WorkloadCertificate.from_bytes(values[0]))
        elif kind == messages.CERTIFICATE_FAILED:
            self._certificates.failed(*values)
        elif kind == messages.CERTIFICATE_WITHDRAWN:
            self._certificates.withdrawn(*values)
            for pod in self._pods.values():
                pod.certificate_withdrawn(values[0])
        elif kind == messages.CERTIFICATE_FORGOTTEN:
            self._certificates.forgotten(*values)
        elif kind == messages.REVOCATIONS:
            self._revoke(RevocationList.parse(values[0]))
        elif kind == messages.LOG_FILTER:
            self._reports.logs.set_filter(values[0])
        elif kind == messages.LOOKED_UP:
            self._questions.looked_up(*values)
        elif kind == messages.DUMP:
            self._send(messages.DUMPED, values[0], self.context.registry.describe())

    def _add_pod(self, message: Message) -> None:
        uid, serial, name, namespace, account, has_namespace, kinds = message.values
        fds = list(message.fds)
        netns = NetworkNamespace(fds.pop(0)) if has_namespace else None
        listeners = {kind: socket.socket(fileno=fd) for kind, fd in zip(kinds, fds, strict=True)}
        info = PodInfo(uid, name, namespace, account)
        known = self._pods.get(uid)
        try:
            if known is not None and known.is_same(info, netns):
                if netns is not None:
                    netns.close()
                for sock in listeners.values():
                    sock.close()
                pod = known
            else:
                if known is not None:
                    self._remove_pod(uid)
                pod = self._start_pod(info, netns, listeners)
            sockets = pod.sockets()
            fds = [sock.fileno() for sock in sockets.values()]
            self._send(messages.POD_READY, uid, serial, list(sockets), fds=fds)
        except Exception as error:
            # Whatever it was, the node agent must hear that this pod is not served.
            if not isinstance(error, OSError):
                log.exception("pod %s/%s cannot be served", namespace, name)
            self._send(messages.POD_FAILED, uid, serial, str(error) or repr(error))

    def _start_pod(
        self, info: PodInfo, netns: NetworkNamespace | None, listeners: dict[str, socket.socket]
    ) -> PodProxy:
        try:
            if self._draining:
                for sock in listeners.values():
                    sock.close()
                raise RuntimeError("this ztunnel is being shut down")
            # Without a namespace it is the one workload of dedicated mode, or else ourselves.
            ourselves = netns is None and self._config.mode is ProxyMode.SHARED
            pod = PodProxy(
                self.context, self._neighbours, info, netns, listeners, only_tunnels=ourselves
            )
        except BaseException:
            if netns is not None:
                netns.close()
            raise
        self._pods[info.uid] = pod
        self._gates.joined(pod)
        self.context.spawn(pod.run)
        pod.mesh_changed()
        return pod

    def _remove_pod(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        self._mesh.forget(uid)
        if pod is None:
            return
        pod.close("the pod left the mesh")
        for identity in pod.identities:
            if not any(identity in other.identities for other in self._pods.values()):
                self._certificates.forget(identity)
                self.context.contexts.forget(identity)

    def _revoke(self, revocations: RevocationList) -> None:
        self.context.pools.revocations = revocations
        for pod in self._pods.values():
            pod.refuse_revoked(revocations)

    def _ask_certificate(self, uri: str) -> bool:
        if self._control is None:
            return False
        self._send(messages.CERTIFICATE_WANTED, uri)
        return True

    # ---- housekeeping

    async def _gather(self) -> None:
        business = Business()
        while True:
            await trio.sleep(LOOK_EVERY)
            if not self._draining:
                look_at(self._pods.values(), business)

    async def _housekeeping(self) -> None:
        while True:
            await trio.sleep(_SHIP_EVERY)
            now = time.monotonic()
            for pod in list(self._pods.values()):
                try:
                    pod.tick(now)
                except Exception:  # it must not cost the other pods, nor the worker
                    log.exception("housekeeping of pod %s failed", pod)
            self._gates.tend()
            self._reports.count(self.context, self._pods.values())
            self._reports.ship()


def main(config: Config, slot: int, supervisor: socket.socket) -> int:
    """Runs a worker process. The exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor tells us
    raise_file_limit()
    # Connections leave no cycles behind when they end, so there is little to be found.
    gc.set_threshold(10_000, 20, 50)
    trio.run(Worker(config, slot, supervisor).run)
    return 0
