"""A worker's log: lines wait in a bounded queue until the control process takes them."""

import time
from collections.abc import Callable

from ztunnel.config.model import LogFormat, TelemetryConfig
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_format import drop_notice, install
from ztunnel.telemetry.log_queue import LogQueue


class WorkerLogs:
    """The access log and the log of everything else, in one queue.

    Args:
        ready: called when lines wait.
    """

    def __init__(self, config: TelemetryConfig, ready: Callable[[], None]) -> None:
        as_json = config.log_format is LogFormat.JSON
        chosen = LogFilter.parse(config.log_filter)
        self._queue = LogQueue(config.log_queue, drop_notice(as_json), ready)
        self.access = AccessLog(self._queue.put, chosen, as_json, time.time)
        install(self._queue, chosen, as_json)

    @property
    def dropped(self) -> int:
        """Lines that found the queue full."""
        return self._queue.dropped

    def take(self) -> bytes:
        """The oldest lines, empty when none wait."""
        return self._queue.take()

    def set_filter(self, text: str) -> None:
        """Lets other lines through from now on. Raises ValueError."""
        chosen = LogFilter.parse(text)
        chosen.apply()
        self.access.set_filter(chosen)
