import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.proxy_header import ProxyHeader, parse_proxy_header
from ztunnel.hbone.proxy_protocol import ProxyProtocolError, build_proxy_header

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
    assert (found[0].source[1], found[0].destination[1]) == (source_port, destination_port)
    for said, meant in ((found[0].source, source), (found[0].destination, destination)):
        mapped = getattr(meant, "ipv4_mapped", None)
        assert said[0] == str(mapped or meant)


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
