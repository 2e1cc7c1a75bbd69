"""Live connections as plain values: what a worker answers when the admin server asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ztunnel.mesh.address import format_address
from ztunnel.telemetry.record import ConnectionRecord

Connection = dict[str, Any]


def describe(record: ConnectionRecord, worker: str, now: float) -> Connection:
    """One live connection; ``now`` on the clock of the record. Unknown values are "".

    ``src``, ``originalDst``, ``actualDst`` and ``protocol`` are what Istio's tools read.
    """
    ends = record.ends
    up, down = record.up, record.down
    return {
        "pod": record.pod,
        "workload": f"{ends.local.namespace}/{ends.local.name}",
        "direction": "inbound" if ends.inbound else "outbound",
        "src": format_address(record.source_address),
        "originalDst": format_address(record.original_destination),
        "actualDst": format_address(record.destination_address),
        "protocol": "HBONE" if record.hbone_address else "TCP",
        "authority": record.hbone_address,
        "service": ends.service.hostname if ends.service is not None else "",
        "srcIdentity": ends.source_principal,
        "dstIdentity": ends.destination_principal,
        "bytesSent": down if ends.inbound else up,
        "bytesRecv": up if ends.inbound else down,
        "ageSeconds": round(now - record.opened_at, 3),
        "path": record.path,
        "decision": record.decision,
        "verdict": record.verdict,
        "policy": record.policy,
        "worker": worker,
    }


def select(
    connections: Iterable[Connection], direction: str, namespace: str, limit: int
) -> list[Connection]:
    """The oldest ``limit`` of the connections with this direction and namespace ("": any)."""
    wanted = [
        one
        for one in connections
        if direction in ("", one["direction"])
        and (not namespace or one["workload"].startswith(f"{namespace}/"))
    ]
    wanted.sort(key=lambda one: -float(one["ageSeconds"]))
    return wanted[:limit]
