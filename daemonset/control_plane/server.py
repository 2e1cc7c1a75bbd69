"""The control plane as a whole: source, translation, xDS, CA and status in one process."""

from __future__ import annotations

import gc
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import trio

from daemonset.control_plane.backend import Backend, FolderBackend
from daemonset.control_plane.ca.admission import Admission
from daemonset.control_plane.ca.authority import AuthorityHolder
from daemonset.control_plane.ca.service import CertificateService
from daemonset.control_plane.ca.serving import ServingCertificate
from daemonset.control_plane.ca.tokens import TokenSubject
from daemonset.control_plane.clients import Clients
from daemonset.control_plane.conditions import Judgement
from daemonset.control_plane.config import ControlPlaneConfig, ServingConfig
from daemonset.control_plane.grpc_server import GrpcThread, Listener
from daemonset.control_plane.mesh import Mesh
from daemonset.control_plane.metrics import ControlPlaneMetrics
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.status import StatusSources, status_handler
from daemonset.control_plane.translation.finding import Finding, Severity
from daemonset.control_plane.xds.service import DiscoveryService
from daemonset.control_plane.xds.subscription import Client
from ztunnel.telemetry.http_server import HttpServer, open_listeners

_log = logging.getLogger("daemonset.control_plane")

_ROTATION_CHECK = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a running control plane listens; ``xds`` is 0 where plaintext is off."""

    xds: int
    tls: int
    status: int

    def __str__(self) -> str:
        plain = f"plaintext xDS on port {self.xds}, " if self.xds else ""
        return f"{plain}xDS and certificates on {self.tls} (TLS), HTTP status on {self.status}"


class ControlPlane:
    """One control plane. Everything but ``run`` may be called from the trio thread at any time.

    Without a ``backend`` it stands on a folder, whose keys are opened or made at once
    (AuthorityError, UnsafeFileError, OSError).

    Args:
        config: see there.
        complete: changes the objects of the source before they are translated: a place to fill
            in what a folder leaves open, such as the addresses of pods. Called in a thread, may
            block, must not raise.
    """

    def __init__(
        self,
        config: ServingConfig,
        complete: Callable[[ObjectSet], ObjectSet] | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._config = config
        if backend is None:
            if not isinstance(config, ControlPlaneConfig):
                raise TypeError("without a backend a folder must be named: ControlPlaneConfig")
            backend = FolderBackend(config)
        self._backend = backend
        self._complete = complete
        self._metrics = ControlPlaneMetrics()
        self._mesh = Mesh(config.settings, self._metrics)
        self._source = backend.source
        self._captured: frozenset[tuple[str, str]] | None = (
            frozenset() if config.agents_report else None
        )
        self._authority = AuthorityHolder(backend.authority)
        self._verifier = backend.verifier
        self._discovery = DiscoveryService(self._mesh.snapshot, self._metrics.push_rejected)
        self._grpc = GrpcThread()
        self._changed = trio.Event()
        self._stale = True
        self._listeners: list[Callable[[ObjectSet], None]] = []
        self.objects = ObjectSet()
        self.captured: frozenset[tuple[str, str]] = frozenset()
        """Namespace and name of the pods that agents have captured, as published."""

    @property
    def roots_pem(self) -> str:
        """The roots to trust, for the control plane's own certificate and for workloads'."""
        return self._authority.get().roots_pem

    @property
    def findings(self) -> tuple[Finding, ...]:
        """About the objects in force."""
        return self._mesh.findings

    @property
    def complaints(self) -> list[tuple[Severity, str]]:
        """What is wrong with files and objects, each with "file:line"."""
        refused = [(Severity.ERROR, f"{problem}") for problem in self.problems]
        return refused + [
            (finding.severity, f"{self._place(finding)}: {finding}") for finding in self.findings
        ]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why files or objects are refused."""
        return self._source.problems

    @property
    def discovery_clients(self) -> list[Client]:
        """The xDS streams that are open now. From any thread but that of gRPC; may block."""
        return self._grpc.ask(lambda: self._discovery.clients)

    @property
    def generation(self) -> int:
        """Counts what has been published; 0 before anything was."""
        return self._mesh.snapshot.generation

    def mint_token(self, subject: TokenSubject, lifetime: float = 12 * 3600.0) -> str:
        """A token for a node's proxy or a pod.

        Args:
            lifetime: seconds.

        Raises:
            RuntimeError: this control plane does not make tokens.
        """
        if self._backend.signer is None:
            raise RuntimeError(f"tokens come from {self._backend}, not from here")
        return self._backend.signer.mint(subject, time.time(), lifetime)

    def report_captured(self, namespace: str, pod: str, captured: bool) -> None:
        """A node agent has taken a pod into the mesh, or lets it go.

        Raises:
            RuntimeError: the configuration does not say ``agents_report``.
        """
        if self._captured is None:
            raise RuntimeError("this control plane goes by labels, not by what agents report")
        before = self._captured
        key = (namespace, pod)
        self._captured = before | {key} if captured else before - {key}
        if self._captured != before:
            self._changed.set()

    def refresh(self) -> None:
        """Complete and translate the objects again: what ``complete`` fills in has changed."""
        self._stale = True
        self._changed.set()

    def on_objects(self, listener: Callable[[ObjectSet], None]) -> None:
        """Call ``listener`` after each change of the source, with all objects."""
        self._listeners.append(listener)

    async def run(self, *, task_status: trio.TaskStatus[Ports] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            FolderError: the folder cannot be taken into use.
            OSError: a port is taken.
        """
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._source.open(nursery)
                await self._take_objects()
                await self._publish(serving=False)
                await self._serve(task_status)
            except Exception as error:
                failure = error  # as it is, not in a group of the nursery's
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _serve(self, task_status: trio.TaskStatus[Ports]) -> None:
        listeners = await open_listeners([self._config.address], self._config.status_port)
        status = HttpServer(
            listeners,
            status_handler(self._status_sources()),
            loopback_names_only=self._config.address in ("127.0.0.1", "::1"),
        )
        try:
            ports = await trio.to_thread.run_sync(self._grpc.start, self._listen)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(status.serve)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._translate)
                nursery.start_soon(self._rotate)
                nursery.start_soon(self._backend.run)
                xds = ports[1] if len(ports) > 1 else 0
                result = Ports(xds=xds, tls=ports[0], status=status.addresses[0][1])
                _log.info("serves %s at %s: %s", self._backend, self._config.address, result)
                task_status.started(result)
        finally:
            for listener in listeners:
                listener.socket.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._grpc.stop)

    async def finish(self) -> None:
        """Return when it may end in peace."""
        await self._backend.finish()

    async def settled(self) -> None:
        """Wait until every connected client has acknowledged all that is in force."""
        while True:
            if await trio.to_thread.run_sync(self._all_up_to_date):
                return
            await trio.sleep(0.02)

    def _all_up_to_date(self) -> bool:
        def ask() -> bool:
            snapshot = self._mesh.snapshot
            return all(client.is_up_to_date(snapshot) for client in self._discovery.clients)

        return self._grpc.ask(ask)

    def _listen(self) -> list[Listener]:
        config = self._config
        admission = Admission(config.settings.trust_domain, config.node_proxies)
        certificates = CertificateService(
            self._authority,
            self._verifier,
            admission,
            lambda: self._mesh.directory,
            self._metrics,
            config.lifetimes,
        )
        names = (
            f"istiod.{config.settings.root_namespace}.svc",
            "localhost",
            "127.0.0.1",
            "::1",
            *config.server_names,
        )
        serving = ServingCertificate(self._authority, names)
        clients = Clients(
            self._verifier, admission, lambda: self._mesh.directory, lambda: self._mesh.snapshot
        )
        secure = [self._discovery.handler(clients.authenticate), certificates.handler()]
        listeners = [Listener(config.address, config.tls_port, secure, serving.credentials())]
        if config.xds_port is not None:
            open_handlers = [self._discovery.handler(None)]
            listeners.append(Listener(config.address, config.xds_port, open_handlers, None))
        return listeners

    async def _watch(self) -> None:
        while True:
            await self._source.next_change()
            self.refresh()

    async def _take_objects(self) -> None:
        self._stale = False
        objects = self._source.objects
        if self._complete is not None:
            objects = await trio.to_thread.run_sync(self._complete, objects)
        self.objects = objects
        if self._captured is not None:
            # A pod of the same name that comes later has not been captured.
            self._captured = frozenset(key for key in self._captured if key in self.objects.pods)
        for listener in self._listeners:
            listener(self.objects)

    async def _translate(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            try:
                if self._stale:
                    await self._take_objects()
                await self._publish(serving=True)
            except Exception:
                # What is in force is better than nothing, and the next change may be the cure.
                _log.exception("the objects cannot be translated: what was in force stays")

    async def _publish(self, *, serving: bool) -> None:
        """A large mesh takes a while, and clients are answered meanwhile."""
        captured = self._captured
        snapshot = await trio.to_thread.run_sync(
            self._mesh.update, self.objects, captured, self._place, len(self.problems)
        )
        self._backend.judged(
            Judgement(self.objects, self._mesh.services, self._mesh.findings, self.problems)
        )
        if serving:
            self._grpc.call(lambda: self._discovery.publish(snapshot))
        else:
            self._discovery.publish(snapshot)
        self.captured = captured or frozenset()

    async def _rotate(self) -> None:
        while True:
            await trio.sleep(_ROTATION_CHECK)
            try:
                authority = await self._backend.read_authority()
            except Exception:
                _log.exception("the authority cannot be read again: the one in force stays")
                continue
            if authority != self._authority.get():
                self._authority.replace(authority)
                await self._backend.hand_out_roots(authority.roots_pem)
                _log.info("the authority has changed")

    def _place(self, finding: Finding) -> str:
        return self._source.place(finding.object, finding.field)

    def _status_sources(self) -> StatusSources:
        return StatusSources(
            ready=lambda: self.generation > 0,
            snapshot=lambda: self._mesh.snapshot,
            findings=lambda: self.findings,
            problems=lambda: self.problems,
            off=lambda: self._source.off,
            place=self._place,
            clients=self._list_clients,
            metrics=self._metrics,
        )

    def _list_clients(self) -> list[dict[str, object]]:
        def ask() -> list[dict[str, object]]:
            return [
                {
                    "peer": client.peer,
                    "node_id": client.node_id,
                    "node_name": client.node_name,
                    "identity": client.access.identity,
                    "connected_at": client.connected_at,
                    "types": {name: asdict(item) for name, item in client.status().items()},
                }
                for client in self._discovery.clients
            ]

        return self._grpc.ask(ask)


class _Serving(trio.TaskStatus[Ports]):
    """What happens once a process of its own serves."""

    def started(self, value: object = None) -> None:
        # Thousands of objects that live as long as their pods: to search them for garbage again
        # and again would cost each push a tenth of a second.
        gc.collect()
        gc.freeze()


async def run_until_signal(plane: ControlPlane) -> None:
    """Serve until SIGINT or SIGTERM, in a process of its own. Raises what ``ControlPlane.run``
    raises, in a group."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(plane.run, task_status=_Serving()))

            async def end() -> None:
                await plane.finish()
                nursery.cancel_scope.cancel()

            async for _ in signals:
                nursery.start_soon(end)
