"""How long workload certificates are good for, as the operator says it."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass

from ztunnel.config.values import duration

SHORTEST = datetime.timedelta(minutes=1)
"""A proxy renews at half of a certificate's life, and clocks differ by seconds."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Of workload certificates: for callers that ask for none, and what they may ask for."""

    default: datetime.timedelta = datetime.timedelta(hours=24)
    longest: datetime.timedelta = datetime.timedelta(days=90)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``read_lifetimes`` reads."""
    usual = Lifetimes()
    parser.add_argument(
        "--certificate-lifetime",
        type=_lifetime,
        default=usual.default,
        metavar="TIME",
        help="of certificates, for callers that name none, such as 90m or 12h"
        f" ({_hours(usual.default)}; ztunnel names its SECRET_TTL)",
    )
    parser.add_argument(
        "--longest-certificate-lifetime",
        type=_lifetime,
        default=usual.longest,
        metavar="TIME",
        help=f"who asks for more is refused ({_hours(usual.longest)})",
    )


def read_lifetimes(arguments: argparse.Namespace) -> Lifetimes:
    """What was given. What nobody may ask for is not given unasked either."""
    longest: datetime.timedelta = arguments.longest_certificate_lifetime
    return Lifetimes(min(arguments.certificate_lifetime, longest), longest)


def _hours(time: datetime.timedelta) -> str:
    return f"{time.total_seconds() / 3600:g}h"


def _lifetime(text: str) -> datetime.timedelta:
    try:
        found = datetime.timedelta(seconds=duration(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if found < SHORTEST:
        raise argparse.ArgumentTypeError(f"{text}: {SHORTEST.total_seconds():g}s is the least")
    return found
