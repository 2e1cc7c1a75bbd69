"""Addresses as text and numbers, against what the kernel's library writes."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ztunnel.mesh.strategies import any_ips
from ztunnel.mesh.address import (
    canonical_ip,
    format_address,
    ip_bits,
    ip_from_bytes,
    is_loopback,
    network_from_bytes,
    parse_network,
)
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy_match import NetworkMatcher


def as_kernel(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
@example(bytes(16))
@example(bytes(15) + b"\x01")
@example(bytes(12) + b"\x01\x02\x03\x04")
@example(bytes(12) + b"\x00\x02\x03\x04")
@example(bytes(12) + b"\x00\x00\x03\x04")
@example(b"\x00\x01" * 8)
@example(b"\x00\x01\x00\x00" * 4)
def test_canonical_text_is_what_inet_ntop_writes(raw: bytes) -> None:
    if raw.startswith(bytes(10) + b"\xff\xff") and len(raw) == 16:
        return
    assert ip_from_bytes(raw) == as_kernel(raw)
    assert canonical_ip(as_kernel(raw)) == as_kernel(raw)


def test_mapped_ipv4_is_ipv4() -> None:
    assert ip_from_bytes(bytes(10) + b"\xff\xff\x0a\x00\x00\x01") == "10.0.0.1"
    assert canonical_ip("::ffff:10.0.0.1") == "10.0.0.1"
    assert str(parse_network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    assert parse_network("::ffff:0:0/95").version == 6


@pytest.mark.parametrize("raw", [b"", b"123", b"12345", bytes(15), bytes(17)])
def test_other_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        ip_from_bytes(raw)
    with pytest.raises(ValueError, match="bytes"):
        network_from_bytes(raw, 1)


@pytest.mark.parametrize("text", ["", "10.0.0", "010.0.0.1", "fe80::1%eth0", "web", "10.0.0.1/8"])
def test_texts_that_are_no_address_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        canonical_ip(text)


def test_networks_have_no_zone() -> None:
    with pytest.raises(ValueError, match="has a zone"):
        parse_network("fe80::%eth0/64")


def test_prefixes_must_fit_their_family() -> None:
    with pytest.raises(ValueError, match="33 bits"):
        network_from_bytes(bytes(4), 33)
    with pytest.raises(ValueError, match="129 bits"):
        network_from_bytes(bytes(16), 129)
    assert str(network_from_bytes(b"\x0a\x01\x02\x03", 8)) == "10.0.0.0/8"


@given(any_ips)
def test_numbers_are_the_standard_librarys(ip: str) -> None:
    assert ip_bits(ip) == int(ipaddress.ip_address(ip))


@given(
    st.lists(st.ip_addresses(v=4).map(str), max_size=3),
    st.lists(st.ip_addresses(v=6).map(str), max_size=3),
    st.integers(0, 32),
    any_ips,
)
def test_networks_hold_what_the_standard_library_says(
    fours: list[str], sixes: list[str], length: int, ip: str
) -> None:
    texts = [f"{text}/{length}" for text in [*fours, *sixes, ip]][: len(fours) + len(sixes)]
    networks = [parse_network(text) for text in texts]
    expected = any(ipaddress.ip_address(ip) in network for network in networks)
    bits = ConnectionAttributes(ip, None, "::", 1).source_bits()
    assert NetworkMatcher(networks).matches(bits) is expected


def test_an_address_holds_itself_and_families_do_not_mix() -> None:
    matcher = NetworkMatcher([parse_network("0.0.0.0/0")])
    assert matcher.matches((False, ip_bits("1.2.3.4")))
    assert not matcher.matches((True, ip_bits("::1")))


def test_formatting_and_loopback() -> None:
    assert format_address(("::1", 80)) == "[::1]:80"
    assert format_address(("1.2.3.4", 80)) == "1.2.3.4:80"
    assert is_loopback("127.9.9.9")
    assert not is_loopback("128.0.0.1")
