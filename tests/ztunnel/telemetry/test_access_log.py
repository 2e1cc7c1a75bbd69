from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.labels import DENY, LabelTable, Peer, ServiceLabels
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.record import CLIENT, ConnectionRecord

WEB = Peer("web-1", "shop", "web", identity="spiffe://td/ns/shop/sa/web", cluster="east")
DB = Peer("db-1", "data", "db", identity="spiffe://td/ns/data/sa/db", cluster="east")
DB_SERVICE = ServiceLabels("db.data.svc.cluster.local", "data", "db")


def make(filter_text: str = "info", json_lines: bool = False) -> tuple[AccessLog, list[bytes]]:
    lines: list[bytes] = []
    return AccessLog(lines.append, LogFilter.parse(filter_text), json_lines, lambda: 1.25), lines


def record(inbound: bool = False) -> ConnectionRecord:
    ends = LabelTable().ends(inbound, WEB, DB, DB_SERVICE, WEB.identity, DB.identity, True)
    made = ConnectionRecord(ends, ("10.0.0.1", 4000), ("fd00::2", 15008), 1.0, "[fd00::2]:80")
    made.up, made.down = 10, 20
    made.decision, made.verdict = "to workload data/db-1", "allowed by data/db rule 1"
    made.closed_by, made.path = CLIENT, "splice"
    made.close(LabelTable(), 2.5)
    return made


def test_plain() -> None:
    log, lines = make()
    log.complete(record())
    assert lines == [
        b"1970-01-01T00:00:01.250000Z\tinfo\taccess\tconnection complete\t"
        b'src.addr=10.0.0.1:4000 src.workload="web-1" src.namespace="shop" '
        b'src.identity="spiffe://td/ns/shop/sa/web" src.cluster="east" '
        b"dst.addr=[fd00::2]:15008 dst.hbone_addr=[fd00::2]:80 "
        b'dst.service="db.data.svc.cluster.local" dst.workload="db-1" dst.namespace="data" '
        b'dst.identity="spiffe://td/ns/data/sa/db" dst.cluster="east" direction="outbound" '
        b'bytes_sent=10 bytes_recv=20 duration="1500ms" decision="to workload data/db-1" '
        b'verdict="allowed by data/db rule 1" closed_by="client" path="splice"\n'
    ]


def test_json_has_the_same_fields_in_the_same_order() -> None:
    plain, plain_lines = make()
    jsons, json_lines = make(json_lines=True)
    plain.complete(record())
    jsons.complete(record())
    fields = json.loads(json_lines[0])
    names = re.findall(r"(?:^|\s)([a-z_.]+)=", plain_lines[0].decode().split("\t")[4])
    assert list(fields) == ["level", "time", "scope", "message", *names]
    assert fields["bytes_sent"] == 10
    assert fields["dst.addr"] == "[fd00::2]:15008"


def test_inbound_sends_what_the_server_sends() -> None:
    log, lines = make(json_lines=True)
    log.complete(record(inbound=True))
    fields = json.loads(lines[0])
    assert (fields["bytes_sent"], fields["bytes_recv"]) == (20, 10)
    assert fields["direction"] == "inbound"


def test_a_failure_is_an_error_with_its_flags() -> None:
    log, lines = make("error", json_lines=True)
    log.complete(record())
    failed = record()
    failed.fail(DENY, 'denied by "x"\nat once')
    log.complete(failed)
    assert len(lines) == 1
    fields = json.loads(lines[0])
    assert fields["level"] == "error"
    assert fields["error"] == 'denied by "x"\nat once'
    assert fields["response_flags"] == "DENY"


def test_opening_shows_at_debug_without_bytes_and_duration() -> None:
    log, lines = make("info,access=debug")
    log.opened(record())
    assert b"\tdebug\taccess\tconnection opened\t" in lines[0]
    assert b"bytes_sent" not in lines[0]
    assert b"duration" not in lines[0]


def test_early_refusal() -> None:
    log, lines = make()
    log.refused(("10.0.0.1", 1), ("10.0.0.2", 15008), True, "no certificate")
    assert lines[0].endswith(
        b"\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:1 dst.addr=10.0.0.2:15008 "
        b'direction="inbound" error="no certificate"\n'
    )


def test_one_namespace_can_be_silenced_and_heard_again() -> None:
    log, lines = make("info,access.shop=off")
    log.complete(record())
    log.complete(record(inbound=True))
    assert len(lines) == 1
    assert b'direction="inbound"' in lines[0]
    log.set_filter(LogFilter())
    log.complete(record())
    assert len(lines) == 2


def test_off_is_off() -> None:
    log, lines = make("off")
    failed = record()
    failed.fail(DENY, "x")
    log.complete(failed)
    log.opened(failed)
    log.refused(("1.1.1.1", 1), ("1.1.1.1", 1), True, "x")
    assert lines == []


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("json_lines", [False, True])
@given(name=text, authority=text, error=text)
def test_nothing_that_a_peer_says_can_forge_a_line_or_a_field(
    json_lines: bool, name: str, authority: str, error: str
) -> None:
    log, lines = make(json_lines=json_lines)
    ends = LabelTable().ends(True, Peer(name, name), DB)
    made = ConnectionRecord(ends, ("1.1.1.1", 1), ("1.1.1.1", 2), 0.0, authority)
    made.fail(DENY, error)
    made.close(LabelTable(), 1.0)
    log.complete(made)
    (line,) = lines
    assert line.count(b"\n") == 1
    if json_lines:
        fields = json.loads(line)
        assert fields.get("src.workload", "") == name
        assert fields.get("dst.hbone_addr", "") == authority
        assert fields.get("error", "") == error
    else:
        assert line.count(b"\t") == 4
        bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", line.split(b"\t")[4]).decode()
        keys = [field.partition("=")[0] for field in bare.split()]
        expected = ["src.addr", *["src.workload", "src.namespace"] * bool(name), "dst.addr"]
        expected += ["dst.hbone_addr"] * bool(authority)
        expected += ["dst.workload", "dst.namespace", "dst.cluster", "direction", "bytes_sent"]
        expected += ["bytes_recv", "duration", *["error"] * bool(error), "response_flags"]
        assert keys == expected
