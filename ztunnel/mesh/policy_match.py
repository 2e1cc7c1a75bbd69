"""Policies in the form in which they are evaluated: sets, and networks as numbers.

Made once when a policy arrives, so that a connection costs a few set look-ups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ztunnel.mesh.address import IPNetwork
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)


class TextMatcher:
    """Several StringMatches at once; a missing text ("") matches none of them."""

    __slots__ = ("exact", "prefixes", "presence", "suffixes")

    def __init__(self, matches: Iterable[StringMatch]) -> None:
        by_kind: dict[StringMatchKind, list[str]] = {kind: [] for kind in StringMatchKind}
        for match in matches:
            by_kind[match.kind].append(match.value)
        self.exact = frozenset(by_kind[StringMatchKind.EXACT])
        self.prefixes = tuple(by_kind[StringMatchKind.PREFIX])
        self.suffixes = tuple(by_kind[StringMatchKind.SUFFIX])
        self.presence = bool(by_kind[StringMatchKind.PRESENCE])

    @property
    def exact_only(self) -> bool:
        """Whether nothing but the values in `exact` matches."""
        return not (self.presence or self.prefixes or self.suffixes)

    def matches(self, text: str) -> bool:
        """Whether one of the conditions holds for `text`."""
        if not text:
            return False
        return (
            text in self.exact
            or self.presence
            or text.startswith(self.prefixes)
            or text.endswith(self.suffixes)
        )


class NetworkMatcher:
    """Several networks at once, by family and mask."""

    __slots__ = ("_v4", "_v6")

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self._v4: dict[int, set[int]] = {}
        self._v6: dict[int, set[int]] = {}
        for network in networks:
            by_mask = self._v4 if network.version == 4 else self._v6
            by_mask.setdefault(int(network.netmask), set()).add(int(network.network_address))

    def networks(self) -> Iterator[tuple[bool, int, int]]:
        """Each network: is IPv6, mask, first address."""
        for ipv6, by_mask in ((False, self._v4), (True, self._v6)):
            for mask, networks in by_mask.items():
                for network in networks:
                    yield ipv6, mask, network

    def matches(self, address: tuple[bool, int]) -> bool:
        """Whether an address (is IPv6, number) is in one of the networks."""
        ipv6, bits = address
        by_mask = self._v6 if ipv6 else self._v4
        return any(bits & mask in networks for mask, networks in by_mask.items())


class AccountMatcher:
    """Several service accounts at once."""

    __slots__ = ("accounts",)

    def __init__(self, matches: Iterable[ServiceAccountMatch]) -> None:
        self.accounts = frozenset((match.namespace, match.service_account) for match in matches)

    def matches(self, connection: ConnectionAttributes) -> bool:
        """Whether the peer runs as one of them."""
        identity = connection.identity
        if identity is None:
            return False
        return (identity.namespace, identity.service_account) in self.accounts


def _text(matches: tuple[StringMatch, ...]) -> TextMatcher | None:
    return TextMatcher(matches) if matches else None


def _networks(networks: tuple[IPNetwork, ...]) -> NetworkMatcher | None:
    return NetworkMatcher(networks) if networks else None


def _accounts(matches: tuple[ServiceAccountMatch, ...]) -> AccountMatcher | None:
    return AccountMatcher(matches) if matches else None


class CompiledMatch:
    """One match; a field that it does not name is None."""

    __slots__ = (
        "accounts",
        "destination_ips",
        "empty",
        "match",
        "namespaces",
        "not_accounts",
        "not_destination_ips",
        "not_namespaces",
        "not_ports",
        "not_principals",
        "not_source_ips",
        "ports",
        "principals",
        "source_ips",
    )

    def __init__(self, match: Match) -> None:
        self.match = match
        self.ports = frozenset(match.destination_ports)
        self.not_ports = frozenset(match.not_destination_ports)
        self.namespaces = _text(match.namespaces)
        self.not_namespaces = _text(match.not_namespaces)
        self.principals = _text(match.principals)
        self.not_principals = _text(match.not_principals)
        self.accounts = _accounts(match.service_accounts)
        self.not_accounts = _accounts(match.not_service_accounts)
        self.source_ips = _networks(match.source_ips)
        self.not_source_ips = _networks(match.not_source_ips)
        self.destination_ips = _networks(match.destination_ips)
        self.not_destination_ips = _networks(match.not_destination_ips)
        self.empty = match == Match()

    def matches(self, connection: ConnectionAttributes) -> bool:
        """Whether every field that the match names holds. Cheap fields first."""
        if self.empty:
            return False
        port = connection.destination_port
        if (self.ports and port not in self.ports) or port in self.not_ports:
            return False
        return self._peer_matches(connection) and self._addresses_match(connection)

    def _peer_matches(self, connection: ConnectionAttributes) -> bool:
        principal, namespace = connection.principal, connection.namespace
        return not (
            (self.principals is not None and not self.principals.matches(principal))
            or (self.not_principals is not None and self.not_principals.matches(principal))
            or (self.namespaces is not None and not self.namespaces.matches(namespace))
            or (self.not_namespaces is not None and self.not_namespaces.matches(namespace))
            or (self.accounts is not None and not self.accounts.matches(connection))
            or (self.not_accounts is not None and self.not_accounts.matches(connection))
        )

    def _addresses_match(self, connection: ConnectionAttributes) -> bool:
        if self.source_ips is not None and not self.source_ips.matches(connection.source_bits()):
            return False
        if self.not_source_ips is not None and self.not_source_ips.matches(
            connection.source_bits()
        ):
            return False
        if self.destination_ips is not None and not self.destination_ips.matches(
            connection.destination_bits()
        ):
            return False
        return self.not_destination_ips is None or not self.not_destination_ips.matches(
            connection.destination_bits()
        )


class CompiledPolicy:
    """A policy ready to be evaluated."""

    __slots__ = ("key", "policy", "rules")

    def __init__(self, policy: Authorization) -> None:
        self.policy = policy
        self.key = policy.key
        self.rules = tuple(
            tuple(tuple(CompiledMatch(match) for match in clause) for clause in rule)
            for rule in policy.rules
        )

    def first_rule(self, connection: ConnectionAttributes) -> int:
        """Number (from 1) of the first rule that applies to the connection; 0 if none does."""
        number = 0
        for rule in self.rules:
            number += 1
            for clause in rule:
                if not clause:
                    continue
                for match in clause:
                    if match.matches(connection):
                        break
                else:
                    break
            else:
                return number
        return 0
