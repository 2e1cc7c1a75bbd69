"""Policies found by what they demand of a connection, so that their number costs little.

A policy that only applies to some principals, service accounts, namespaces, source networks or
ports is kept under each of these; a connection looks under what it has, and evaluates only what
it finds there. Policies that demand none of these by exact value (other fields, prefixes,
suffixes, negations alone) are evaluated by every connection.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy_match import CompiledMatch, CompiledPolicy

# principal | (namespace,) | (namespace, service account) | (is IPv6, mask, network) | port
Demand = str | tuple[str] | tuple[str, str] | tuple[bool, int, int] | int

_FEW = 4  # below this, to evaluate costs less than to look


def demands(policy: CompiledPolicy) -> frozenset[Demand] | None:
    """One of these a connection must have for the policy to apply; None where nothing says so."""
    found: set[Demand] = set()
    for rule in policy.rules:
        best: tuple[int, set[Demand]] | None = None
        for clause in rule:
            wanted = _of_clause(clause)
            if wanted is not None and (best is None or wanted[0] < best[0]):
                best = wanted
        if best is None:
            return None
        found |= best[1]
    return frozenset(found)


def _of_clause(clause: tuple[CompiledMatch, ...]) -> tuple[int, set[Demand]] | None:
    """The same for a clause, with how little it selects; one without matches demands nothing."""
    if not clause:
        return None
    rank = 0
    found: set[Demand] = set()
    for match in clause:
        if match.empty:
            continue  # never applies, and so adds nothing
        wanted = _of_match(match)
        if wanted is None:
            return None
        rank = max(rank, wanted[0])
        found |= wanted[1]
    return rank, found


def _of_match(match: CompiledMatch) -> tuple[int, set[Demand]] | None:
    if match.principals is not None and match.principals.exact_only:
        return 0, set(match.principals.exact)
    if match.accounts is not None:
        return 1, set(match.accounts.accounts)
    if match.namespaces is not None and match.namespaces.exact_only:
        return 2, {(namespace,) for namespace in match.namespaces.exact}
    if match.source_ips is not None:
        return 3, set(match.source_ips.networks())
    if match.ports:
        return 4, set(match.ports)
    return None


class PolicySet:
    """Some policies, in order of their keys."""

    __slots__ = ("_always", "_by_demand", "_keys", "_masks", "_policies")

    def __init__(self) -> None:
        self._policies: dict[str, CompiledPolicy] = {}
        self._keys: list[str] = []
        self._always: dict[str, CompiledPolicy] = {}
        self._by_demand: dict[Demand, dict[str, CompiledPolicy]] = {}
        self._masks: dict[tuple[bool, int], int] = {}  # in use, with how often

    def __len__(self) -> int:
        return len(self._policies)

    def __iter__(self) -> Iterator[CompiledPolicy]:
        return (self._policies[key] for key in self._keys)

    def add(self, policy: CompiledPolicy) -> None:
        """Take in a policy whose key is not here."""
        key = policy.key
        self._policies[key] = policy
        insort(self._keys, key)
        wanted = demands(policy)
        if wanted is None:
            self._always[key] = policy
            return
        for demand in wanted:
            self._by_demand.setdefault(demand, {})[key] = policy
            if isinstance(demand, tuple) and len(demand) == 3:
                mask = (demand[0], demand[1])
                self._masks[mask] = self._masks.get(mask, 0) + 1

    def remove(self, policy: CompiledPolicy) -> None:
        """Take out a policy that was added."""
        key = policy.key
        del self._policies[key]
        del self._keys[bisect_left(self._keys, key)]
        wanted = demands(policy)
        if wanted is None:
            del self._always[key]
            return
        for demand in wanted:
            kept = self._by_demand[demand]
            del kept[key]
            if not kept:
                del self._by_demand[demand]
            if isinstance(demand, tuple) and len(demand) == 3:
                mask = (demand[0], demand[1])
                self._masks[mask] -= 1
                if not self._masks[mask]:
                    del self._masks[mask]

    def candidates(self, connection: ConnectionAttributes) -> list[CompiledPolicy]:
        """All that may apply to the connection, in no order, some perhaps twice."""
        if len(self._policies) <= _FEW:
            return list(self._policies.values())
        found = list(self._always.values())
        by_demand = self._by_demand
        if not by_demand:
            return found
        wanted: list[Demand] = [connection.destination_port]
        identity = connection.identity
        if identity is not None:
            namespace = identity.namespace
            wanted += (connection.principal, (namespace,), (namespace, identity.service_account))
        if self._masks:
            ipv6, bits = connection.source_bits()
            wanted += [(v6, mask, bits & mask) for v6, mask in self._masks if v6 is ipv6]
        for demand in wanted:
            kept = by_demand.get(demand)
            if kept is not None:
                found += kept.values()
        return found


class PolicyGroup:
    """Several sets that have no policy in common, as one."""

    __slots__ = ("_sets",)

    def __init__(self, sets: tuple[PolicySet, ...]) -> None:
        self._sets = sets

    def __len__(self) -> int:
        return sum(map(len, self._sets))

    def __iter__(self) -> Iterator[CompiledPolicy]:
        """In order of their keys, so that every worker names the same one in the same case."""
        return heapq.merge(*self._sets, key=lambda policy: policy.key)

    def first(self, connection: ConnectionAttributes) -> tuple[CompiledPolicy, int] | None:
        """The first policy by key that applies, with the number (from 1) of its first rule that
        does."""
        found: tuple[CompiledPolicy, int] | None = None
        for policies in self._sets:
            for policy in policies.candidates(connection):
                if found is None or policy.key < found[0].key:
                    rule = policy.first_rule(connection)
                    if rule:
                        found = policy, rule
        return found

    def all(self, connection: ConnectionAttributes) -> list[tuple[CompiledPolicy, int]]:
        """Every policy that applies, in order of their keys, each with its first such rule."""
        found = {}
        for policies in self._sets:
            for policy in policies.candidates(connection):
                rule = policy.first_rule(connection)
                if rule:
                    found[policy.key] = policy, rule
        return [found[key] for key in sorted(found)]
