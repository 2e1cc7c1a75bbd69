import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.hbone.traceparent import RANDOM_BITS, new_traceparent


@given(st.integers(0, (1 << RANDOM_BITS) - 1))
def test_a_trace_is_all_chance_and_never_zero(random: int) -> None:
    if not random >> 64 or not random & (1 << 64) - 1:
        with pytest.raises(ValueError, match="192 random bits"):
            new_traceparent(random)
        return
    found = re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-00", new_traceparent(random))
    assert found is not None
    assert int(found[1] + found[2], 16) == random
    assert int(found[1], 16)
    assert int(found[2], 16)


def test_too_little_chance_and_too_much() -> None:
    for random in (0, 1, (1 << 64) - 1, 1 << 64, 5 << 64, 1 << RANDOM_BITS):
        with pytest.raises(ValueError, match="192 random bits"):
            new_traceparent(random)
