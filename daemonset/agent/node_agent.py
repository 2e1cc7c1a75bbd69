"""The node agent on Kubernetes: everything that one node needs, as the DaemonSet runs it."""

import json
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

import trio

from daemonset.agent.agent import Agent, AgentConfig
from daemonset.agent.agent_metrics import AgentMetrics
from daemonset.agent.book_source import BookSource
from daemonset.agent.cni_chain import Entry
from daemonset.agent.cni_install import CniFolders, CniInstaller
from daemonset.agent.cni_server import CniServer
from daemonset.agent.enrolment import EnrolmentOptions
from daemonset.agent.owners import (
    PATIENCE,
    look_for_others,
    only_agent,
    wait_unserved,
    watch_socket,
)
from daemonset.agent.pod_book import PodBook
from daemonset.agent.pod_notes import REDIRECTION, PodNotes
from daemonset.agent.pod_watch import watch_pods
from daemonset.agent.pods import Pod
from daemonset.agent.proc_netns import ProcResolver
from daemonset.agent.report import WITHDRAW, Chain, Feature, NodeReport, make_report
from daemonset.agent.report_writer import ReportWriter
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
_PROBE_SECONDS = 60.0
_PUSH_SECONDS = 2.0
"""For the control plane to see that an annotation is gone, and for all proxies to hear of it."""


@dataclass(frozen=True, slots=True)
class NodeAgentConfig:
    """`agent_ns`, `daemon_set` and `pod` name what runs us ("" outside a cluster: the rules then
    stay, and nobody is told of this node). `patience`: seconds for an agent before this one."""

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
    pod: str = ""
    patience: float = PATIENCE
    pods: EnrolmentOptions = field(default_factory=EnrolmentOptions)


