import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.traceparent import Traceparent, new_traceparent, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@given(st.binary(min_size=24, max_size=30))
def test_round_trip(random: bytes) -> None:
    if not any(random[:16]) or not any(random[16:24]):
        with pytest.raises(ValueError, match="24 random bytes"):
            new_traceparent(random)
        return
    trace = new_traceparent(random)
    assert len(str(trace)) == 55
    assert parse_traceparent(str(trace)) == trace
    assert trace.flags == 0


def test_too_little_chance() -> None:
    for random in (b"x" * 23, bytes(24), bytes(16) + b"x" * 8, b"x" * 16 + bytes(8)):
        with pytest.raises(ValueError, match="24 random bytes"):
            new_traceparent(random)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"01-{TRACE}-{SPAN}-ff", 255),
        (f"01-{TRACE}-{SPAN}-00-more", 0),
    ],
)
def test_good(text: str, flags: int) -> None:
    assert parse_traceparent(text) == Traceparent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-" * 55,
        "0" * 55,
        f"00-{TRACE}{SPAN}-0100-",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-zz",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 512,
    ],
)
def test_bad(text: str) -> None:
    assert parse_traceparent(text) is None


@given(
    st.text(max_size=60) | st.text(st.sampled_from("0123456789abcdef-"), min_size=55, max_size=55)
)
def test_reading_never_raises(text: str) -> None:
    found = parse_traceparent(text)
    assert found is None or len(str(found)) == 55
