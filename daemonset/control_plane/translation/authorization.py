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
from ztunnel.proto import authorization_pb2
from ztunnel.proto.authorization_pb2 import Action, Authorization, Group, Match, Scope

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
            _report_dropped_rule(policy, rule, missing, findings)
        elif allow or settings.like_istio:
            message.groups.append(_group(_as_istio(clauses)))
            if missing:
                _report_broader(policy, rule, missing, [], findings)
        else:
            kept = [clause for clause in clauses if all(c.match is not None for c in clause)]
            message.groups.append(_group(_as_istio(kept)))
            if missing:
                _report_broader(policy, rule, missing, kept, findings)
    return message


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


def _as_istio(clauses: list[list[Checked]]) -> list[list[Match]]:
    return [[item.match or Match() for item in clause] for clause in clauses]


def _group(clauses: list[list[Match]]) -> Group:
    return Group(rules=[authorization_pb2.Rules(matches=clause) for clause in clauses])


def _report_dropped_rule(
    policy: AuthorizationPolicy, rule: Rule, missing: list[str], findings: Findings
) -> None:
    findings.error(
        policy.meta.key,
        missing[0],
        "RuleNotEnforceable",
        f"cannot be checked at L4: {rule.path} is left out and allows nobody.",
        _WAYPOINT_ADVICE,
    )


def _report_broader(
    policy: AuthorizationPolicy,
    rule: Rule,
    missing: list[str],
    kept: list[list[Checked]],
    findings: Findings,
) -> None:
    everything = "; nothing is left to check, so it refuses everybody" if not kept else ""
    findings.error(
        policy.meta.key,
        missing[0],
        "RuleBroadened",
        f"cannot be checked at L4: {rule.path} refuses more than it says{everything}.",
        _WAYPOINT_ADVICE,
    )
