"""When a worker hands its log lines over."""

import logging
import time
from collections.abc import Callable
from typing import Final

from ztunnel.relay.engine import Engine

log = logging.getLogger("ztunnel.worker")

TOGETHER: Final = 0.02  # seconds


class LogFlush:
    """Ships log lines at the end of a round, or a little later together with those that follow.

    A line after silence goes at once. Under load each round has some, and a message for each
    round would cost both processes more than the lines themselves: measured, 12 us of the
    control process for each connection, and 4 when they wait for the engine's next look after
    deadlines.

    Args:
        ship: hands over what waits.
        together: seconds; lines that come faster after one another are shipped together.
    """

    def __init__(
        self, engine: Engine, ship: Callable[[], None], together: float = TOGETHER
    ) -> None:
        self._engine = engine
        self._together = together
        self._ship = ship
        self._shipped = 0.0

    def flush(self) -> None:
        """The first line of some waits. Called by the engine at the end of a round."""
        now = time.monotonic()
        if now - self._shipped < self._together:
            self._engine.expire_at(self, now)
        else:
            self._shipped = now
            self._ship()

    def expired(self) -> None:
        """The engine looked after deadlines, as it does a few times in a second."""
        self._shipped = time.monotonic()
        self._ship()

    def failed(self, error: BaseException) -> None:
        """`ship` raised; the lines stay where they are."""
        log.error("log lines could not be handed over: %r", error)
