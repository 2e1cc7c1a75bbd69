"""What is measured: each work is one run of the load generator and what to read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

ECHO_PORT, SINK_PORT, SOURCE_PORT = 9001, 9002, 9003
GROWTH = (1, 4, 16, 64, 256, 1024)  # connections
IDLE_SECONDS = 1.0  # for memory to settle after connections were opened


class Kind(Enum):
    """How a work's figures read; the value is the unit of its rate."""

    STREAM = "Gb/s"
    MESSAGES = "/s"
    IDLE = "KiB per connection"


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out of one run.

    Attributes:
        rate: in the unit of the work's kind.
        cpu: of all processes of the implementation together: seconds per GB of a stream,
            microseconds per message; None where it has no process, or nothing moved.
        p50, p99: microseconds of a message there and back; None for streams and idle ones.
        failures: messages or connections that went wrong.
        p90, p999: like p50.
        memory: MiB of all processes of the implementation (proportional set size), where the
            work is to hold connections.
    """

    rate: float
    cpu: float | None
    p50: float | None
    p99: float | None
    failures: int
    p90: float | None = None
    p999: float | None = None
    memory: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement: `mode`, `connections` and `size` are tcpload's.

    With `beside_bulk` one stream is uploaded all the while, through the same proxies and so
    through the same tunnel. Their processor time is then that of both, and is left out.
    """

    name: str
    title: str
    kind: Kind
    mode: str
    connections: int
    port: int = ECHO_PORT
    size: int | None = None
    beside_bulk: bool = False

    def arguments(self, seconds: float, warm_up: float) -> list[str]:
        """tcpload's options for this work."""
        if self.kind is Kind.IDLE:
            seconds, warm_up = IDLE_SECONDS, IDLE_SECONDS
        found = ["-m", self.mode, "-c", str(self.connections)]
        if self.size is not None:
            found += ["-s", str(self.size)]
        return [*found, "-d", str(seconds), "-w", str(warm_up)]

    def figures(self, report: Mapping[str, Any]) -> Figures:
        """Read what tcpload printed."""
        seconds, failures = report["seconds"], report["failures"]["total"]
        spent = report["processes_cpu_s"] if report["processes"] else None
        match self.kind:
            case Kind.IDLE:
                grown = sum(p["pss_to_kib"] - p["pss_from_kib"] for p in report["processes"])
                whole = sum(p["pss_to_kib"] for p in report["processes"]) / 1024
                each = grown / (self.connections / 2)
                return Figures(each, None, None, None, failures, memory=whole)
            case Kind.STREAM:
                amount = report["bytes"]
                cpu = None if spent is None or not amount else spent / (amount / 1e9)
                return Figures(amount * 8 / seconds / 1e9, cpu, None, None, failures)
            case Kind.MESSAGES:
                amount = report["operations"]
                if self.beside_bulk:
                    spent = None
                cpu = None if spent is None or not amount else spent * 1e6 / amount
                latency = report.get("latency_us", {})
                p50, p90, p99, p999 = (latency.get(f"p{part}") for part in (50, 90, 99, 99.9))
                return Figures(amount / seconds, cpu, p50, p99, failures, p90, p999)


BULK = Work("bulk", "the upload beside others", Kind.STREAM, "up", 1, SINK_PORT)

WORKS = (
    # First, in processes that have just started: what was used before would hide what it takes.
    Work("idle", "2nd thousand of idle connections", Kind.IDLE, "idle", 2000),
    Work("up-1", "upload, 1 stream", Kind.STREAM, "up", 1, SINK_PORT),
    Work("up-8", "upload, 8 streams", Kind.STREAM, "up", 8, SINK_PORT),
    Work("down-1", "download, 1 stream", Kind.STREAM, "down", 1, SOURCE_PORT),
    Work("down-8", "download, 8 streams", Kind.STREAM, "down", 8, SOURCE_PORT),
    Work("ping-1", "1 B there and back, c=1", Kind.MESSAGES, "pingpong", 1),
    Work("ping-16", "1 B there and back, c=16", Kind.MESSAGES, "pingpong", 16),
    Work("ping-64", "1 B there and back, c=64", Kind.MESSAGES, "pingpong", 64),
    Work(
        "ping-64-bulk",
        "1 B there and back, c=64, beside one upload",
        Kind.MESSAGES,
        "pingpong",
        64,
        beside_bulk=True,
    ),
    Work("ping-16-1k", "1 KiB there and back, c=16", Kind.MESSAGES, "pingpong", 16, size=1024),
    Work("connect-1", "new connection each, c=1", Kind.MESSAGES, "connect", 1),
    Work("connect-64", "new connection each, c=64", Kind.MESSAGES, "connect", 64),
    Work("connect-256", "new connection each, c=256", Kind.MESSAGES, "connect", 256),
    *(
        Work(f"grow-{count}", f"1 B there and back, c={count}", Kind.MESSAGES, "pingpong", count)
        for count in GROWTH
        if count not in (1, 16, 64)  # which are there already
    ),
)
