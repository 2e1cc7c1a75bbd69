"""What a worker tells the control process of itself: counters, log lines, connections, paths."""

import threading
from collections.abc import Iterable

from ztunnel.config import Config
from ztunnel.process import messages
from ztunnel.process.carried import Telling
from ztunnel.process.gates import Gates
from ztunnel.process.link import Link
from ztunnel.process.log_flush import LogFlush
from ztunnel.process.logs import WorkerLogs
from ztunnel.proxy.context import Context
from ztunnel.proxy.pod import PodProxy
from ztunnel.proxy.registry import Registry
from ztunnel.relay.engine import Engine
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.shipping import Shipper


class Reports:
    """Those of one worker. To be made in the thread that runs the engine.

    Attributes:
        logs: where its lines go.
    """

    def __init__(
        self, config: Config, slot: str, engine: Engine, counters: Counters, gates: Gates
    ) -> None:
        self._gates = gates
        self._slot = slot
        self._engine = engine
        self._counters = counters
        self._shipper = Shipper(counters)
        self._log_flush = LogFlush(engine, self._ship_logs)
        self._thread = threading.get_ident()
        self._control: Link | None = None
        self.logs = WorkerLogs(config.telemetry, self._lines_wait)
        self._telling: Telling | None = None

    def tell_of(self, registry: Registry) -> None:
        """These are the connections that are told of."""
        self._telling = Telling(registry, self.logs.access)

    def begin(self, control: Link) -> None:
        """There is a control process, which knows nothing of this worker yet."""
        self._control = control
        self._shipper.restart()
        if self._telling is not None:
            self._telling.restart()

    def pause(self) -> None:
        """It is gone."""
        self._control = None

    @property
    def held_back(self) -> bool:
        """Whether something waits because the control process is slow to read."""
        return self._control is not None and self._control.open and self._control.congested

    def kernel_paths(self) -> dict[str, str]:
        """Path to "on", or to why it is off."""
        reasons = {"direct": self._gates.off, **self._engine.paths.reasons}
        return {name: reason or "on" for name, reason in reasons.items()}

    def count(self, context: Context, pods: Iterable[PodProxy]) -> None:
        """Brings what is counted up to date."""
        counters, engine = self._counters, self._engine
        context.registry.count()
        totals = [0, 0, 0, 0]
        for pod in pods:
            for index, count in enumerate(pod.tunnel_counts):
                totals[index] += count
        outbound, inbound = context.registry.open
        counters.gauge("istio_tcp_sockets_open", "source").set(outbound)
        counters.gauge("istio_tcp_sockets_open", "destination").set(inbound)
        counters.gauge("ztunnel_tunnels", "outbound").set(totals[0])
        counters.gauge("ztunnel_tunnel_streams", "outbound").set(totals[1])
        counters.gauge("ztunnel_tunnels", "inbound").set(totals[2])
        counters.gauge("ztunnel_tunnel_streams", "inbound").set(totals[3])
        counters.gauge("ztunnel_engine_flows", self._slot).set(len(context.registry))
        counters.counter("ztunnel_engine_rounds", self._slot).value = float(engine.rounds)
        counters.counter("ztunnel_engine_busy_seconds", self._slot).value = engine.busy
        for path, state in self.kernel_paths().items():
            counters.gauge("ztunnel_kernel_path", path, self._slot).set(float(state == "on"))
        counters.counter("ztunnel_log_lines_dropped").value = self.logs.dropped

    def ship(self) -> None:
        """Sends what has changed in the counters, and log lines that wait."""
        control = self._control
        if control is None or control.congested:
            return
        encoded = self._shipper.encode()
        if encoded is not None:
            control.send(messages.COUNTERS, encoded)
        changes = self._telling.changes() if self._telling is not None else None
        if changes is not None:
            control.send(messages.CARRIED, *changes)
        self._ship_logs()

    def _lines_wait(self) -> None:
        """The first of some log lines: they go together at the end of the round."""
        # A line from a resolver's thread goes with the next counters: only this thread may
        # touch the engine.
        if threading.get_ident() == self._thread:
            self._engine.dirty(self._log_flush)

    def _ship_logs(self) -> None:
        """Hands over the lines that wait, unless the control process is slow to take them."""
        control = self._control
        if control is not None and not control.congested:
            while batch := self.logs.take():
                control.send(messages.LOGS, batch)
