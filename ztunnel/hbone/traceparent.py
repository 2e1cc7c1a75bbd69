"""The ``traceparent`` header (W3C Trace Context section 3.2): the trace a connection belongs to."""

import re
from dataclasses import dataclass
from typing import Final

RANDOM_BITS: Final = 192

_FORM: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\s]*)?", re.ASCII
)
_LONGEST: Final = 512


@dataclass(frozen=True, slots=True)
class Traceparent:
    """Trace and parent span as lower-case hexadecimal text, and the flags."""

    trace_id: str
    parent_id: str
    flags: int

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags:02x}"


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


def parse_traceparent(text: str) -> Traceparent | None:
    """Read the header; None for anything that the standard does not allow. Never raises.

    A later version may have more fields at its end, version 00 has not (section 3.2.4).
    """
    if len(text) > _LONGEST:
        return None
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return Traceparent(trace_id, parent_id, int(flags, 16))
