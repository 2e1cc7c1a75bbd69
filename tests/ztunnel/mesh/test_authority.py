"""Authorities of CONNECT requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.mesh.strategies import any_ips
from ztunnel.mesh.address import format_address
from ztunnel.mesh.authority import Authority, AuthorityError, parse_authority


@given(any_ips, st.integers(1, 65535))
def test_addresses_can_be_read(ip: str, port: int) -> None:
    assert parse_authority(format_address((ip, port))) == Authority(ip, "", port)


def test_hostnames_can_be_read() -> None:
    assert parse_authority("Web.Shop.svc:80") == Authority("", "web.shop.svc", 80)
    assert parse_authority("web.shop.svc.:80") == Authority("", "web.shop.svc", 80)
    assert parse_authority("a_b:80").hostname == "a_b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "web",
        "web:",
        "web:0",
        "web:65536",
        "web:+80",
        "web:8 0",
        "web:80x",
        "web:٨٠",
        "10.0.0.1",
        "10.0.0:80",
        "10.0.0.256:80",
        "010.0.0.1:80",
        "::1:80",
        "[::1]80",
        "[::1:80",
        "[10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "[]:80",
        "a..b:80",
        "-a:80",
        "a/b:80",
        "user@a:80",
        "*.a:80",
        f"{'a' * 64}:80",
        f"{'a.' * 140}a:80",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(AuthorityError):
        parse_authority(text)


@given(st.text(max_size=50) | st.text("0123456789:[].abc%-", max_size=30))
def test_no_text_does_harm(text: str) -> None:
    try:
        asked = parse_authority(text)
    except AuthorityError:
        return
    assert bool(asked.ip) != bool(asked.hostname)
    assert 1 <= asked.port <= 65535
