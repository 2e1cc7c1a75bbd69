from __future__ import annotations

from ztunnel.mesh.identity import Identity
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Locality, Workload
from ztunnel.telemetry.labels import (
    DENY,
    TCP_LABELS,
    UNKNOWN_PEER,
    LabelTable,
    Peer,
    ServiceLabels,
)
from ztunnel.telemetry.peers import PeerTable
from ztunnel.telemetry.record import ConnectionRecord

WEB = Workload(
    "c//Pod/shop/web-1",
    "web-1",
    "shop",
    service_account="web",
    workload_name="web",
    canonical_name="web-app",
    canonical_revision="v2",
    cluster_id="east",
    locality=Locality("r1", "z1"),
)


def labels_of(record: ConnectionRecord) -> dict[str, str]:
    return dict(zip(TCP_LABELS, record.ends.series.labels, strict=True))


def test_labels_of_a_connection_between_known_ends() -> None:
    peers, table = PeerTable(), LabelTable()
    web = peers.workload(WEB)
    service = peers.service(Service("db", "data", "db.data.svc.cluster.local"))
    principal = Identity("cluster.local", "shop", "web").uri
    ends = table.ends(False, web, UNKNOWN_PEER, service, principal, "spiffe://x/ns/a/sa/b", True)
    labels = labels_of(ConnectionRecord(ends, ("1.1.1.1", 1), ("2.2.2.2", 2), 0.0))
    assert labels == {
        "reporter": "source",
        "source_workload": "web",
        "source_canonical_service": "web-app",
        "source_canonical_revision": "v2",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/web",
        "source_app": "web-app",
        "source_version": "v2",
        "source_cluster": "east",
        "destination_service": "db.data.svc.cluster.local",
        "destination_service_namespace": "data",
        "destination_service_name": "db",
        "destination_workload": "unknown",
        "destination_canonical_service": "unknown",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "unknown",
        "destination_principal": "spiffe://x/ns/a/sa/b",
        "destination_app": "unknown",
        "destination_version": "unknown",
        "destination_cluster": "unknown",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
        "source_region": "r1",
        "source_zone": "z1",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }


def test_plaintext_proves_no_source_but_the_destination_is_who_the_mesh_says() -> None:
    web = PeerTable().workload(WEB)
    ends = LabelTable().ends(True, web, web)
    labels = labels_of(ConnectionRecord(ends, ("1.1.1.1", 1), ("2.2.2.2", 2), 0.0))
    assert labels["source_principal"] == "unknown"
    assert labels["destination_principal"] == "spiffe://cluster.local/ns/shop/sa/web"
    assert labels["connection_security_policy"] == "unknown"
    assert labels["reporter"] == "destination"


def test_pods_of_one_workload_share_a_series_but_not_their_names() -> None:
    table = LabelTable()
    one, two = Peer("web-1", "shop", "web"), Peer("web-2", "shop", "web")
    first, second = table.ends(True, one, UNKNOWN_PEER), table.ends(True, two, UNKNOWN_PEER)
    assert first is not second
    assert first.series is second.series
    assert table.ends(True, one, UNKNOWN_PEER) is first


def test_counting_a_life() -> None:
    table = LabelTable()
    ends = table.ends(True, Peer("a"), Peer("b"))
    record = ConnectionRecord(ends, ("1.1.1.1", 1), ("2.2.2.2", 2), 10.0)
    record.open()
    record.up, record.down = 100, 7
    record.count()
    assert (ends.series.received, ends.series.sent, ends.series.closed) == (100, 7, 0)
    record.count()
    record.up = 150
    record.close(table, 11.0)
    record.close(table, 12.0)
    series = ends.series
    assert (series.opened, series.received, series.sent, series.closed) == (1, 150, 7, 1)
    assert series.failed == 0
    assert record.closed_at == 11.0


def test_a_failure_is_closed_under_its_flags_and_the_first_reason_stays() -> None:
    table = LabelTable()
    ends = table.ends(True, Peer("a"), Peer("b"))
    record = ConnectionRecord(ends, ("1.1.1.1", 1), ("2.2.2.2", 2), 0.0)
    record.open()
    record.fail(DENY, "denied by shop/web")
    record.fail("CONNECT", "something later")
    record.close(table, 1.0)
    failed = table.flagged(ends, DENY)
    assert (failed.opened, failed.closed, failed.failed) == (0, 1, 1)
    assert (ends.series.opened, ends.series.closed) == (1, 0)
    assert record.error == "denied by shop/web"


def test_better_knowledge_moves_only_what_comes_after_it() -> None:
    table = LabelTable()
    before, after = (
        table.ends(False, Peer("a"), UNKNOWN_PEER),
        table.ends(False, Peer("a"), Peer("b", "x")),
    )
    record = ConnectionRecord(before, ("1.1.1.1", 1), ("2.2.2.2", 2), 0.0)
    record.up = 5
    record.replace_ends(after)
    record.up = 12
    record.count()
    assert (before.series.received, after.series.received) == (5, 7)


def test_what_strangers_say_cannot_grow_the_table_without_bound() -> None:
    table = LabelTable(limit=10)
    seen = {id(table.ends(True, Peer(workload=f"w{n}"), UNKNOWN_PEER).series) for n in range(50)}
    assert len(table.series) == 11
    assert len(seen) == 11
    assert table.folded == 40


def test_peers_follow_their_workloads() -> None:
    peers = PeerTable(limit=2)
    first = peers.workload(WEB)
    assert peers.workload(WEB) is first
    changed = Workload(WEB.uid, "web-1", "other")
    assert peers.workload(changed).namespace == "other"
    for number in range(5):
        assert peers.workload(Workload(str(number), "n")).name == "n"
        peers.described("ns", "w", "c", "r", "", "k", "", str(number))
    same = peers.described("ns", "", "canon", "r", "", "k", "", "")
    assert peers.described("ns", "", "canon", "r", "", "k", "", "") is same
    assert same.name == "canon"
    service = Service("s", "n", "h")
    assert peers.service(service) is peers.service(service)
    assert isinstance(peers.service(service), ServiceLabels)
