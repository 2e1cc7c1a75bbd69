"""AuthorizationPolicy -> Authorization.

A rule becomes a group; its ``from`` list is one clause, its ``to`` list another, each ``when``
entry one more; clauses are AND-ed, the elements of a clause OR-ed.

What L4 cannot check is decided so that the mesh never lets through what the policy refuses:

- ALLOW: a rule with anything L7 in it is left out; without rules the policy allows nothing.
- DENY: L7 fields are left out of their element, which so denies more. An element that was L7
  alone would match everything once they are gone, so its whole clause is true and leaves the AND.
  (Istio sends an empty match instead, which never matches, so that DENY {from X, to GET} denies
  nothing at all; ``like_istio`` restores that.)
- CUSTOM: nobody can be asked at L4, so what the rules cover is refused. Istio ignores the policy.
- AUDIT: has no effect at L4, and never refused anything: a finding, no more.
- Policies with targetRefs belong to waypoints. Where a target has a waypoint, they are enforced
  there. Where it has none, Istio enforces them nowhere; here they become policies of the target's
  workloads, with all that was said above. A service's ports are translated into its targets.
"""

from __future__ import annotations

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy, Rule
from daemonset.control_plane.translation.authorization_match import (
    Checked,
    PortTargets,
    check_condition,
    check_element,
    same_port,
)
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.authorization_pb2 import Action, Authorization, Group, Match, Rules, Scope

_WAYPOINT_ADVICE = "Give the service a waypoint and the policy a targetRef, or use L4 fields only."


def convert(
    policy: AuthorizationPolicy,
    settings: MeshSettings,
    findings: Findings,
    *,
    workload_scope: bool = False,
    targets: PortTargets = same_port,
) -> Authorization | None:
    """One policy, or None where it has no effect at L4 (a finding says so).

    Args:
        workload_scope: it is to be attached to workloads, whatever its selector says.
        targets: how to read the ports it names.
    """
    key = policy.meta.key
    if policy.action == "AUDIT" or (policy.action == "CUSTOM" and settings.like_istio):
        findings.warning(
            key,
            "spec.action",
            "UnsupportedValue",
            f"{policy.action} has no effect at L4.",
            _WAYPOINT_ADVICE,
        )
        return None
    if policy.action == "CUSTOM":
        findings.error(
            key,
            "spec.action",
            "UnsupportedValue",
            "nobody can be asked at L4: what the rules cover is refused.",
            _WAYPOINT_ADVICE,
        )
    allow = policy.action == "ALLOW"
    if not allow and not policy.rules:
        findings.warning(
            key,
            "spec.rules",
            "NoRules",
            f"a {policy.action} policy without rules refuses nothing.",
            "Add rules; one empty rule ({}) covers everything.",
        )
    message = Authorization(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        scope=_scope(policy, settings, workload_scope),
        action=Action.ALLOW if allow else Action.DENY,
        dry_run=policy.dry_run,
    )
    for rule in policy.rules:
        clauses = _clauses(rule, policy.meta.namespace, targets)
        missing = [path for clause in clauses for checked in clause for path in checked.missing]
        if allow and missing:
            _report(policy, missing, f"{rule.path} is left out and allows nobody", findings)
            continue
        kept = [clause for clause in clauses if all(item.match is not None for item in clause)]
        if settings.like_istio:
            message.groups.append(_group(clauses))
            consequence = "refuses nobody" if len(kept) < len(clauses) else "refuses more"
        else:
            message.groups.append(_group(kept))
            consequence = "refuses more than it says" if kept else "refuses everybody"
        if missing:
            _report(policy, missing, f"{rule.path} {consequence}", findings)
    return message


def asks_for_http(policy: AuthorizationPolicy) -> bool:
    """Is there anything in it that only a waypoint can check?"""
    return any(
        checked.missing
        for rule in policy.rules
        for clause in _clauses(rule, policy.meta.namespace, same_port)
        for checked in clause
    )


def _scope(policy: AuthorizationPolicy, settings: MeshSettings, workload: bool) -> Scope:
    if workload or policy.selector is not None:
        return Scope.WORKLOAD_SELECTOR
    in_root = policy.meta.namespace == settings.root_namespace
    return Scope.GLOBAL if in_root else Scope.NAMESPACE


def _clauses(rule: Rule, namespace: str, targets: PortTargets) -> list[list[Checked]]:
    clauses: list[list[Checked]] = []
    if rule.operations:
        clauses.append([check_element(item, namespace, targets) for item in rule.operations])
    if rule.sources:
        clauses.append([check_element(item, namespace, targets) for item in rule.sources])
    clauses += [[check_condition(item, namespace, targets)] for item in rule.conditions]
    return clauses


def _group(clauses: list[list[Checked]]) -> Group:
    """An element of which nothing is left becomes an empty match, which matches nothing."""
    return Group(
        rules=[Rules(matches=[item.match or Match() for item in clause]) for clause in clauses]
    )


def _report(
    policy: AuthorizationPolicy, missing: list[str], consequence: str, findings: Findings
) -> None:
    for path in missing:
        findings.error(
            policy.meta.key,
            path,
            "UnsupportedValue",
            f"cannot be checked at L4: {consequence}.",
            _WAYPOINT_ADVICE,
        )
