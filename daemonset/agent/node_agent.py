"""The node agent on Kubernetes: everything that one node needs, as the DaemonSet runs it."""

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import trio

from daemonset.agent.agent import Agent, AgentConfig
from daemonset.agent.agent_metrics import AgentMetrics
from daemonset.agent.book_source import BookSource
from daemonset.agent.cni_chain import Entry
from daemonset.agent.cni_install import CniFolders, CniInstaller
from daemonset.agent.cni_server import CniServer
from daemonset.agent.enrolment import EnrolmentOptions
from daemonset.agent.pod_book import PodBook
from daemonset.agent.pod_notes import PodNotes
from daemonset.agent.pod_watch import watch_pods
from daemonset.agent.proc_netns import ProcResolver
from daemonset.agent.starting import Starting
from daemonset.agent.unenrolled_file import keep_list
from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient
from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import HttpServer, open_listeners
from ztunnel.telemetry.routes import Route, router

logger = logging.getLogger("daemonset.agent")

LEAVE_SECONDS = 20.0
"""For all pods to leave the mesh when the agent is taken off the node for good."""
_ASK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class NodeAgentConfig:
    """`agent_ns` and `daemon_set` name what runs us ("" outside a cluster: the rules then stay)."""

    node: str
    agent: AgentConfig
    cni: CniFolders | None
    state_dir: Path
    root: Path = Path("/")
    excluded_from_plugin: tuple[str, ...] = ()
    health_port: int = 8000
    metrics_port: int = 15014
    agent_ns: str = ""
    daemon_set: str = ""
    pods: EnrolmentOptions = field(default_factory=EnrolmentOptions)


class NodeAgent:
    """Runs until told to stop; what it has set up stays, unless it is being uninstalled."""

    def __init__(self, config: NodeAgentConfig, client: KubeClient) -> None:
        """Raises OSError and MarkError as `Agent` does."""
        self._config = config
        self._client = client
        self._source = BookSource(PodBook())
        self._agent = Agent(config.agent, ProcResolver(config.agent.proc, config.root))
        socket_path = config.agent.run_dir / "cni.sock"
        unenrolled = config.state_dir / "unenrolled-namespaces"
        self._unenrolled = unenrolled
        self._cni = CniServer(socket_path, Starting(self._source, self._agent).answer)
        self._installer: CniInstaller | None = None
        if config.cni is not None:
            # The plugin runs on the node itself, where our folders have the same names.
            entry = Entry(str(socket_path), str(unenrolled), config.excluded_from_plugin)
            self._installer = CniInstaller(config.cni, entry)
        self._notes = PodNotes(client, config.node, self._source, self._agent)
        self._metrics = AgentMetrics(
            lambda: self._agent.status, lambda: self._cni.answers, lambda: not self._not_installed()
        )
        self._serving = False

    @property
    def mark(self) -> int:
        """What ztunnel is to set on its sockets (PACKET_MARK)."""
        return self._agent.mark

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.render()

    async def run(self, stop: trio.Event) -> None:
        """Work until `stop`. Raises what `Agent.run` and the servers raise."""
        async with trio.open_nursery() as nursery:
            await self._open_servers(nursery)
            nursery.start_soon(watch_pods, self._client, self._config.node, self._source)
            nursery.start_soon(keep_list, self._unenrolled, self._source, self._config.pods)
            await nursery.start(self._agent.run, self._source)
            await nursery.start(self._cni.run)
            self._serving = True
            # The plugin comes last: from then on the node's pods wait for us.
            installing = trio.CancelScope()
            if self._installer is not None:
                nursery.start_soon(self._install, self._installer, installing)
            nursery.start_soon(self._notes.run)
            logger.info("the agent of node %s is at work", self._config.node)
            await stop.wait()
            if await self._is_for_good():
                installing.cancel()
                await self._take_off()
            nursery.cancel_scope.cancel()

    async def _install(self, installer: CniInstaller, scope: trio.CancelScope) -> None:
        with scope:
            await installer.run()

    # ---- health and metrics

    def _not_installed(self) -> str:
        return self._installer.complaint if self._installer is not None else ""

    async def _ready(self, request: Request) -> Response:
        wrong = self._not_installed() if self._serving else "pods are still being looked at"
        if wrong:
            return Response(f"not ready: {wrong}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"ready\n")

    async def _alive(self, request: Request) -> Response:
        return Response(b"alive\n")

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self.metrics(), content_type="text/plain; version=0.0.4")

    async def _open_servers(self, nursery: trio.Nursery) -> None:
        health = router(
            {
                "/readyz": Route(self._ready, ("GET",), "whether pods of this node may start"),
                "/healthz": Route(self._alive, ("GET",), "whether this process runs"),
            }
        )
        metrics = router({"/metrics": Route(self._show_metrics, ("GET",), "for Prometheus")})
        for port, handler in (
            (self._config.health_port, health),
            (self._config.metrics_port, metrics),
        ):
            if port:
                server = HttpServer(await open_listeners(["::"], port), handler)
                nursery.start_soon(server.serve)

    # ---- the end

    async def _is_for_good(self) -> bool:
        """Whether the agent is being taken off, and not replaced by its next version."""
        config = self._config
        if not config.daemon_set:
            return False
        path = f"/apis/apps/v1/namespaces/{config.agent_ns}/daemonsets/{config.daemon_set}"
        try:
            with trio.fail_after(_ASK_SECONDS):
                found = await self._client.call("GET", path)
        except ApiError as error:
            # Without rights to look there is nothing left of us in the cluster.
            return error.status in (401, 403, 404)
        except (ApiUnavailableError, trio.TooSlowError) as error:
            logger.warning("cannot ask whether this is for good (%s): everything stays", error)
            return False
        return "deletionTimestamp" in found["metadata"]

    async def _take_off(self) -> None:
        logger.info("the agent is being uninstalled: pods leave the mesh")
        if self._installer is not None:
            try:
                for change in await trio.to_thread.run_sync(self._installer.withdraw):
                    logger.info("%s", change)
            except OSError as error:
                logger.error("the CNI plugin cannot be withdrawn: %s", error)
        with trio.move_on_after(LEAVE_SECONDS):
            await self._agent.dissolve()
        left = [pod for pod in self._agent.status.pods if not pod.out_of_mesh]
        for pod in left:
            logger.error(
                "%s/%s is still %s: %s", pod.namespace, pod.name, pod.state.value, pod.reason
            )
        if not left:
            logger.info("nothing of the mesh is left on this node")
