"""The answers of the metrics port: /metrics, and /stats/prometheus as sidecars have it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ztunnel.telemetry.aggregate import Key
from ztunnel.telemetry.exposition import render
from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import Handler
from ztunnel.telemetry.routes import Route, router


def metrics_handler(snapshot: Callable[[], dict[Key, list[float]]]) -> Handler:
    """Renders ``snapshot()``, which is called in trio; the rendering takes place in a thread.

    One scrape is rendered at a time: scrapers that pile up would otherwise each hold a copy.
    """
    one_at_a_time = trio.CapacityLimiter(1)

    async def scrape(request: Request) -> Response:
        async with one_at_a_time:
            totals = snapshot()
            page = await trio.to_thread.run_sync(
                render,
                totals,
                request.headers.get("accept", ""),
                request.headers.get("accept-encoding", ""),
            )
        headers = {"vary": "accept, accept-encoding"}
        if page.encoding is not None:
            headers["content-encoding"] = page.encoding
        return Response(page.body, content_type=page.content_type, headers=headers)

    route = Route(scrape, ("GET",), "metrics")
    return router({"/metrics": route, "/stats/prometheus": route})
