"""What the control process uses itself: descriptors and memory, read when somebody asks."""

from __future__ import annotations

import os
import resource

from ztunnel.telemetry.counters import Counters


def measure(counters: Counters) -> None:
    """Sets the ``process_`` gauges to what holds now."""
    # The listing has a descriptor of its own, which is closed again by now.
    counters.gauge("process_open_fds").set(len(os.listdir("/proc/self/fd")) - 1)
    counters.gauge("process_max_fds").set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    counters.gauge("process_resident_memory_bytes").set(pages * resource.getpagesize())
