"""Values that follow from several others."""

from __future__ import annotations

import math

_SMALLEST_AUTOMATIC = 2
_AUTOMATIC_SHARE = 0.25


def automatic_workers(
    cores: int, cpu_limit: float | None = None, cpu_request: float | None = None
) -> int:
    """Workers where nobody asked for a number: as many as an explicit CPU limit feeds, else the
    largest of a quarter of ``cores``, the CPU request, and 2.

    ``cores`` counts logical cores; limit and request are cores and may be fractions.
    """
    if cpu_limit:
        return max(1, math.ceil(cpu_limit))
    share = math.ceil(cores * _AUTOMATIC_SHARE)
    return max(share, math.ceil(cpu_request or 0.0), _SMALLEST_AUTOMATIC)


def termination_deadline(grace_period_seconds: int) -> float:
    """Seconds that live connections get after SIGTERM when the kubelet kills the container
    ``grace_period_seconds`` after it: some seconds stay for the rest of the shutdown, and even a
    grace period of 0 leaves one second."""
    reserve = 5 if grace_period_seconds > 10 else 1
    return float(max(1, grace_period_seconds - reserve))
