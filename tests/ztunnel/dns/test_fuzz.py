"""From any bytes of a client to the bytes of an answer, and from any bytes of an upstream."""

from __future__ import annotations

import dns.message
import dns.name
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ztunnel.dns.fakes import FakeLookup, vip
from ztunnel.dns.lookup import Client
from ztunnel.dns.message import (
    HEADER_BYTES,
    MIN_UDP_BYTES,
    Question,
    Rejected,
    answer,
    answers,
    read_question,
    truncated,
)
from ztunnel.dns.resolver import Resolver
from ztunnel.mesh.address import canonical_ip

CLIENT = Client("prod", "")
LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
ADDRESS = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(str).map(canonical_ip)
ADDRESSES = st.lists(ADDRESS, min_size=1, max_size=200, unique=True)


def _fits(labels: list[str]) -> bool:
    return sum(len(label) + 1 for label in labels) <= 230


NAMES = st.lists(LABEL, min_size=1, max_size=12).filter(_fits)


@given(
    NAMES,
    st.sampled_from(["", ".prod.svc.cluster.local", ".svc.cluster.local", ".cluster.local"]),
    st.sampled_from(["A", "AAAA", "TXT", "ANY", "SOA"]),
    ADDRESSES,
    st.integers(0, 65535),
    st.booleans(),
)
@example(
    ["a" * 63, "b" * 63, "c" * 63, "d" * 37], ".prod.svc.cluster.local", "A", ["1.2.3.4"], 0, False
)
def test_any_name_that_the_mesh_has_gets_an_answer_that_fits(
    name: list[str], behind: str, kind: str, addresses: list[str], payload: int, edns: bool
) -> None:
    """Also a name as long as names can be, which a CNAME then repeats."""
    host = ".".join(name)
    resolver = Resolver(FakeLookup(vip(host, "prod", *addresses)))
    query = dns.message.make_query(host + behind, kind, use_edns=0 if edns else -1, payload=payload)
    question = read_question(query.to_wire())
    assert isinstance(question, Question)
    if question.name is None or question.family is None:
        return
    found = resolver.resolve(CLIENT, question.name, question.family)
    assert found is not None
    wire = answer(question, found.addresses, found.alias, question.udp_bytes)
    assert len(wire) <= max(question.udp_bytes, MIN_UDP_BYTES)
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    given_out = [record.address for rrset in response.answer for record in rrset
                 if rrset.rdtype.name == kind]  # fmt: skip
    assert set(given_out) <= set(found.addresses)
    cut = bool(response.flags & dns.flags.TC)
    assert cut or len(given_out) == len(found.addresses)


@given(st.binary(max_size=80), st.data())
def test_any_question_is_read_or_turned_down_in_a_readable_way(
    noise: bytes, data: st.DataObject
) -> None:
    wire = bytearray(
        dns.message.make_query("web.prod.svc.cluster.local", "A", use_edns=0).to_wire()
    )
    position = data.draw(st.integers(0, len(wire)))
    wire[position : position + len(noise)] = noise
    found = read_question(bytes(wire))
    if isinstance(found, Rejected):
        assert found.reason
        if found.response is not None:
            assert found.response[2] & 0x80
            assert found.response[:2] == wire[:2]
        return
    dns.message.from_wire(truncated(found))
    if found.name is not None and found.family is not None:
        Resolver(FakeLookup()).resolve(CLIENT, found.name, found.family)


@given(st.binary(max_size=200), st.booleans())
def test_any_upstream_message_is_the_answer_or_is_not(noise: bytes, same_start: bool) -> None:
    query = dns.message.make_query("www.example.com", "A").to_wire()
    response = query[:2] + noise if same_start else noise
    if answers(query, response):
        assert len(response) >= HEADER_BYTES
        assert response[:2] == query[:2]
