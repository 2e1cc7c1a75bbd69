"""The node agent as a whole: source of pods in, captured and served pods out."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import trio

from daemonset.agent.capture import CaptureError
from daemonset.agent.capture_rules import ISTIO_MARK, ISTIO_MASK
from daemonset.agent.enrolment import EnrolmentOptions
from daemonset.agent.host import HostProbes
from daemonset.agent.host_stops import HostStops
from daemonset.agent.leaving import Told
from daemonset.agent.mark import packet_mark
from daemonset.agent.pod_worker import Services
from daemonset.agent.pods import NetnsResolver, PathResolver, Pod, PodSource
from daemonset.agent.reconciler import Reconciler
from daemonset.agent.status import AgentStatus, PodStatus, write_status
from daemonset.agent.stop_keeper import StopKeeper
from daemonset.agent.stops import Uncaptured
from daemonset.agent.zds_server import ZdsServer
from ztunnel.kernel.direct_rules import Queueing, find_queueing
from ztunnel.linux.netns import NetworkNamespace

logger = logging.getLogger("daemonset.agent")

HOST_CHECK_INTERVAL = 10.0
STATUS_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`run_dir` holds the mark and the status file; `zds_path` is where ztunnel connects.

    `istio_mark`: Istio's own ztunnel runs below, which knows no other mark than 1337. `host_netns`
    is the path of the node's network namespace; "" is the one that the agent runs in. `proc` is the
    node's own /proc. `uncaptured`: what happens to pods of the mesh that cannot be captured.
    """

    run_dir: Path
    zds_path: Path
    enrolment: EnrolmentOptions = field(default_factory=EnrolmentOptions)
    istio_mark: bool = False
    host_netns: str = ""
    proc: Path = Path("/proc")
    uncaptured: Uncaptured = Uncaptured.STOP


def _queueing() -> Queueing | None:
    """How this kernel queues packets, None where it does not."""
    try:
        return find_queueing()
    except OSError as error:
        logger.info("connections between pods of this node do not pass by ztunnel: %s", error)
        return None


