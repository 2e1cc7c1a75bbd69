"""May this connection reach this workload? Evaluated at the destination."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.policy import PolicyAction
from ztunnel.mesh.policy_explain import nearest_cause
from ztunnel.mesh.policy_index import PolicyGroup
from ztunnel.mesh.policy_match import CompiledPolicy
from ztunnel.mesh.policy_table import EffectivePolicies
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload

__all__ = ["ConnectionAttributes", "DryRunFinding", "Verdict", "authorize"]


class DryRunFinding(NamedTuple):
    """What a policy that is only tried out would have said; `policy` is "" for all ALLOW ones."""

    policy: str
    allowed: bool
    words: str


class Verdict(NamedTuple):
    """The answer.

    Attributes:
        allowed: whether the connection may go on.
        policy: "namespace/name" of the policy that decided; "" where none did.
        rule: number (from 1) of that policy's rule; 0 where none decided.
        reason: in words.
        dry_run: what policies that are only tried out would have said.
    """

    allowed: bool
    policy: str
    rule: int
    reason: str
    dry_run: tuple[DryRunFinding, ...] = ()


_NO_POLICY = Verdict(True, "", 0, "allowed: no policy applies to the workload")
_NAMES_SHOWN = 5


def authorize(state: MeshState, destination: Workload, connection: ConnectionAttributes) -> Verdict:
    """Evaluate every policy for `destination` against the connection.

    A matching DENY denies; without enforced ALLOW policies everything else is allowed; with
    them, one must match. A policy that the workload names but that is not known, or whose
    rules could not be read, denies, unless the state was told to ignore such policies.
    """
    policies = state.effective_policies(destination)
    if policies.none:
        return _NO_POLICY
    findings = _try_out(policies, connection)
    denied = policies.deny.first(connection)
    if denied is not None:
        policy, rule = denied
        reason = f"denied by policy {policy.key} (rule {rule}): it applies to {connection}"
        return Verdict(False, policy.key, rule, reason, findings)
    if not state.ignore_unknown_policies:
        for policy in policies.unreadable:
            return _deny_unreadable(policy, findings)
        if policies.unknown:
            return _deny_unknown(destination, policies.unknown[0], findings)
    if not len(policies.allow):
        return Verdict(True, "", 0, "allowed: no policy denies it", findings)
    allowed = policies.allow.first(connection)
    if allowed is not None:
        policy, rule = allowed
        reason = f"allowed by policy {policy.key} (rule {rule})"
        return Verdict(True, policy.key, rule, reason, findings)
    return _deny_not_allowed(destination, policies.allow, connection, findings)


def _try_out(
    policies: EffectivePolicies, connection: ConnectionAttributes
) -> tuple[DryRunFinding, ...]:
    deny, allow = policies.dry_run_deny, policies.dry_run_allow
    if not len(deny) and not len(allow):
        return ()
    findings = []
    applying = [*deny.all(connection), *allow.all(connection)]
    for policy, rule in sorted(applying, key=lambda found: found[0].key):
        allows = policy.policy.action is PolicyAction.ALLOW
        would = "allow" if allows else "deny"
        words = f"dry run: policy {policy.key} (rule {rule}) would {would} {connection}"
        findings.append(DryRunFinding(policy.key, allows, words))
    if len(allow) and not any(finding.allowed for finding in findings):
        words = f"dry run: none of the ALLOW policies {_names(allow)} would allow {connection}"
        findings.append(DryRunFinding("", False, words))
    return tuple(findings)


def _deny_unreadable(policy: CompiledPolicy, findings: tuple[DryRunFinding, ...]) -> Verdict:
    reason = (
        f"denied: policy {policy.key} could not be read ({policy.policy.unreadable}), so it may"
        " forbid this connection; correct the policy"
    )
    return Verdict(False, policy.key, 0, reason, findings)


def _deny_unknown(destination: Workload, name: str, findings: tuple[DryRunFinding, ...]) -> Verdict:
    reason = (
        f"denied: workload {destination} is subject to policy {name}, which has not been"
        " received from the control plane; if it was deleted, the workload must stop naming it"
    )
    return Verdict(False, name, 0, reason, findings)


def _deny_not_allowed(
    destination: Workload,
    policies: PolicyGroup,
    connection: ConnectionAttributes,
    findings: tuple[DryRunFinding, ...],
) -> Verdict:
    reason = (
        f"denied: none of the ALLOW policies of {destination} ({_names(policies)}) applies"
        f" to {connection}; nearest: {nearest_cause(policies, connection)}"
    )
    return Verdict(False, "", 0, reason, findings)


def _names(policies: PolicyGroup) -> str:
    shown = ", ".join(policy.key for policy in islice(policies, _NAMES_SHOWN))
    rest = len(policies) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
