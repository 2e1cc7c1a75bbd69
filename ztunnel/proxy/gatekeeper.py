"""All gates of a node. One worker has them, for both ends of a connection must be known in one
place; see `gate`."""

import logging
import random
from typing import Final

import trio

from ztunnel.kernel import direct_rules
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.proxy.context import Context
from ztunnel.proxy.direct import DirectFlows
from ztunnel.proxy.gate import TAKEN, Gate
from ztunnel.proxy.local_pod import LocalPod, LocalPods

log = logging.getLogger("ztunnel.proxy")

_TOGETHER: Final = 0.05  # seconds: what happens within them is looked at once


class Gatekeeper:
    """Opens the gates of pods, and closes them with their pods.

    Args:
        pods: of this node.

    Attributes:
        flows: the connections that have gone through the gates.
    """

    def __init__(self, context: Context, pods: LocalPods) -> None:
        self.gates: dict[LocalPod, Gate] = {}
        self.flows = DirectFlows()
        self._context = context
        self._pods = pods
        self._number = random.randrange(direct_rules.OWNERS)
        self._addresses: frozenset[str] = frozenset()
        self._computed_for: tuple[int, int] = (-1, 0)
        self._draining = False
        self._stirred = False
        self._complaints: set[str] = set()

    # ---- once a second, and when something has happened

    def tick(self) -> None:
        """Opens gates, keeps what they ask about up to date, and looks after connections."""
        self._look(thoroughly=True)
        busy = self.flows.look_after()
        for gate in self.gates.values():
            if gate not in busy:
                gate.unwatch()

    def stir(self) -> None:
        """A pod has joined, or the mesh or a pod's rules have changed: gates open without waiting
        for the next tick, or a pod's first connections would be relayed for all their life."""
        if not self._stirred:
            self._stirred = True
            self._context.spawn(self._look_soon)

    async def _look_soon(self) -> None:
        await trio.sleep(_TOGETHER)
        self._stirred = False
        self._look(thoroughly=False)

    def _look(self, *, thoroughly: bool) -> None:
        if self._draining:
            return
        for pod in self._pods.values():
            if pod not in self.gates and pod.namespace is not None:
                self._open(pod)
        addresses = self._worth_asking()
        for gate in list(self.gates.values()):
            # Whether somebody has emptied the sets again can wait.
            if thoroughly or not gate.rules.rest(addresses):
                gate.ask_about(addresses)

    def _open(self, pod: LocalPod) -> None:
        try:
            self.gates[pod] = Gate(pod, self.flows, self.gates, self._number, self.stir)
        except OSError as error:
            # EPERM: another ztunnel, which is about to leave, still has the queue.
            if error.errno not in TAKEN and pod.uid not in self._complaints:
                self._complaints.add(pod.uid)
                log.warning("pod %s has no gate, its connections are captured: %s", pod, error)
        else:
            pod.companions.callback(self._leave, pod)

    def _worth_asking(self) -> frozenset[str]:
        """Addresses of pods here, and of services all of whose endpoints are here.

        Where some are elsewhere, who asked and was told "elsewhere" would have to choose again.
        """
        state = self._context.state
        now = (state.generation, len(self.gates))
        if self._computed_for == now:
            return self._addresses
        self._computed_for = now
        here = {}
        for pod in self.gates:
            workload = pod.workload()
            if (
                workload is not None
                and workload.tunnel_protocol is TunnelProtocol.HBONE
                and workload.waypoint is None
                and self._context.may_join(workload)
            ):
                here[workload.uid] = workload
        found: set[str] = set()
        if len(here) > 1:
            for workload in here.values():
                found.update(workload.addresses)
            for key in {key for workload in here.values() for key in workload.services}:
                service = state.service(key)
                if service is None or service.waypoints():
                    continue
                if all(endpoint.uid in here for endpoint in state.endpoints(key)):
                    found.update(vip.address for vip in service.vips)
        self._addresses = frozenset(found)
        return self._addresses

    # ---- life

    def _leave(self, pod: LocalPod) -> None:
        """The pod is no longer served; its connections have been ended."""
        gate = self.gates.pop(pod, None)
        if gate is not None:
            gate.close()

    def drain(self) -> None:
        """Leaves new connections to whoever comes next."""
        self._draining = True
        for gate in self.gates.values():
            gate.shut()

    def close(self) -> None:
        """Gives everything back. Connections must have been ended before."""
        for pod in list(self.gates):
            self._leave(pod)
