import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.forwarded import (
    MAX_LENGTH,
    Forwarded,
    format_forwarded,
    forwarded_host,
    parse_forwarded,
)


def test_what_is_written() -> None:
    assert format_forwarded("10.0.0.1", 1234) == 'for="10.0.0.1:1234"'
    assert (
        format_forwarded("2001:db8::1", 1, "web.shop.svc.cluster.local")
        == 'for="[2001:db8::1]:1";host=web.shop.svc.cluster.local'
    )
    assert format_forwarded("10.0.0.1", 1, 'a"b:80') == 'for="10.0.0.1:1";host="a\\"b:80"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Forwarded()),
        ('for="10.0.0.1:1";host=web', Forwarded("10.0.0.1:1", "web")),
        ('host="web:80"', Forwarded("", "web:80")),
        ("host=web:80", Forwarded("", "web:80")),
        ("HOST=a ; For=b", Forwarded("b", "a")),
        ("by=x;proto=https;host=a", Forwarded("", "a")),
        ("for=a;host=b, for=c;host=d", Forwarded("a", "b")),
        ("host=a;host=b", Forwarded("", "a")),
        ('host="a\\"b\\\\c"', Forwarded("", 'a"b\\c')),
        ('for=a;host="open', Forwarded("a", "")),
        ("for=a;;host=b", Forwarded("a", "")),
        ("nonsense", Forwarded()),
        ("host=w\u00e9b", Forwarded()),
        ("for=a;host=" + "b" * MAX_LENGTH, Forwarded()),
    ],
)
def test_what_is_read(text: str, expected: Forwarded) -> None:
    assert parse_forwarded(text) == expected


@given(
    st.ip_addresses().map(str),
    st.integers(0, 65535),
    st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=60),
)
def test_round_trip(address: str, port: int, host: str) -> None:
    found = parse_forwarded(format_forwarded(address, port, host))
    assert found.host == host
    assert found.source.endswith(f":{port}")


@given(st.text() | st.text(st.sampled_from('fohrst=";,\\ :a')))
def test_reading_never_raises(text: str) -> None:
    assert forwarded_host(text) == parse_forwarded(text).host
