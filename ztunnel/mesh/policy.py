"""An authorization policy, as the workload API carries it.

A policy applies when one of its rules does; a rule when each of its clauses does; a clause
when one of its matches does, or when it has none; a match when each field that it names does,
and a match that names no field never does. Of the values of one field one must be right, and of
the values of a field whose name begins with `not_` none may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztunnel.mesh.address import IPNetwork


class PolicyScope(Enum):
    """Which destinations a policy is for."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class PolicyAction(Enum):
    """What a policy does with a connection that it applies to."""

    ALLOW = "Allow"
    DENY = "Deny"


class StringMatchKind(Enum):
    """How a text is compared. PRESENCE asks only that there is one."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """A condition on one text."""

    kind: StringMatchKind
    value: str = ""

    def __str__(self) -> str:
        if self.kind is StringMatchKind.PRESENCE:
            return "any"
        if self.kind is StringMatchKind.PREFIX:
            return f"{self.value}*"
        return f"*{self.value}" if self.kind is StringMatchKind.SUFFIX else self.value


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    """One service account of one namespace, in any trust domain."""

    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account}"


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions on one connection; see the module's text for how they combine."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Authorization:
    """One policy. `unreadable`, when not empty, says why its rules could not be read: such a
    policy stands in for one that would otherwise vanish, and denies."""

    name: str
    namespace: str
    scope: PolicyScope
    action: PolicyAction
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    unreadable: str = ""

    @property
    def key(self) -> str:
        """The resource name: "namespace/name"."""
        return f"{self.namespace}/{self.name}"