class Agent:
    """One node's agent. Whatever it has set up stays when it ends: pods are captured or dead, also
    while an agent is replaced by the next."""

    def __init__(
        self,
        config: AgentConfig,
        resolver: NetnsResolver | None = None,
        told: Told | None = None,
    ) -> None:
        """`told` is waited for before a pod leaves; None: nobody has to be told.

        Raises OSError and MarkError when `run_dir` cannot be used.
        """
        self._config = config
        config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        if config.istio_mark:
            mark, mask = ISTIO_MARK, ISTIO_MASK
        else:
            mark, mask = packet_mark(config.run_dir), 0xFFFFFFFF
        self.mark = mark
        """What ztunnel is to set on its sockets (PACKET_MARK)."""
        if config.host_netns:
            self._host = NetworkNamespace.open(config.host_netns)
        else:
            self._host = NetworkNamespace.current()
        self._server = ZdsServer(config.zds_path)
        self._probes = HostProbes(self._host)
        self._stop_rules = HostStops(self._host)
        self._stops = StopKeeper(self._stop_rules, config.uncaptured)
        self._host_rules = ""
        self._dissolving = False
        self._status_changed = trio.Event()
        self._services = Services(
            self._server,
            self._probes,
            self._stops,
            resolver if resolver is not None else PathResolver(),
            self._host,
            mark,
            mask,
            config.proc,
            self._note_change,
            told if told is not None else _nobody_to_tell,
            # Istio's ztunnel would not answer.
            queueing=None if config.istio_mark else _queueing(),
        )
        self._reconciler = Reconciler(config.enrolment, self._services)

    @property
    def status(self) -> AgentStatus:
        return AgentStatus(
            self._server.connected,
            self._server.synchronised,
            "; ".join(filter(None, (self._host_rules, self._stops.complaint))),
            self._reconciler.statuses(),
            self._dissolving,
        )

    def next_change(self) -> trio.Event:
        """Set when something in `status` may have changed after this call."""
        return self._status_changed

    async def wait_status_changed(self) -> None:
        """Return when something in `status` may have changed."""
        await self._status_changed.wait()

    def pod_status(self, uid: str) -> PodStatus | None:
        """One pod of `status`."""
        worker = self._reconciler.worker(uid)
        return worker.status if worker is not None else None

    async def wait_settled(self, uid: str, netns: str) -> None:
        """Return when a pod whose source names this path is as it is wanted: in the mesh, or not.

        For ever where that never comes to be.
        """
        while True:
            changed = self._status_changed
            worker = self._reconciler.worker(uid)
            if worker is not None and worker.settled_in == netns:
                return
            await changed.wait()

    def leave(self, reason: str) -> None:
        """From now on no pod is to be in the mesh; what an agent before this one left in them is
        removed."""
        self._reconciler.dissolve(reason)

    def leftovers(self) -> list[str]:
        """What of the mesh is still in pods and on the node, in words. Synchronous: asks the
        kernel."""
        found = []
        try:
            if self._probes.is_present():
                found.append("the node's own rules")
            if self._stop_rules.is_present():
                found.append("what the node stops")
        except CaptureError as error:
            found.append(str(error))
        return found + self._reconciler.leftovers()

    def note_change(self) -> None:
        """Something that goes into a report has changed elsewhere."""
        self._note_change()

    def begin_to_dissolve(self) -> None:
        """The first step of `dissolve`, without waiting for anything."""
        self._dissolving = True
        self._reconciler.dissolve("the mesh is being taken off this node")

    async def dissolve(self) -> None:
        """Have every pod leave the mesh, and take the node's own rules away; then return.

        Waits for ever for a pod that cannot leave.
        """
        self.begin_to_dissolve()
        while not all(status.out_of_mesh for status in self.status.pods):
            await self._status_changed.wait()
        async with self._services.probes_lock:
            await self._services.in_thread(self._probes.stop)
        await self._stops.remove()

    async def run(
        self,
        source: PodSource,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Work until cancelled. Started once ztunnel can connect.

        Raises OSError when the ZDS socket cannot be made, CaptureError when the node's own rules
        cannot, and what the source raises.
        """
        try:
            await self._services.in_thread(self._probes.start)
            await self._stops.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reconciler.run, source)
                nursery.start_soon(self._stops.run)
                nursery.start_soon(self._keep_status)
                # Not before: a snapshot that is not complete would end what is being served.
                await self._reconciler.first_pass.wait()
                await self._forget_probes_of_others()
                await nursery.start(self._server.run)
                nursery.start_soon(self._follow_ztunnels)
                nursery.start_soon(self._guard_host_rules)
                task_status.started()
            raise AssertionError("the agent's tasks never end by themselves")
        finally:
            self._server.close()
            self._host.close()

    async def _forget_probes_of_others(self) -> None:
        """What the agent before this one has left for pods that are gone, or have left the mesh."""
        uids = {status.uid for status in self.status.pods if not status.out_of_mesh}
        async with self._services.probes_lock:
            await self._services.in_thread(lambda: self._probes.keep_only(uids))

    async def _guard_host_rules(self) -> None:
        while True:
            await trio.sleep(HOST_CHECK_INTERVAL)
            if self._dissolving:
                return
            before = self._host_rules
            try:
                async with self._services.probes_lock:
                    wrong = await self._services.in_thread(self._probes.repair)
                self._host_rules = ""
                if wrong:
                    logger.error("the node's rules were tampered with, repaired: %s", wrong)
            except CaptureError as error:
                self._host_rules = str(error)
                if self._host_rules != before:
                    logger.error("probes of captured pods fail: %s", error)
            if self._host_rules != before:
                self._note_change()

    async def _follow_ztunnels(self) -> None:
        while True:
            await self._server.wait_changed()
            self._note_change()

    def _note_change(self) -> None:
        self._status_changed.set()
        self._status_changed = trio.Event()

    async def _keep_status(self) -> None:
        while True:
            changed = self._status_changed
            try:
                write_status(self.status, self._config.run_dir)
            except OSError as error:
                logger.error("cannot write the status: %s", error)
            await changed.wait()
            await trio.sleep(STATUS_PAUSE)  # many pods change together


async def _nobody_to_tell(pod: Pod) -> None:
    await trio.lowlevel.checkpoint()
