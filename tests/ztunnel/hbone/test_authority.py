import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.authority import Authority, AuthorityError, format_authority, parse_authority


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:8080", Authority("10.0.0.1", 8080, True)),
        ("[2001:DB8::1]:443", Authority("2001:db8::1", 443, True)),
        ("[::ffff:10.0.0.1]:80", Authority("10.0.0.1", 80, True)),
        ("Web.Shop.svc.cluster.local:80", Authority("web.shop.svc.cluster.local", 80, False)),
        ("web.shop.:65535", Authority("web.shop", 65535, False)),
        ("web_1:1", Authority("web_1", 1, False)),
        ("1st.example:1", Authority("1st.example", 1, False)),
    ],
)
def test_good(text: str, expected: Authority) -> None:
    assert parse_authority(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "web",
        "web:",
        "web:http",
        "web:0",
        "web:65536",
        "web:-1",
        "web:+1",
        "web:1 ",
        "web:\u0661",
        "web:000080",
        "[10.0.0.1]:80",
        "[::1]",
        "[::1:80",
        "::1:80",
        "[::1]x:80",
        "[fe80::1%eth0]:80",
        "[]:80",
        "10.0.0.256:80",
        "10.0.0:80",
        "10.0.0.1.:80",
        "010.0.0.1:80",
        "0x7f000001:80",
        "2130706433:80",
        "user@web:80",
        "http://web:80",
        "we b:80",
        "-web:80",
        "web-:80",
        "web..shop:80",
        ".:80",
        "*.shop:80",
        "w\u00e9b:80",
        "a" * 64 + ":80",
        "a." * 200 + "a:80",
        "web\n:80",
        "web:80\n",
    ],
)
def test_bad(text: str) -> None:
    with pytest.raises(AuthorityError):
        parse_authority(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_addresses_survive(address: ipaddress.IPv4Address, port: int) -> None:
    authority = parse_authority(format_authority(str(address), port))
    assert authority.is_ip
    assert authority.port == port
    assert parse_authority(str(authority)) == authority


@given(st.text(max_size=40) | st.from_regex(r"[\[\]:.0-9a-f]{1,30}:[0-9]{1,6}", fullmatch=True))
def test_anything_is_an_authority_or_an_authority_error(text: str) -> None:
    try:
        authority = parse_authority(text)
    except AuthorityError:
        return
    assert 0 < authority.port < 65536
    assert parse_authority(str(authority)) == authority
    if authority.is_ip:
        assert str(ipaddress.ip_address(authority.host)) == authority.host
