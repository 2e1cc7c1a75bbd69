from __future__ import annotations

import gzip
from http import HTTPStatus

import pytest

from ztunnel.telemetry.aggregate import Aggregate
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.http_message import Request
from ztunnel.telemetry.metrics_server import metrics_handler
from ztunnel.telemetry.shipping import Shipper


@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus"])
async def test_a_scrape(path: str) -> None:
    counters, aggregate = Counters(), Aggregate()
    counters.gauge("ztunnel_workers").set(2)
    aggregate.update("control", Shipper(counters).encode() or b"")
    handler = metrics_handler(aggregate.snapshot)
    plain = await handler(Request("GET", path))
    assert b"\nztunnel_workers 2.0\n" in plain.body
    assert "content-encoding" not in plain.headers
    packed = await handler(Request("GET", path, headers={"accept-encoding": "gzip"}))
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    openmetrics = await handler(
        Request("GET", path, headers={"accept": "application/openmetrics-text"})
    )
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_other_paths_and_methods() -> None:
    handler = metrics_handler(dict)
    assert (await handler(Request("GET", "/"))).status == HTTPStatus.NOT_FOUND
    assert (await handler(Request("PUT", "/metrics"))).status == HTTPStatus.METHOD_NOT_ALLOWED
