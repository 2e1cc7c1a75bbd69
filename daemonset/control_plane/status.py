"""What a person can ask of a running control plane, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus

import trio
from google.protobuf.json_format import MessageToDict

from daemonset.control_plane.metrics import ControlPlaneMetrics
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.translation.finding import Finding
from daemonset.control_plane.xds.snapshot import Snapshot
from ztunnel.proto import authorization_pb2, workload_pb2
from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import Handler
from ztunnel.telemetry.routes import Route, json_response, router


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Where the answers come from. ``clients`` may block and is called in a thread."""

    ready: Callable[[], bool]
    snapshot: Callable[[], Snapshot]
    findings: Callable[[], tuple[Finding, ...]]
    problems: Callable[[], tuple[Problem, ...]]
    off: Callable[[], tuple[str, ...]]
    place: Callable[[Finding], str]
    clients: Callable[[], list[dict[str, object]]]
    metrics: ControlPlaneMetrics


def status_handler(sources: StatusSources) -> Handler:
    """/ready, /metrics, /debug/clients, /debug/findings, /debug/resources."""

    async def ready(_: Request) -> Response:
        if sources.ready():
            return Response(b"ready\n")
        return Response(b"not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(_: Request) -> Response:
        clients = await trio.to_thread.run_sync(sources.clients)
        body = sources.metrics.render(len(clients))
        return Response(body, content_type="text/plain; version=0.0.4; charset=utf-8")

    async def clients(_: Request) -> Response:
        return json_response(await trio.to_thread.run_sync(sources.clients))

    async def findings(_: Request) -> Response:
        return json_response(
            {
                "generation": sources.snapshot().generation,
                "refused": [asdict(problem) for problem in sources.problems()],
                "off": list(sources.off()),
                "findings": [
                    finding_as_json(finding, sources.place(finding))
                    for finding in sources.findings()
                ],
            }
        )

    async def resources(_: Request) -> Response:
        return json_response(resources_as_json(sources.snapshot()))

    return router(
        {
            "/ready": Route(ready, ("GET",), "is there something to serve?"),
            "/metrics": Route(metrics, ("GET",), "Prometheus metrics"),
            "/debug/clients": Route(clients, ("GET",), "who is connected, and how far it is"),
            "/debug/findings": Route(findings, ("GET",), "what is wrong with files and objects"),
            "/debug/resources": Route(resources, ("GET",), "all resources in force"),
        }
    )


def finding_as_json(finding: Finding, place: str) -> dict[str, object]:
    return {
        "severity": finding.severity.name.lower(),
        "object": str(finding.object),
        "place": place,
        "field": finding.field,
        "reason": finding.reason,
        "message": finding.message,
        "advice": finding.advice,
    }


def resources_as_json(snapshot: Snapshot) -> Mapping[str, object]:
    """All resources, decoded, by type and name."""
    addresses = {
        name: MessageToDict(workload_pb2.Address.FromString(entry.resource.payload))
        for name, entry in snapshot.addresses.items()
    }
    authorizations = {
        name: MessageToDict(authorization_pb2.Authorization.FromString(entry.resource.payload))
        for name, entry in snapshot.authorizations.items()
    }
    return {
        "generation": snapshot.generation,
        "addresses": addresses,
        "authorizations": authorizations,
    }
