"""What a worker loads decides what each worker costs."""

from __future__ import annotations

import subprocess
import sys

WORKER_MODULES = (
    "ztunnel.config",
    "ztunnel.telemetry.access_log",
    "ztunnel.telemetry.connections",
    "ztunnel.telemetry.counters",
    "ztunnel.telemetry.log_format",
    "ztunnel.telemetry.peers",
    "ztunnel.telemetry.record",
    "ztunnel.telemetry.shipping",
)
FORBIDDEN = {"grpc", "prometheus_client", "yaml", "kubernetes", "pyroute2", "google"}


def test_workers_load_nothing_that_only_the_control_process_needs() -> None:
    code = (
        f"import sys, {', '.join(WORKER_MODULES)}\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert FORBIDDEN.isdisjoint(done.stdout.split())
