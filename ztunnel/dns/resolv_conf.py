"""Reading of resolv.conf(5)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ztunnel.dns.names import Labels, labels

DNS_PORT = 53
MAX_NAMESERVERS = 3  # MAXNS of the C library
MAX_TIMEOUT_SECONDS = 30
MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """Nameservers as (address, port), search domains in order, and the two options that matter.

    `timeout` is seconds per try, `attempts` how often the list of nameservers is gone through.
    `problems` names each line that could not be used, for the log.
    """

    nameservers: tuple[tuple[str, int], ...] = ()
    search: tuple[Labels, ...] = ()
    timeout: float = 5.0
    attempts: int = 2
    problems: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read the text of a resolv.conf. Unknown keywords are ignored, as the C library does."""
    nameservers: list[tuple[str, int]] = []
    search: tuple[Labels, ...] = ()
    timeout, attempts = 5, 2
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        keyword, values = words[0], words[1:]
        if keyword == "nameserver":
            try:
                address = str(ipaddress.ip_address(values[0] if values else ""))
            except ValueError:
                problems.append(f"line {number}: {line.strip()!r} has no readable IP address")
                continue
            if len(nameservers) == MAX_NAMESERVERS:
                problems.append(f"line {number}: more than {MAX_NAMESERVERS} nameservers")
                continue
            nameservers.append((address, DNS_PORT))
        elif keyword in ("search", "domain"):  # the last of either counts
            search = tuple(found for value in values if (found := labels(value)))
        elif keyword == "options":
            for option in values:
                name, _, value = option.partition(":")
                if name not in ("timeout", "attempts"):
                    continue
                if not (value.isascii() and value.isdigit() and len(value) < 10):
                    problems.append(f"line {number}: option {option!r} is not a number")
                elif name == "timeout":
                    timeout = min(max(int(value), 1), MAX_TIMEOUT_SECONDS)
                else:
                    attempts = min(max(int(value), 1), MAX_ATTEMPTS)
    return ResolvConf(tuple(nameservers), search, float(timeout), attempts, tuple(problems))
