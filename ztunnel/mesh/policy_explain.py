"""Why no ALLOW policy applied: the rule that came nearest, and the fields that failed.

Only computed for a connection that is already denied, and bounded, because denials may flood.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy_match import CompiledMatch, CompiledPolicy

_MATCHES_EXAMINED = 40
_VALUES_SHOWN = 3


def nearest_cause(policies: Iterable[CompiledPolicy], connection: ConnectionAttributes) -> str:
    """The cause in words, from policies of which none applies to the connection."""
    best: list[str] | None = None
    best_where = ""
    examined = 0
    without_rules = ""
    for policy in policies:
        if not policy.rules:
            examined += 1
            without_rules = without_rules or policy.key
        if examined >= _MATCHES_EXAMINED:
            break
        for number, rule in enumerate(policy.rules, start=1):
            failures: list[str] = []
            for clause in rule:
                examined += len(clause)
                failures.extend(_clause_failures(clause, connection))
                if examined >= _MATCHES_EXAMINED:
                    break
            if best is None or len(failures) < len(best):
                best, best_where = failures, f"{policy.key} (rule {number})"
            if examined >= _MATCHES_EXAMINED:
                return f"{best_where}: {' and '.join(best)}"
    if best is None:
        return f"{without_rules} has no rules and therefore allows nothing"
    return f"{best_where}: {' and '.join(best)}"


def _clause_failures(
    clause: tuple[CompiledMatch, ...], connection: ConnectionAttributes
) -> list[str]:
    """What fails in the match of the clause that fails least; [] when one holds."""
    if not clause:
        return []
    found = [_match_failures(match, connection) for match in clause[:_MATCHES_EXAMINED]]
    return min(found, key=len)


def _match_failures(compiled: CompiledMatch, connection: ConnectionAttributes) -> list[str]:
    match = compiled.match
    if compiled.empty:
        return ["a match without conditions never applies"]
    failures = []
    principal, namespace = connection.principal, connection.namespace
    who = f"the peer's identity is {principal}" if principal else "the peer has no identity"
    where = f"the peer's namespace is {namespace}" if namespace else "the peer has no identity"
    source, port = connection.source_ip, connection.destination_port

    def unless(holds: bool, have: str, values: Iterable[object]) -> None:
        if not holds:
            failures.append(f"{have}, not {_one_of(values)}")

    def when(holds: bool, have: str, values: Iterable[object]) -> None:
        if holds:
            failures.append(f"{have}, which must not be {_one_of(values)}")

    if compiled.principals is not None:
        unless(compiled.principals.matches(principal), who, match.principals)
    if compiled.not_principals is not None:
        when(compiled.not_principals.matches(principal), who, match.not_principals)
    if compiled.namespaces is not None:
        unless(compiled.namespaces.matches(namespace), where, match.namespaces)
    if compiled.not_namespaces is not None:
        when(compiled.not_namespaces.matches(namespace), where, match.not_namespaces)
    if compiled.accounts is not None:
        unless(compiled.accounts.matches(connection), who, match.service_accounts)
    if compiled.not_accounts is not None:
        when(compiled.not_accounts.matches(connection), who, match.not_service_accounts)
    if compiled.ports:
        unless(port in compiled.ports, f"the port is {port}", match.destination_ports)
    when(port in compiled.not_ports, f"the port is {port}", match.not_destination_ports)
    bits = connection.source_bits()
    if compiled.source_ips is not None:
        unless(compiled.source_ips.matches(bits), f"the source is {source}", match.source_ips)
    if compiled.not_source_ips is not None:
        holds = compiled.not_source_ips.matches(bits)
        when(holds, f"the source is {source}", match.not_source_ips)
    bits = connection.destination_bits()
    here = f"the destination is {connection.destination_ip}"
    if compiled.destination_ips is not None:
        unless(compiled.destination_ips.matches(bits), here, match.destination_ips)
    if compiled.not_destination_ips is not None:
        when(compiled.not_destination_ips.matches(bits), here, match.not_destination_ips)
    return failures


def _one_of(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    shown = " or ".join(texts[:_VALUES_SHOWN])
    rest = len(texts) - _VALUES_SHOWN
    return f"{shown} or {rest} more" if rest > 0 else shown
