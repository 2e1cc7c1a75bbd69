import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.traceparent import RANDOM_BITS, Traceparent, new_traceparent, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@given(st.integers(0, (1 << RANDOM_BITS) - 1))
def test_round_trip(random: int) -> None:
    if not random >> 64 or not random & (1 << 64) - 1:
        with pytest.raises(ValueError, match="192 random bits"):
            new_traceparent(random)
        return
    text = new_traceparent(random)
    assert len(text) == 55
    trace = parse_traceparent(text)
    assert trace is not None
    assert str(trace) == text
    assert trace.flags == 0


def test_too_little_chance_and_too_much() -> None:
    for random in (0, 1, (1 << 64) - 1, 1 << 64, 5 << 64, 1 << RANDOM_BITS):
        with pytest.raises(ValueError, match="192 random bits"):
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