class NodeAgent:
    """Runs until told to stop; what it has set up stays, unless it is being uninstalled."""

    def __init__(self, config: NodeAgentConfig, client: KubeClient) -> None:
        """Raises OSError and MarkError as `Agent` does."""
        self._config = config
        self._client = client
        self._source = BookSource(PodBook())
        resolver = ProcResolver(config.agent.proc, config.root)
        self._agent = Agent(config.agent, resolver, self._everybody_told)
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
        self._features: tuple[Feature, ...] = ()
        self._withdrawn = ""  # the value of the label that has been followed
        self._left: tuple[str, ...] = ()
        self._taking_off = trio.Lock()

    @property
    def mark(self) -> int:
        """What ztunnel is to set on its sockets (PACKET_MARK)."""
        return self._agent.mark

    def metrics(self) -> bytes:
        """Prometheus text."""
        return self._metrics.render()

    async def run(self, stop: trio.Event) -> None:
        """Work until `stop`. Raises what `Agent.run` and the servers raise, and NotAloneError."""
        config = self._config
        who = f"pod {config.agent_ns}/{config.pod}" if config.pod else f"agent of {config.node}"
        async with only_agent(config.agent.run_dir / "agent.lock", who, config.patience):
            await wait_unserved(config.agent.zds_path, config.patience)
            own = (config.agent_ns, config.daemon_set)
            await look_for_others(self._client, config.node, config.agent.zds_path.parent, own)
            await self._work(stop)

    async def _work(self, stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            await self._open_servers(nursery)
            nursery.start_soon(watch_pods, self._client, self._config.node, self._source)
            nursery.start_soon(keep_list, self._unenrolled, self._source, self._config.pods)
            await self._source.wait_complete()
            withdrawing = bool(self._withdrawal())
            if withdrawing:
                self._agent.leave(_WITHDRAWN)  # nobody is to be captured before
            # Before all pods have been looked at: one that leaves waits until it has been told.
            nursery.start_soon(self._notes.run)
            await nursery.start(self._agent.run, self._source)
            nursery.start_soon(watch_socket, self._config.agent.zds_path)
            await nursery.start(self._cni.run)
            self._serving = True
            # The plugin comes last: from then on the node's pods wait for us.
            installing = trio.CancelScope()
            if self._installer is not None and not withdrawing:
                nursery.start_soon(self._install, self._installer, installing)
            nursery.start_soon(self._tell)
            nursery.start_soon(self._follow_withdrawal, installing, stop)
            nursery.start_soon(self._follow_deletion, installing)
            logger.info("the agent of node %s is at work", self._config.node)
            await stop.wait()
            if not self._withdrawn and await self._is_for_good():
                installing.cancel()
                with trio.move_on_after(LEAVE_SECONDS):
                    await self._take_off()
                self._say_what_is_left()
            nursery.cancel_scope.cancel()

    async def _tell(self) -> None:
        """The report of this node, for people elsewhere."""
        config = self._config
        if not config.pod:
            return
        self._features = await probe(config.agent.proc)
        writer = ReportWriter(
            self._client, config.agent_ns, config.pod, self._report, self._agent.next_change
        )
        await writer.run()

    def _report(self) -> NodeReport:
        chain = None
        if self._installer is not None:
            file, plugins = self._installer.configuration
            chain = Chain(file, plugins, self._installer.complaint)
        return make_report(
            version("ambientd"),
            self._agent.status,
            self._features,
            chain,
            self._withdrawn,
            self._left,
        )

    async def _install(self, installer: CniInstaller, scope: trio.CancelScope) -> None:
        with scope:
            await installer.run()

    async def _everybody_told(self, pod: Pod) -> None:
        await self._notes.wait_taken_off(pod.uid)
        await trio.sleep(_PUSH_SECONDS)

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
        if self._source.book.is_going(config.agent_ns):
            return True  # the DaemonSet may be the last to go
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

    def _withdrawal(self) -> str:
        return self._source.book.namespace_label(self._config.agent_ns, WITHDRAW)

    async def _follow_withdrawal(self, installing: trio.CancelScope, stop: trio.Event) -> None:
        """Take the mesh off the node while the label says so (`ambient uninstall`)."""
        while not self._withdrawal():
            await self._source.next_change().wait()
        installing.cancel()
        await self._take_off()
        while wanted := self._withdrawal():
            if wanted != self._withdrawn:
                self._left = tuple(await trio.to_thread.run_sync(self._what_is_left))
                self._withdrawn = wanted
                self._agent.note_change()
                self._say_what_is_left()
                continue
            await self._source.next_change().wait()
        logger.info("the withdrawal is taken back: this agent ends, and the next one begins anew")
        stop.set()

    async def _follow_deletion(self, installing: trio.CancelScope) -> None:
        """Take the mesh off the node as soon as our namespace is being deleted. When we are told
        to end ztunnel is told, too, and our rights may have gone."""
        while not self._source.book.is_going(self._config.agent_ns):
            await self._source.next_change().wait()
        installing.cancel()
        await self._take_off()

    async def _take_off(self) -> None:
        """Everything of the mesh leaves the node. Waits for as long as that takes."""
        async with self._taking_off:
            await self._take_everything_off()

    async def _take_everything_off(self) -> None:
        logger.info("the mesh is taken off this node: pods leave it")
        self._agent.begin_to_dissolve()  # what is written of it takes rights, which may go soon
        if self._installer is not None:
            try:
                for change in await trio.to_thread.run_sync(self._installer.withdraw):
                    logger.info("%s", change)
            except OSError as error:
                logger.error("the CNI plugin cannot be withdrawn: %s", error)
        await self._agent.dissolve()
        # While there is still somebody who may write: rights go with the rest of an installation.
        await self._notes.wait_written()

    def _what_is_left(self) -> list[str]:
        """Looked for on the node itself, not taken from what was done."""
        left = self._agent.leftovers()
        if self._installer is not None:
            left += self._installer.leftovers()
        return left + [f"pod {pod}: annotation" for pod in self._notes.unwritten()]

    def _say_what_is_left(self) -> None:
        left = [
            f"pod {pod.namespace}/{pod.name} is still {pod.state.value}: {pod.reason}"
            for pod in self._agent.status.pods
            if not pod.out_of_mesh
        ]
        left += self._left
        for what in left:
            logger.error("%s", what)
        unwritten = self._notes.unwritten()
        if unwritten:
            logger.error(
                "%d pods keep the annotation %s, which cannot be removed any more (%s): after "
                "`ambient uninstall` it is gone, or by kubectl annotate pods --all -A %s-",
                len(unwritten),
                REDIRECTION,
                self._notes.refusal or "there was no time",
                REDIRECTION,
            )
            return
        if not left:
            logger.info("nothing of the mesh is left on this node")


_WITHDRAWN = f"the mesh is being uninstalled (label {WITHDRAW} of its namespace)"


async def probe(proc: Path) -> tuple[Feature, ...]:
    """What the kernel of this node can do, found out by a process of its own. Never raises."""
    command = [sys.executable, "-m", "daemonset.agent.node_probe", str(proc)]
    try:
        with trio.fail_after(_PROBE_SECONDS):
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False
            )
        if done.returncode:
            raise subprocess.SubprocessError(done.stderr.decode(errors="replace")[-500:])
        return tuple(Feature(**one) for one in json.loads(done.stdout))
    except (OSError, trio.TooSlowError, subprocess.SubprocessError, ValueError) as error:
        logger.error("the kernel cannot be tried: %s", error)
        return (Feature("trying the kernel", False, False, f"{type(error).__name__}: {error}"),)
