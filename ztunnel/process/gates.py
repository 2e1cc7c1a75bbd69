"""The gates of the pods (`ztunnel.proxy.gate`) in the life of a worker: one of all has them."""

import logging
from collections.abc import Mapping

import trio

from ztunnel.config import Config
from ztunnel.config.model import ProxyMode
from ztunnel.kernel.direct_probe import DirectProbeError, probe_direct
from ztunnel.kernel.paths import NOT_TRIED
from ztunnel.proxy.context import Context
from ztunnel.proxy.gate_rules import leave_captured
from ztunnel.proxy.gatekeeper import Gatekeeper
from ztunnel.proxy.local_pod import LocalPod, LocalPods
from ztunnel.relay.probe import OFF

log = logging.getLogger("ztunnel.worker")


class Gates:
    """Those of a node, or what a worker without them must do.

    Args:
        slot: of the worker.
        pods: that it serves, by uid.
        neighbours: the same, as they know one another.

    Attributes:
        off: why nothing passes by the proxy here; empty text where connections do.
    """

    def __init__(
        self, config: Config, slot: str, pods: Mapping[str, LocalPod], neighbours: LocalPods
    ) -> None:
        self.off = NOT_TRIED
        self._config = config
        self._slot = slot
        self._pods = pods
        self._neighbours = neighbours
        self._keeper: Gatekeeper | None = None
        self._draining = False

    async def open(self) -> bool:
        """Tries whether connections between pods of this node can pass by; whether gates are due.
        One worker does that for all: both ends of a connection must be known in one place."""
        if not self._config.kernel.direct:
            self.off = OFF
        elif self._slot != "0":
            self.off = "worker 0 sees to it"
        elif self._config.mode is not ProxyMode.SHARED:
            self.off = "there is one pod only"
        else:
            try:
                await trio.to_thread.run_sync(probe_direct)
            except DirectProbeError as error:
                self.off = str(error)
                log.info("kernel path direct is off: %s", error)
            else:
                self.off = ""
        for pod in self._pods.values():
            self.joined(pod)
        return not self.off and not self._draining

    def keep(self, context: Context) -> None:
        """Opens them."""
        self._keeper = Gatekeeper(context, self._neighbours)
        self._keeper.tick()

    def joined(self, pod: LocalPod) -> None:
        """A pod is served. Where this worker would have its gate, and has not, all is captured."""
        off = self.off not in ("", NOT_TRIED)
        if off and self._slot == "0" and pod.namespace is not None:
            leave_captured(pod)
        self.stir()

    def stir(self) -> None:
        """Pods or mesh have changed."""
        if self._keeper is not None and not self._draining:
            self._keeper.stir()

    def tend(self) -> None:
        """Once a second."""
        if self._keeper is not None:
            try:
                self._keeper.tick()
            except Exception:  # what it cannot do is captured as ever
                log.exception("the gates of the pods could not be seen to")

    def drain(self) -> None:
        """Leaves new connections to whoever comes next."""
        self._draining = True
        if self._keeper is not None:
            self._keeper.drain()
