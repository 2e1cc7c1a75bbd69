"""From lists of pods to one worker for each."""

import logging
from collections.abc import Sequence
from contextlib import aclosing

import trio

from daemonset.agent.capture import Capture, CaptureError
from daemonset.agent.capture_rules import CaptureOptions
from daemonset.agent.enrolment import Enrolment, EnrolmentOptions, decide_enrolment
from daemonset.agent.netns_check import check_ownership
from daemonset.agent.pod_worker import PodWorker, Services
from daemonset.agent.pods import NetnsNotFound, Pod, PodSource
from daemonset.agent.status import PodStatus

logger = logging.getLogger("daemonset.agent")


class Reconciler:
    """Starts a worker for every pod that appears, and tells the workers what has changed."""

    def __init__(self, options: EnrolmentOptions, services: Services) -> None:
        self.first_pass = trio.Event()
        """Every pod of the first list has been attempted once: ztunnel may be told now."""
        self._options = options
        self._services = services
        self._workers: dict[str, PodWorker] = {}
        self._pods: Sequence[Pod] = ()
        self._over = ""

    def statuses(self) -> tuple[PodStatus, ...]:
        """All pods, ordered by namespace and name."""
        found = [worker.status for worker in self._workers.values()]
        return tuple(sorted(found, key=lambda status: (status.namespace, status.name, status.uid)))

    def worker(self, uid: str) -> PodWorker | None:
        """The one that looks after a pod, as long as there is one."""
        return self._workers.get(uid)

    async def run(self, source: PodSource) -> None:
        """Follow the source until it ends or this is cancelled. Raises what the source raises."""
        async with trio.open_nursery() as nursery:
            async with aclosing(source.pods()) as lists:
                async for pods in lists:
                    self._apply(pods, nursery)
                    if not self.first_pass.is_set():
                        nursery.start_soon(self._wait_for_first, list(self._workers.values()))
            await trio.sleep_forever()

    def dissolve(self, reason: str) -> None:
        """From now on no pod is to be in the mesh."""
        self._over = reason
        for pod in self._pods:
            worker = self._workers.get(pod.uid)
            if worker is not None:
                worker.want(pod, self._decide(pod))

    def leftovers(self) -> list[str]:
        """Which pods still have rules of ours, in words. Synchronous: asks the kernel."""
        found = []
        services = self._services
        for pod in self._pods:
            if pod.host_network or pod.terminated or not (pod.addresses or pod.netns):
                continue
            try:
                with services.resolver.resolve(pod) as namespace:
                    check_ownership(pod, namespace, services.host)
                    capture = Capture(namespace, CaptureOptions(services.mark), services.proc)
                    if capture.is_present():
                        found.append(f"pod {pod}: rules")
            except NetnsNotFound as error:
                logger.debug("%s: nothing to be looked for: %s", pod, error)
            except CaptureError as error:
                found.append(f"pod {pod}: {error}")
        return found

    def _decide(self, pod: Pod) -> Enrolment:
        return Enrolment(False, self._over) if self._over else decide_enrolment(pod, self._options)

    def _apply(self, pods: Sequence[Pod], nursery: trio.Nursery) -> None:
        seen: dict[str, Pod] = {}
        self._pods = pods
        self._services.stops.know(pods)
        for pod in pods:
            if pod.uid in seen:
                logger.error("%s and %s have the same uid %s", seen[pod.uid], pod, pod.uid)
                continue
            seen[pod.uid] = pod
            enrolment = self._decide(pod)
            worker = self._workers.get(pod.uid)
            if worker is not None:
                worker.want(pod, enrolment)
            else:
                worker = PodWorker(pod, enrolment, self._services)
                self._workers[pod.uid] = worker
                nursery.start_soon(self._run, pod.uid, worker)
        for uid, worker in self._workers.items():
            if uid not in seen:
                worker.forget()

    async def _run(self, uid: str, worker: PodWorker) -> None:
        await worker.run()
        # It is done with a pod that is no more; should that have come back, it begins anew.
        del self._workers[uid]
        self._services.on_status()

    async def _wait_for_first(self, workers: Sequence[PodWorker]) -> None:
        for worker in workers:
            await worker.tried.wait()
        self.first_pass.set()
