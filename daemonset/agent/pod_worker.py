"""One pod's way into the mesh and out of it, and the watch over it in between.

Each pod has a task of its own: whatever fails is retried with growing pauses, and holds up nobody
else. Into the mesh: namespace, ztunnel, rules, probes. Should the rules fail, the pod is cut off,
on the node where its namespace cannot be entered; should ztunnel fail, its connections are refused,
since they are captured by then, and only probes pass. Out of it: no probes, no new connections
captured, everybody is told, connections come to their end (see leaving), ztunnel lets go, and only
then the rules go.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import trio

from daemonset.agent.capture import Capture, CaptureError
from daemonset.agent.capture_rules import CaptureOptions
from daemonset.agent.enrolment import Enrolment
from daemonset.agent.host import HostProbes
from daemonset.agent.leaving import Told, wait_until_drained, wait_until_told
from daemonset.agent.netns_check import check_ownership
from daemonset.agent.pods import NetnsNotFound, NetnsResolver, Pod
from daemonset.agent.status import PodState, PodStatus
from daemonset.agent.stop_keeper import StopKeeper
from daemonset.agent.zds_connection import ZtunnelError
from daemonset.agent.zds_server import ZdsServer
from ztunnel.kernel.direct_rules import Queueing
from ztunnel.linux.netns import NamespaceIdentity, NetworkNamespace
from ztunnel.linux.nftables import subscribe
from ztunnel.zds.messages import WorkloadInfo

logger = logging.getLogger("daemonset.agent")
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 5.0
CHECK_INTERVAL = 30.0
"""Seconds after which rules are compared even if the kernel has told of no change."""
CHECK_PAUSE = 0.1
"""Seconds between checks of one pod, so that a quarrel over its rules does not eat the node."""


@dataclass(slots=True)
class Services:
    """What all pods of a node share.

    `claims` says whose each namespace is: two pods in one would mean one speaks with the other's
    identity. `host` is the node's own namespace. `told`: see leaving. `queueing`: see
    `CaptureOptions`.
    """

    server: ZdsServer
    probes: HostProbes
    stops: StopKeeper
    resolver: NetnsResolver
    host: NetworkNamespace
    mark: int
    mask: int
    proc: Path
    on_status: Callable[[], None]
    told: Told
    queueing: Queueing | None = None
    claims: dict[NamespaceIdentity, str] = field(default_factory=dict)
    probes_lock: trio.Lock = field(default_factory=trio.Lock)
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(8))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run something that talks to the kernel, which may take milliseconds for its locks."""
        return await trio.to_thread.run_sync(function, limiter=self.threads)


