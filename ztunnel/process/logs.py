"""Where the lines of worker and supervisor go: none of them ever waits for a reader."""

import os
import select
import time
from collections.abc import Callable

from ztunnel.config.model import LogFormat, TelemetryConfig
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_format import drop_notice, install
from ztunnel.telemetry.log_queue import LogQueue


class WorkerLogs:
    """The access log and the log of everything else, in one bounded queue.

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


class SupervisorLog:
    """The supervisor's few lines, straight to a descriptor that it never waits for.

    What cannot be written now waits in a bounded queue for the next call of `write`.
    """

    def __init__(self, config: TelemetryConfig, descriptor: int) -> None:
        as_json = config.log_format is LogFormat.JSON
        self._descriptor = descriptor
        self._rest = b""
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLOUT)
        self._queue = LogQueue(config.log_queue, drop_notice(as_json), self.write)
        install(self._queue, LogFilter.parse(config.log_filter), as_json)

    def write(self) -> None:
        """Writes what the descriptor takes."""
        while (self._rest or len(self._queue)) and self._poller.poll(0):
            # A pipe that polls as writable takes this much without blocking (pipe(7)).
            self._rest = self._rest or self._queue.take(select.PIPE_BUF)
            try:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
            except BlockingIOError:
                return
            except OSError:
                self._queue.shut(self._rest)  # nobody reads any more: from now on lines are dropped
                self._rest = b""
