from __future__ import annotations

import gzip
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ztunnel.telemetry.aggregate import Aggregate
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.exposition import accepts_gzip, render
from ztunnel.telemetry.labels import DENY, Peer
from ztunnel.telemetry.record import ConnectionRecord
from ztunnel.telemetry.shipping import Shipper

# The library leaves this function without types.
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def totals() -> Aggregate:
    counters = Counters()
    ends = counters.table.ends(True, Peer("a", workload='we"b\n'), Peer("b"))
    for flags in ("", DENY):
        record = ConnectionRecord(ends, ("1.1.1.1", 1), ("2.2.2.2", 2), 0.0)
        record.open()
        record.up = 10
        if flags:
            record.fail(flags, "x")
        record.close(counters.table, 1.0)
    counters.histogram("ztunnel_csr_duration_seconds", "ok").observe(0.3)
    counters.histogram("ztunnel_csr_duration_seconds", "ok").observe(99)
    counters.gauge("istio_build", "ztunnel", "unknown").set(1)
    aggregate = Aggregate()
    aggregate.update("w", Shipper(counters).encode() or b"")
    return aggregate


def test_text() -> None:
    page = render(totals().snapshot(), "", "")
    assert page.content_type.startswith("text/plain")
    assert page.encoding is None
    samples = {
        (sample.name, sample.labels.get("response_flags", sample.labels.get("le"))): sample.value
        for family in parse_text(page.body.decode())
        for sample in family.samples
    }
    assert samples["istio_tcp_connections_opened_total", "-"] == 2
    assert samples["istio_tcp_connections_closed_total", "-"] == 1
    assert samples["istio_tcp_connections_closed_total", "DENY"] == 1
    assert samples["istio_tcp_connections_failed_total", "DENY"] == 1
    assert ("istio_tcp_connections_failed_total", "-") not in samples
    assert ("istio_tcp_connections_opened_total", "DENY") not in samples
    assert samples["istio_tcp_received_bytes_total", "-"] == 20
    assert samples["ztunnel_csr_duration_seconds_bucket", "0.25"] == 0
    assert samples["ztunnel_csr_duration_seconds_bucket", "0.5"] == 1
    assert samples["ztunnel_csr_duration_seconds_bucket", "+Inf"] == 2
    assert samples["ztunnel_csr_duration_seconds_sum", None] == pytest.approx(99.3)
    assert samples["istio_build", None] == 1


def test_openmetrics_by_accept() -> None:
    page = render(totals().snapshot(), OPENMETRICS, "")
    assert page.content_type.startswith("application/openmetrics-text")
    assert page.body.endswith(b"# EOF\n")
    workloads = {
        sample.labels["source_workload"]
        for family in parse_openmetrics(page.body.decode())
        for sample in family.samples
        if "source_workload" in sample.labels
    }
    assert workloads == {'we"b\n'}


def test_nothing_counted_is_an_empty_page() -> None:
    assert render({}, "", "").body == b""
    assert render({}, OPENMETRICS, "").body == b"# EOF\n"


def test_gzip_by_accept_encoding() -> None:
    plain = render(totals().snapshot(), "", "identity")
    page = render(totals().snapshot(), "", "deflate, gzip;q=0.5")
    assert page.encoding == "gzip"
    assert gzip.decompress(page.body) == plain.body


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("br, *", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("GZIP; q=1.0", True),
        ("br", False),
        ("gzip;q=0.001", True),
    ],
)
def test_accepts_gzip(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted
