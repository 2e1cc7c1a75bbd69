"""How one value of the environment is read. Every function raises ``ValueError`` in words that
complete the sentence "NAME=value: …"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from ztunnel.linux.routing import MarkedIsLocal

DURATION_UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_INTEGER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_QUANTITY: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(m?)", re.ASCII)
_LONGEST: Final = 100 * 365 * 86400.0
_ANSWERS: Final = MarkedIsLocal()


def boolean(text: str) -> bool:
    """``true`` or ``false``, in any case."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise ValueError("allowed are true and false")
    return lowered == "true"


def integer(text: str, minimum: int, maximum: int) -> int:
    """A decimal number from ``minimum`` to ``maximum``, both included."""
    if not _INTEGER.fullmatch(text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"allowed is a whole number from {minimum} to {maximum}")
    return int(text)


def packet_mark(text: str) -> int | None:
    """A mark, or the file that a node agent has written one into: its last word. 0 is none."""
    if text.startswith("/"):
        try:
            with open(text, encoding="ascii") as file:
                words = file.read(256).split()
            return int(words[-1], 16) or None
        except (OSError, ValueError, IndexError) as error:
            # A moment later the agent may have written it; whoever runs us starts us again.
            raise ValueError(f"no mark can be read from this file: {error}") from error
    mark = integer(text, 0, 2**32 - 1)
    if mark & _ANSWERS.mask == _ANSWERS.mark:
        raise ValueError(
            f"{mark:#x} ends in {_ANSWERS.mark:#x}, by which capture rules know what applications "
            "answer: connections would get no answer"
        )
    return mark or None


def duration(text: str) -> float:
    """Seconds in a duration such as ``5s``, ``1m30s``, ``500ms`` or ``0``."""
    if text == "0":
        return 0.0
    seconds, position = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        seconds += float(part[1]) * DURATION_UNITS[part[2]]
        position = part.end()
    if not text or position != len(text):
        units = ", ".join(DURATION_UNITS)
        raise ValueError(f"allowed is a duration such as 5s, 1m30s or 500ms (units {units})")
    if seconds > _LONGEST:
        raise ValueError("allowed is a duration of at most 100 years")
    return seconds


def cpu_quantity(text: str) -> float:
    """Cores in a Kubernetes CPU quantity: ``2``, ``1.5`` or ``500m``."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("allowed is a number of cores such as 2, 1.5 or 500m")
    return float(match[1]) / (1000.0 if match[2] else 1.0)


def host_and_port(text: str) -> tuple[str, int]:
    """``host:port``, an IPv6 address in brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets, such as [::1]:15053")
    if not colon or not host:
        raise ValueError("allowed is host:port, such as localhost:15053")
    return host, integer(port, 1, 65535)


def worker_threads(text: str, cores: int) -> int:
    """Workers asked for: a number, ``N%`` of ``cores`` rounded up, or ``0`` for all cores."""
    number = text.removesuffix("%")
    try:
        amount = integer(number, 0, 4096)
    except ValueError:
        raise ValueError("allowed is a number of workers, a share such as 50%, or 0") from None
    if number == text:
        return amount or cores
    if not 1 <= amount <= 100:
        raise ValueError("allowed is a share from 1% to 100%")
    return max(1, math.ceil(cores * amount / 100))
