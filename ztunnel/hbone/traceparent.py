"""The ``traceparent`` header (W3C Trace Context section 3.2): the trace a connection belongs to."""

from typing import Final

RANDOM_BITS: Final = 192


def new_traceparent(random: int) -> str:
    """The header for a new trace, not sampled.

    Args:
        random: 192 bits from a random generator.

    Raises:
        ValueError: More bits, or an id would be all zero.
    """
    if random >> RANDOM_BITS or not random >> 64 or not random & 0xFFFFFFFFFFFFFFFF:
        raise ValueError("a trace needs 192 random bits")
    digits = f"{random:048x}"
    return f"00-{digits[:32]}-{digits[32:]}-00"
