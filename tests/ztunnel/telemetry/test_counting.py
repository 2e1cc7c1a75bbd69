"""From a worker's counters through messages to the sum of all workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.aggregate import Aggregate, UpdateError
from ztunnel.telemetry.counters import Counters
from ztunnel.telemetry.families import FAMILIES, TCP, TCP_FAMILIES, Kind
from ztunnel.telemetry.labels import LabelTable, Peer
from ztunnel.telemetry.process_metrics import measure
from ztunnel.telemetry.shipping import Shipper

DENIED = ("ztunnel_early_denials", ("inbound", "tls"))
FLOWS = ("ztunnel_engine_flows", ("w",))


def test_a_family_must_exist_with_its_kind_and_labels() -> None:
    counters = Counters()
    with pytest.raises(ValueError, match="there is no counter nonsense"):
        counters.counter("nonsense")
    with pytest.raises(ValueError, match="there is no gauge ztunnel_early_denials"):
        counters.gauge("ztunnel_early_denials", "inbound", "tls")
    with pytest.raises(ValueError, match="has the labels"):
        counters.counter("ztunnel_early_denials", "inbound")
    assert counters.cells == {}


def test_histograms_count_a_value_at_the_bound_within_it() -> None:
    histogram = Counters().histogram("ztunnel_xds_lookup_duration_seconds", "found")
    bounds = FAMILIES["ztunnel_xds_lookup_duration_seconds"].buckets
    histogram.observe(bounds[0])
    histogram.observe(bounds[-1] + 1)
    numbers = histogram.numbers()
    assert (numbers[0], numbers[-2]) == (1, 1)
    assert sum(numbers[:-1]) == 2
    assert numbers[-1] == pytest.approx(bounds[0] + bounds[-1] + 1)


def test_only_what_changed_is_sent_and_names_only_once() -> None:
    counters = Counters()
    cell = counters.counter(*DENIED[:1], *DENIED[1])
    counters.counter("ztunnel_log_lines_dropped").add(3)
    shipper = Shipper(counters)
    first = json.loads(shipper.encode() or b"")
    assert first["fresh"] is True
    assert len(first["new"]) == len(first["values"]) == 2
    assert shipper.encode() is None
    cell.add()
    second = json.loads(shipper.encode() or b"")
    assert second == {"new": [], "gone": [], "values": [[0, 1]]}
    shipper.restart()
    assert json.loads(shipper.encode() or b"") | {"values": []} == first | {"values": []}


def test_counters_survive_their_worker_and_gauges_do_not() -> None:
    aggregate, alive = Aggregate(), []
    for name in ("worker-0", "worker-1"):
        counters = Counters()
        counters.counter(DENIED[0], *DENIED[1]).add(5)
        counters.gauge(FLOWS[0], *FLOWS[1]).set(2)
        ends = counters.table.ends(True, Peer("a"), Peer("b"))
        ends.series.opened, ends.series.received = 3, 1000
        shipper = Shipper(counters)
        aggregate.update(name, shipper.encode() or b"")
        alive.append((counters, shipper))
    (tcp,) = [key for key in aggregate.totals if key[0] == TCP]
    assert aggregate.totals[DENIED] == [10]
    assert aggregate.totals[FLOWS] == [4]
    assert aggregate.totals[tcp] == [6, 0, 0, 2000, 0]

    aggregate.end("worker-0")
    aggregate.end("worker-0")
    assert aggregate.totals[DENIED] == [10]
    assert aggregate.totals[FLOWS] == [2]
    assert aggregate.totals[tcp] == [6, 0, 0, 2000, 0]

    counters, shipper = alive[1]
    counters.counter(DENIED[0], *DENIED[1]).add(1)
    aggregate.update("worker-1", shipper.encode() or b"")
    assert aggregate.totals[DENIED] == [11]
    aggregate.end("worker-1")
    assert FLOWS not in aggregate.totals
    assert aggregate.totals[tcp] == [6, 0, 0, 2000, 0]


def test_a_fresh_message_of_a_known_source_starts_it_anew() -> None:
    counters, aggregate = Counters(), Aggregate()
    shipper = Shipper(counters)
    counters.gauge(FLOWS[0], *FLOWS[1]).set(7)
    aggregate.update("w", shipper.encode() or b"")
    shipper.restart()
    aggregate.update("w", shipper.encode() or b"")
    assert aggregate.totals[FLOWS] == [7]


def test_a_forgotten_gauge_leaves_the_totals() -> None:
    counters, aggregate = Counters(), Aggregate()
    shipper = Shipper(counters)
    name = "ztunnel_certificate_expiry_timestamp_seconds"
    counters.gauge(name, "spiffe://a").set(1)
    aggregate.update("w", shipper.encode() or b"")
    counters.forget(name, "spiffe://a")
    counters.forget(name, "spiffe://never")
    aggregate.update("w", shipper.encode() or b"")
    assert aggregate.totals == {}
    counters.gauge(name, "spiffe://a").set(2)
    aggregate.update("w", shipper.encode() or b"")
    assert aggregate.totals[name, ("spiffe://a",)] == [2]


def test_folded_series_are_counted() -> None:
    counters, aggregate = Counters(LabelTable(limit=1)), Aggregate()
    for name in "abc":
        counters.table.ends(True, Peer(workload=name), Peer())
    aggregate.update("w", Shipper(counters).encode() or b"")
    assert aggregate.totals["ztunnel_metric_series_folded", ()] == [2]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"new":[[0,"nonsense",[]]],"gone":[],"values":[]}',
        b'{"new":[[0,"ztunnel_workers",["x"]]],"gone":[],"values":[]}',
        b'{"new":[[0,"ztunnel_workers",[]],[0,"ztunnel_workers",[]]],"gone":[],"values":[]}',
        b'{"new":[],"gone":[1],"values":[]}',
        b'{"new":[],"gone":[],"values":[[0,1]]}',
        b'{"new":[[0,"ztunnel_workers",[]]],"gone":[],"values":[[0,1,2]]}',
        b'{"new":[[0,"ztunnel_workers",[]]],"gone":[],"values":[[0,NaN]]}',
        b'{"new":[[0,"ztunnel_workers",[]]],"gone":[],"values":[[0,true]]}',
        b'{"new":[[0,"ztunnel_workers",[]]],"gone":[],"values":[[0,1' + b"0" * 400 + b"]]}",
        b'{"new":[[true,"ztunnel_workers",[]]],"gone":[],"values":[]}',
        b"[" * 100_000,
    ],
)
def test_a_message_that_makes_no_sense_changes_nothing(message: bytes) -> None:
    aggregate, counters = Aggregate(), Counters()
    counters.gauge("ztunnel_workers").set(1)
    aggregate.update("other", Shipper(counters).encode() or b"")
    before = aggregate.snapshot()
    with pytest.raises(UpdateError):
        aggregate.update("w", message)
    assert aggregate.totals == before
    aggregate.end("w")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(new=json_values, gone=json_values, values=json_values, fresh=json_values)
def test_any_message_is_taken_in_or_refused(new: Any, gone: Any, values: Any, fresh: Any) -> None:
    message = json.dumps({"new": new, "gone": gone, "values": values, "fresh": fresh})
    aggregate = Aggregate()
    try:
        aggregate.update("w", message.encode())
    except UpdateError:
        assert aggregate.totals == {}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "send", "end"])), max_size=40)
)
def test_totals_are_what_was_sent_whatever_ends_in_between(steps: list[tuple[int, str]]) -> None:
    aggregate = Aggregate()
    names = ["0", "1", "2"]
    counters = [Counters() for _ in names]
    shippers = [Shipper(one) for one in counters]
    arrived = 0
    counted = [0, 0, 0]
    for at, step in steps:
        if step == "count":
            counters[at].counter("ztunnel_worker_restarts").add()
            counted[at] += 1
        elif step == "send":
            message = shippers[at].encode()
            if message is not None:
                aggregate.update(names[at], message)
            arrived += counted[at]
            counted[at] = 0
        else:
            aggregate.end(names[at])
            names[at] += "'"
            counters[at], counted[at] = Counters(), 0
            shippers[at] = Shipper(counters[at])
    assert aggregate.totals.get(("ztunnel_worker_restarts", ()), [0]) == [arrived]


def test_families_are_well_formed() -> None:
    for family in [*FAMILIES.values(), *TCP_FAMILIES]:
        assert not family.name.endswith("_total")
        assert family.help
        assert (family.kind is Kind.HISTOGRAM) == bool(family.buckets)
        assert list(family.buckets) == sorted(family.buckets)


def test_process_metrics() -> None:
    counters = Counters()
    measure(counters)
    assert counters.gauge("process_resident_memory_bytes").value > 1 << 20
    assert 0 < counters.gauge("process_open_fds").value < counters.gauge("process_max_fds").value
