import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.proxy_protocol import (
    ProxyHeader,
    ProxyProtocolError,
    build_proxy_header,
    parse_proxy_header,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"


def test_on_the_wire() -> None:
    header = build_proxy_header(("10.0.0.1", 0x1234), ("10.0.0.2", 80), "id", "host")
    assert header == (
        SIGNATURE
        + b"\x21\x11\x00\x18"
        + bytes((10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0, 80))
        + b"\xd0\x00\x02id"
        + b"\xd1\x00\x04host"
    )


def test_two_families_in_one_header() -> None:
    header = build_proxy_header(("10.0.0.1", 1), ("2001:db8::1", 2))
    assert header[13] == 0x21
    found = parse_proxy_header(header)
    assert found == (ProxyHeader(("10.0.0.1", 1), ("2001:db8::1", 2)), len(header))


@given(
    st.ip_addresses(),
    st.integers(0, 65535),
    st.ip_addresses(),
    st.integers(0, 65535),
    st.text(max_size=40),
    st.text(max_size=40),
    st.binary(max_size=10),
)
def test_round_trip(
    source: ipaddress.IPv4Address,
    source_port: int,
    destination: ipaddress.IPv4Address,
    destination_port: int,
    identity: str,
    host: str,
    rest: bytes,
) -> None:
    header = build_proxy_header(
        (str(source), source_port), (str(destination), destination_port), identity, host
    )
    for end in range(len(header)):
        assert parse_proxy_header(header[:end]) is None
    found = parse_proxy_header(header + rest)
    assert found is not None
    assert found[1] == len(header)
    assert (found[0].identity, found[0].target_host) == (identity, host)
    assert found[0].source is not None
    assert found[0].source[1] == source_port


@pytest.mark.parametrize(
    "arguments",
    [
        (("web", 1), ("10.0.0.1", 1)),
        (("10.0.0.1", 65536), ("10.0.0.1", 1)),
        (("10.0.0.1", -1), ("10.0.0.1", 1)),
        (("10.0.0.1", 1), ("10.0.0.1", 1), "x" * 1025),
    ],
)
def test_what_fits_in_no_header(arguments: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(ProxyProtocolError):
        build_proxy_header(*arguments)  # type: ignore[arg-type]


def test_local_and_unknown_values() -> None:
    assert parse_proxy_header(SIGNATURE + b"\x20\x00\x00\x00") == (ProxyHeader(None, None), 16)
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2))
    header = SIGNATURE + b"\x21\x11\x00\x10" + addresses + b"\x04\x00\x01x"
    found = parse_proxy_header(header)
    assert found is not None
    assert found[0] == ProxyHeader(("10.0.0.1", 1), ("10.0.0.2", 2))


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x31\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x10\x01",
        SIGNATURE + b"\x21\x11\x00\x0e" + bytes(14),
        SIGNATURE + b"\x21\x11\x00\x0f" + bytes(12) + b"\xd0\x00\x01",
        SIGNATURE + b"\x21\x11\x00\x10" + bytes(12) + b"\xd0\x00\x01\xff",
    ],
)
def test_broken_headers(header: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse_proxy_header(header)


@given(st.binary(max_size=80), st.booleans())
def test_anything_is_a_header_or_an_error(data: bytes, signed: bool) -> None:
    try:
        found = parse_proxy_header(SIGNATURE + b"\x21\x11" + data if signed else data)
    except ProxyProtocolError:
        return
    assert found is None or found[1] <= len(data) + 14
