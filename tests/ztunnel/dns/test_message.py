from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ztunnel.dns.lookup import Family
from ztunnel.dns.message import (
    MAX_MESSAGE_BYTES,
    Question,
    Rejected,
    answer,
    answers,
    failure,
    read_question,
    truncated,
)


def query(name: str = "web.prod", kind: str = "A", **options: object) -> bytes:
    wire: bytes = dns.message.make_query(name, kind, **options).to_wire()  # type: ignore[arg-type]
    return wire


def question(wire: bytes) -> Question:
    found = read_question(wire)
    assert isinstance(found, Question)
    return found


def test_a_question_is_read() -> None:
    found = question(query("WEB.Prod", "AAAA"))
    assert found.name == ("web", "prod")
    assert found.family is Family.IPV6
    assert found.type_name == "aaaa"
    assert found.udp_bytes == 512


@pytest.mark.parametrize(("wire_name", "kind"), [(".", "A"), ("a\\.b.c", "A"), ("\\200x.c", "A")])
def test_names_that_no_service_has(wire_name: str, kind: str) -> None:
    assert question(query(wire_name, kind)).name is None


def test_other_types_and_classes_have_no_family() -> None:
    assert question(query(kind="MX")).family is None
    assert question(query(rdclass="CH")).family is None


@pytest.mark.parametrize(
    ("payload", "expected"), [(100, 512), (512, 512), (1232, 1232), (65000, 4096)]
)
def test_edns_payload_is_bounded(payload: int, expected: int) -> None:
    found = question(query(use_edns=0, payload=payload))
    assert found.udp_bytes == expected
    reply = dns.message.from_wire(answer(found, ("10.0.0.1",), None, 512))
    assert reply.edns == 0
    assert reply.payload == expected


def test_no_edns_in_no_edns_out() -> None:
    reply = dns.message.from_wire(answer(question(query()), ("10.0.0.1",), None, 512))
    assert reply.edns == -1


def rcode_of(found: Question | Rejected) -> dns.rcode.Rcode:
    assert isinstance(found, Rejected)
    assert found.response is not None
    return dns.message.from_wire(found.response).rcode()


def test_what_is_no_question_is_turned_down_by_its_reason() -> None:
    good = query()
    assert read_question(b"short") == Rejected(None, "shorter than a DNS header")
    response = dns.message.make_response(dns.message.from_wire(good)).to_wire()
    assert rcode_of(read_question(response)) == dns.rcode.FORMERR
    update = good[:2] + bytes([good[2] | 5 << 3]) + good[3:]
    assert rcode_of(read_question(update)) == dns.rcode.NOTIMP
    assert rcode_of(read_question(good[:-1])) == dns.rcode.FORMERR
    assert rcode_of(read_question(good + b"junk")) == dns.rcode.FORMERR
    none = good[:4] + b"\0\0" + good[6:12]
    assert rcode_of(read_question(none)) == dns.rcode.FORMERR
    twice = good[:4] + b"\0\2" + good[6:] + good[12:]
    assert rcode_of(read_question(twice)) == dns.rcode.FORMERR
    loop = good[:12] + b"\xc0\x0c\0\1\0\1"
    assert rcode_of(read_question(loop)) == dns.rcode.FORMERR


def test_an_unknown_edns_version_gets_badvers() -> None:
    wire = dns.message.make_query("web", "A")
    wire.use_edns(edns=1)
    assert rcode_of(read_question(wire.to_wire())) == dns.rcode.BADVERS


def test_the_answer_is_authoritative_and_carries_the_alias() -> None:
    found = question(query("www.example.com.prod.svc.cluster.local"))
    reply = dns.message.from_wire(answer(found, ("240.0.0.1",), ("www", "example", "com"), 512))
    assert reply.flags & dns.flags.AA
    assert reply.flags & dns.flags.RA
    assert [rrset.to_text() for rrset in reply.answer] == [
        "www.example.com.prod.svc.cluster.local. 30 IN CNAME www.example.com.",
        "www.example.com. 30 IN A 240.0.0.1",
    ]


def test_no_address_is_no_error_and_no_record() -> None:
    reply = dns.message.from_wire(answer(question(query()), (), ("web",), 512))
    assert reply.rcode() == dns.rcode.NOERROR
    assert reply.answer == []


@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize("limit", [512, 1232, 4096, MAX_MESSAGE_BYTES])
def test_an_answer_fills_its_room_and_says_what_it_left_out(kind: str, limit: int) -> None:
    prefix = "fd00::" if kind == "AAAA" else "10.0."
    join = ":" if kind == "AAAA" else "."
    many = tuple(f"{prefix}{n // 250 + 1}{join}{n % 250 + 1}" for n in range(6000))
    wire = answer(question(query("web.prod", kind)), many, None, limit)
    reply = dns.message.from_wire(wire)
    record = 28 if kind == "AAAA" else 16
    assert limit - record < len(wire) <= limit
    assert reply.flags & dns.flags.TC
    few = dns.message.from_wire(answer(question(query("web.prod", kind)), many[:5], None, limit))
    assert not few.flags & dns.flags.TC
    assert len(few.answer[0]) == 5


def test_failure_and_truncation() -> None:
    found = question(query())
    assert dns.message.from_wire(failure(found, dns.rcode.SERVFAIL)).rcode() == dns.rcode.SERVFAIL
    assert dns.message.from_wire(truncated(found)).flags & dns.flags.TC


def test_which_upstream_messages_are_the_answer() -> None:
    asked = query("web.prod")
    reply = dns.message.make_response(dns.message.from_wire(asked)).to_wire()
    assert answers(asked, reply)
    assert answers(asked, reply.replace(b"web", b"WEB"))
    assert not answers(asked, asked)
    assert not answers(asked, bytes([reply[0] ^ 1]) + reply[1:])
    assert not answers(asked, reply.replace(b"web", b"wib"))
    assert not answers(asked, reply[:11])
    refused = reply[:2] + b"\x80\x05" + bytes(8)
    assert answers(asked, refused)
    assert not answers(asked, reply[:2] + b"\x80\x00" + bytes(8))


headers = st.builds(
    lambda head, rest: struct.pack("!HHHHHH", *head) + rest,
    st.tuples(*[st.integers(0, 65535)] * 2, *[st.integers(0, 3)] * 4),
    st.binary(max_size=80),
)
mutated = st.builds(
    lambda at, value, wire: wire[: at % len(wire)] + value + wire[at % len(wire) + 1 :],
    st.integers(0, 200),
    st.binary(max_size=3),
    st.sampled_from([query(), query(use_edns=0, payload=4096), query("x." * 60, "TXT")]),
)


@given(st.one_of(st.binary(max_size=100), headers, mutated))
@example(query()[:12] + b"\xc0")
def test_reading_never_raises(wire: bytes) -> None:
    found = read_question(wire)
    if isinstance(found, Question):
        reply = failure(found, dns.rcode.SERVFAIL)
        assert reply[:2] == wire[:2]
        if found.family is not None:
            address = "10.0.0.1" if found.family is Family.IPV4 else "fd00::1"
            assert len(answer(found, (address,), None, 512)) <= 512
    elif found.response is not None:
        assert found.response[:2] == wire[:2]
        assert found.response[2] & 0x80
    answers(wire, wire)
    answers(query(), wire)
