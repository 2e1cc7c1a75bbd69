"""Guards against floods, and the count of what the peer's own guards would take ill.

Memory and work per byte received are bounded by the codec's design; the buckets here bound what a
few bytes can make us do. All limits, and why, are in :mod:`ztunnel.http2.limits`.
"""

from ztunnel.http2 import limits
from ztunnel.http2.errors import ConnectionFault, ErrorCode


class Bucket:
    """A token bucket: a burst, and so many given back per second."""

    __slots__ = ("burst", "last", "rate", "tokens")

    def __init__(self, burst: int, per_second: float) -> None:
        self.burst: float = float(burst)
        self.rate: float = per_second
        self.tokens: float = float(burst)
        self.last: float = 0.0

    def left(self, now: float) -> float:
        """Tokens there are at the time ``now`` (seconds); a clock going back gives none."""
        passed = now - self.last
        if passed > 0:
            self.tokens = min(self.burst, self.tokens + passed * self.rate)
            self.last = now
        return self.tokens

    def take(self, now: float) -> bool:
        """Take one token. False when there is none."""
        if self.tokens >= self.burst:
            self.last = now  # what is given back counts from the first one taken
        elif self.tokens < 1 and self.left(now) < 1:
            return False
        self.tokens -= 1
        return True


class FloodGuard:
    """What one peer may make us do (RFC 9113 section 10.5)."""

    __slots__ = (
        "empty",
        "faults",
        "pings",
        "priorities",
        "refused",
        "resets",
        "settings",
        "useless",
        "window_updates",
    )

    def __init__(self) -> None:
        self.resets: Bucket = Bucket(limits.RESET_BURST, limits.RESETS_PER_SECOND)
        self.pings: Bucket = Bucket(limits.PING_BURST, limits.PINGS_PER_SECOND)
        self.settings: Bucket = Bucket(limits.SETTINGS_BURST, limits.SETTINGS_PER_SECOND)
        self.empty: Bucket = Bucket(limits.EMPTY_BURST, limits.EMPTY_PER_SECOND)
        self.useless: Bucket = Bucket(limits.USELESS_BURST, limits.USELESS_PER_SECOND)
        self.refused: Bucket = Bucket(limits.REFUSED_BURST, limits.REFUSED_PER_SECOND)
        self.faults: Bucket = Bucket(limits.FAULT_BURST, limits.FAULTS_PER_SECOND)
        self.priorities: int = 0
        self.window_updates: int = 0

    def priority(self, streams: int) -> None:
        """Count a PRIORITY frame. ``streams``: how many the connection has had in all."""
        self.priorities += 1
        if self.priorities > limits.PRIORITY_BASE + limits.PRIORITY_PER_STREAM * streams:
            raise flood("PRIORITY frames")

    def window_update(self, streams: int, data_frames: int) -> None:
        """Count a WINDOW_UPDATE against the streams and DATA frames it can be about."""
        self.window_updates += 1
        if self.window_updates > (
            limits.WINDOW_UPDATE_BASE
            + limits.WINDOW_UPDATES_PER_STREAM * streams
            + limits.WINDOW_UPDATES_PER_DATA * data_frames
        ):
            raise flood("WINDOW_UPDATE frames")


def flood(what: str) -> ConnectionFault:
    """The fault for too many of something."""
    return ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")


class ResetAllowance:
    """How many RST_STREAM frames of ours the peer's own flood guards still take.

    nghttp2, and so Envoy, closes the *whole* connection, with every tunnel on it, after too many.
    A pool stops opening streams on a connection whose allowance runs low.
    """

    __slots__ = ("_all", "_early")

    def __init__(self) -> None:
        self._all: Bucket = Bucket(limits.PEER_RESET_BURST, limits.PEER_RESETS_PER_SECOND)
        self._early: Bucket = Bucket(
            limits.PEER_EARLY_RESET_BURST, limits.PEER_EARLY_RESETS_PER_SECOND
        )

    def count(self, early: bool, now: float) -> None:
        """One RST_STREAM was sent; ``early`` when the stream had no response yet."""
        self._all.left(now)
        self._all.tokens -= 1
        if early:
            self._early.left(now)
            self._early.tokens -= 1

    def left(self, now: float) -> float:
        """Resets left at the time ``now`` (seconds); below 1 the next one may cost everything."""
        return min(self._all.left(now), self._early.left(now))