class PodWorker:
    """Keeps one pod as it is wanted. `run` returns when the pod is gone and all of it undone."""

    def __init__(self, pod: Pod, enrolment: Enrolment, services: Services) -> None:
        self.tried = trio.Event()
        """The first attempt is over: a snapshot for ztunnel can be made without forgetting it."""
        self.settled_in: str | None = None
        """What the source called the pod's namespace when all was last as it is wanted; None before
        that. The state alone does not tell of which sandbox it speaks."""
        self._pod = pod
        self._enrolment = enrolment
        self._gone = False
        self._services = services
        self._changed = trio.Event()
        self._namespace: NetworkNamespace | None = None
        self._resolved_from = pod
        self._capture: Capture | None = None
        self._announced = False  # to the ZDS server, whether ztunnel knows or not
        self._captured = False  # nothing of it goes past the mesh, whatever else may be wrong
        self._looked_for_leftovers = False
        self._complaint = ""
        self.status = PodStatus(
            pod.uid, pod.name, pod.namespace, PodState.ENROLLING, enrolment.reason
        )

    def want(self, pod: Pod, enrolment: Enrolment) -> None:
        """The pod, or whether it is in the mesh, has changed."""
        if (pod, enrolment) != (self._pod, self._enrolment) or self._gone:
            self._pod, self._enrolment, self._gone = pod, enrolment, False
            self._changed.set()

    def forget(self) -> None:
        """The pod is no more."""
        self._gone = True
        self._changed.set()

    async def run(self) -> None:
        """Converge, watch, converge again. Never raises but for cancellation, which undoes nothing:
        pods stay captured while an agent is replaced by the next one."""
        pause = FIRST_PAUSE
        try:
            while True:
                self._changed = trio.Event()
                netns = self._pod.netns
                settled = await self._attempt()
                self.tried.set()
                if self._changed.is_set():
                    continue
                if settled and self.settled_in != netns:
                    self.settled_in = netns
                    self._services.on_status()
                if settled and self._gone:
                    return
                if settled:
                    pause = FIRST_PAUSE
                    await self._watch()
                else:
                    with trio.move_on_after(pause):
                        await self._wait_for_change()
                    pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._let_go()

    async def _attempt(self) -> bool:
        """Whether the pod is as it is wanted now."""
        try:
            if self._gone:
                await self._undo(alive=False)
            elif self._enrolment.enrolled:
                await self._enrol()
            else:
                await self._leave()
            return True
        except (NetnsNotFound, CaptureError, ZtunnelError) as error:
            if str(error) != self._complaint:  # said once, not on every attempt
                logger.warning("%s: %s", self._pod, error)
            self._complaint = str(error)
        except Exception as error:
            # A defect, or a kernel that does what no kernel did before: it concerns this pod only.
            logger.exception("%s: unexpected", self._pod)
            what = f"{type(error).__name__}: {error}"
            if self._captured or self._gone or not self._enrolment.enrolled:
                self._report(self.status.state, what)
            else:
                await self._stop_on_node(what)
        return False

    # --- into the mesh ---------------------------------------------------------------------------

    async def _enrol(self) -> None:
        services, pod, enrolment = self._services, self._pod, self._enrolment
        info = WorkloadInfo(pod.name, pod.namespace, pod.service_account)
        self._announced = True
        try:
            namespace = await self._resolve()
        except NetnsNotFound as error:
            services.server.put(pod.uid, info, None)
            await self._stop_on_node(str(error))
            raise
        options = CaptureOptions(
            services.mark,
            services.mask,
            enrolment.dns,
            enrolment.inbound,
            enrolment.reroute_interfaces,
            services.queueing,
        )
        served = False
        if self._capture is None:
            served = await self._serve_first(pod, info, namespace)
            self._capture = Capture(namespace, options, services.proc)
        self._capture.options = options
        try:
            await services.in_thread(self._capture.apply)
            await services.in_thread(self._capture.resume)
        except CaptureError as error:
            await self._cut_off(self._capture, error)
            raise
        self._captured = True
        try:
            await services.stops.lift(pod.uid)
        except CaptureError as error:
            self._report(PodState.STOPPED, str(error))
            raise
        if not served:
            services.server.put(pod.uid, info, namespace)
            if self.status.state is not PodState.ENROLLED:
                self._report(PodState.ENROLLING, "captured; waiting for ztunnel")
        try:
            # Probes go past ztunnel: that it is away is no reason to restart the pod.
            async with services.probes_lock:
                await services.in_thread(lambda: services.probes.add(pod.uid, pod.addresses))
            if not served:
                await services.server.add(pod.uid)
        except (ZtunnelError, CaptureError) as error:
            self._report(PodState.PENDING, str(error))
            raise
        if self.status.state is not PodState.ENROLLED:
            logger.info("%s is in the mesh: %s", pod, enrolment.reason)
        self._report(PodState.ENROLLED, enrolment.reason, enrolment.notes)

    async def _serve_first(self, pod: Pod, info: WorkloadInfo, namespace: NetworkNamespace) -> bool:
        """Have ztunnel listen in a running pod before its traffic is redirected there, so that
        nobody is refused in between. Where that does not succeed, the pod is captured all the
        same, and refused until ztunnel is there."""
        server = self._services.server
        if not server.synchronised:
            return False
        server.put(pod.uid, info, namespace)
        try:
            await server.add(pod.uid)
        except ZtunnelError as error:
            logger.debug("%s: %s", pod, error)  # said when it is tried again, below
            return False
        return True

    async def _resolve(self) -> NetworkNamespace:
        pod, services = self._pod, self._services
        if self._namespace is not None and pod.netns == self._resolved_from.netns:
            return self._namespace

        def find() -> NetworkNamespace:
            found = services.resolver.resolve(pod)
            try:
                check_ownership(pod, found, services.host)
            except BaseException:
                found.close()
                raise
            return found

        found = await services.in_thread(find)
        previous = self._namespace
        if previous is not None and previous.identity == found.identity:
            found.close()
            self._resolved_from = pod
            return previous
        owner = services.claims.setdefault(found.identity, pod.uid)
        if owner != pod.uid:
            found.close()
            raise NetnsNotFound(f"the namespace of {pod} is already that of the pod {owner}")
        if previous is not None:
            logger.info("%s has a new network namespace", pod)
            self._let_go()
        self._capture, self._captured = None, False
        self._namespace, self._resolved_from = found, pod
        return found

    async def _cut_off(self, capture: Capture, error: CaptureError) -> None:
        services = self._services
        self._captured = False
        try:
            if services.stops.permits:
                # An agent before this one may have stopped it.
                await services.in_thread(capture.resume)
                self._report(PodState.FAILED, f"{services.stops.permits}: {error}")
                return
            how = await services.in_thread(capture.stop)
        except CaptureError as worse:
            await self._stop_on_node(f"{error}; {worse}")
            return
        self._report_stopped(how, str(error))

    async def _stop_on_node(self, reason: str) -> None:
        """Never raises: what goes wrong is reported, and tried again with the rest."""
        stops = self._services.stops
        if not self._pod.addresses:
            self._report(PodState.ENROLLING, reason)  # nothing of it runs yet
        elif stops.permits:
            self._report(PodState.FAILED, f"{stops.permits}: {reason}")
        else:
            try:
                how = await stops.stop(self._pod)
            except CaptureError as worse:
                self._report(PodState.FAILED, f"{reason}; {worse}")
            else:
                self._report_stopped(how, reason)

    def _report_stopped(self, how: str, reason: str) -> None:
        if self.status.state is not PodState.STOPPED:
            logger.error("%s is cut off: %s: %s", self._pod, how, reason)
        self._report(PodState.STOPPED, f"{how}: {reason}")

    # --- out of the mesh -------------------------------------------------------------------------

    async def _leave(self) -> None:
        reason = self._enrolment.reason
        await self._services.stops.lift(self._pod.uid)
        if not self._announced and not self._looked_for_leftovers:
            await self._look_for_leftovers()
        if self._announced:
            alive = not self._pod.terminated
            if alive and not await self._say_farewell(reason):
                return
            self._report(PodState.LEAVING, reason)
            await self._undo(alive=alive)
            logger.info("%s has left the mesh: %s", self._pod, reason)
        self._report(PodState.NOT_IN_MESH, reason)

    async def _say_farewell(self, reason: str) -> bool:
        """Nothing new is captured, and what there is comes to its end. False when the pod is to
        stay after all, or something else has changed meanwhile."""
        services, capture, namespace = self._services, self._capture, self._namespace
        if capture is None or namespace is None:
            return True
        await services.in_thread(capture.release)
        # Not before: what comes without a tunnel must not be redirected to policies that want one.
        self._report(PodState.LEAVING, reason)
        async with trio.open_nursery() as nursery:

            async def until_changed() -> None:
                await self._changed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_changed)
            await wait_until_told(self._pod, services.told)
            await wait_until_drained(
                self._pod, namespace, services.mark, services.mask, services.in_thread
            )
            nursery.cancel_scope.cancel()
        return not self._changed.is_set()

    async def _look_for_leftovers(self) -> None:
        """Rules of an earlier agent, which was not there when the pod left the mesh."""
        pod, services = self._pod, self._services
        if not pod.host_network and not pod.terminated:
            try:
                namespace = await self._resolve()
            except NetnsNotFound as error:
                logger.debug("%s: no rules to be looked for: %s", pod, error)
            else:
                options = CaptureOptions(services.mark, services.mask)
                capture = Capture(namespace, options, services.proc)
                if await services.in_thread(capture.is_present):
                    self._capture = capture
                    self._announced = True
                else:
                    self._let_go()
        self._looked_for_leftovers = True

    async def _undo(self, *, alive: bool) -> None:
        """Each step may be repeated; `alive` is false when the namespace goes with the pod."""
        if not self._announced:
            return self._let_go()
        services, uid, capture = self._services, self._pod.uid, self._capture
        await services.stops.lift(uid)
        async with services.probes_lock:
            await services.in_thread(lambda: services.probes.remove(uid))
        await services.server.delete(uid)
        if alive and capture is not None:
            await services.in_thread(capture.remove)
        self._announced = self._captured = False
        self._capture = None
        return self._let_go()

    def _let_go(self) -> None:
        if self._namespace is not None:
            self._services.claims.pop(self._namespace.identity, None)
            self._namespace.close()
            self._namespace = None

    # --- the watch -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Return when something is to be done: the pod has changed, or ztunnel refuses it."""
        if self._capture is None or self._namespace is None:
            await self._changed.wait()
            return
        async with trio.open_nursery() as nursery:

            async def until_changed() -> None:
                await self._wait_for_change()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_changed)
            if await self._guard(self._capture, self._namespace):
                nursery.cancel_scope.cancel()

    async def _guard(self, capture: Capture, namespace: NetworkNamespace) -> bool:
        """Repair capture whenever it changes; True when it cannot be repaired."""
        with subscribe(namespace) as changes:
            while True:
                try:
                    wrong = await self._services.in_thread(capture.repair)
                except CaptureError as error:
                    await self._cut_off(capture, error)
                    return True
                if wrong:
                    text = "; ".join(wrong)
                    logger.error("%s: capture was tampered with, repaired: %s", self._pod, text)
                    self.status = replace(
                        self.status, repairs=self.status.repairs + 1, last_repair=text
                    )
                    self._services.on_status()
                # The first change of a while is looked at right away, a flood of them now and then.
                await trio.sleep(CHECK_PAUSE)
                with trio.move_on_after(CHECK_INTERVAL):
                    await trio.lowlevel.wait_readable(changes.sock)
                changes.drain_notifications()

    async def _wait_for_change(self) -> None:
        """Until the pod changes, or a ztunnel comes that does not serve what it should."""
        async with trio.open_nursery() as nursery:

            async def wake_on_change() -> None:
                await self._changed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wake_on_change)
            while True:
                await self._services.server.wait_changed()
                pending = self.status.state is PodState.PENDING
                if self._pod.uid in self._services.server.refusals or (
                    pending and self._services.server.synchronised
                ):
                    nursery.cancel_scope.cancel()

    def _report(self, state: PodState, reason: str, warnings: tuple[str, ...] = ()) -> None:
        before = self.status
        self.status = replace(before, state=state, reason=reason, warnings=warnings)
        if self.status != before:
            self._services.on_status()
