"""The policies of the mesh, found by what they are for.

A connection must not pay for policies that cannot apply to it: global policies, those of each
namespace, and those that a workload names are kept apart, and what applies to one workload is
remembered until a policy or the workload changes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.mesh.policy import Authorization, PolicyAction, PolicyScope
from ztunnel.mesh.policy_match import CompiledPolicy
from ztunnel.mesh.workload import Workload

# Only workloads of this node are destinations, so this is never reached in a healthy process.
_REMEMBERED = 10_000


class EffectivePolicies:
    """The policies for one destination.

    `unknown` are names that the workload lists although no such policy is here; `unreadable`
    are policies whose rules could not be read.
    """

    __slots__ = ("allow", "deny", "dry_run", "none", "unknown", "unreadable")

    def __init__(self, policies: list[CompiledPolicy], unknown: tuple[str, ...]) -> None:
        enforced = [p for p in policies if not p.policy.dry_run]
        readable = [p for p in enforced if not p.policy.unreadable]
        self.deny = tuple(p for p in readable if p.policy.action is PolicyAction.DENY)
        self.allow = tuple(p for p in readable if p.policy.action is PolicyAction.ALLOW)
        self.dry_run = tuple(p for p in policies if p.policy.dry_run and not p.policy.unreadable)
        self.unreadable = tuple(p for p in enforced if p.policy.unreadable)
        self.unknown = unknown
        self.none = not (policies or unknown)


class PolicyTable:
    """Every policy, by name and by scope."""

    __slots__ = ("_by_namespace", "_effective", "_global", "_policies", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._policies: dict[str, CompiledPolicy] = {}
        self._global: dict[str, CompiledPolicy] = {}
        self._by_namespace: dict[str, dict[str, CompiledPolicy]] = {}
        self._effective: dict[str, tuple[str, tuple[str, ...], EffectivePolicies]] = {}

    def __iter__(self) -> Iterator[Authorization]:
        return (compiled.policy for compiled in self._policies.values())

    def get(self, key: str) -> Authorization | None:
        """The policy of that "namespace/name"."""
        compiled = self._policies.get(key)
        return compiled.policy if compiled is not None else None

    def upsert(self, policy: Authorization) -> bool:
        """Take over a policy; False when nothing changes by it.

        One that could not be read never displaces a version that could.
        """
        old = self.get(policy.key)
        if old == policy or (old is not None and policy.unreadable and not old.unreadable):
            return False
        if old is not None:
            self._unlink(old)
        compiled = CompiledPolicy(policy)
        self._policies[policy.key] = compiled
        if policy.scope is PolicyScope.GLOBAL:
            self._global[policy.key] = compiled
        elif policy.scope is PolicyScope.NAMESPACE:
            self._by_namespace.setdefault(policy.namespace, {})[policy.key] = compiled
        self._changed()
        return True

    def remove(self, key: str) -> Authorization | None:
        """Take a policy away; gives what it was."""
        old = self.get(key)
        if old is None:
            return None
        self._unlink(old)
        del self._policies[key]
        self._changed()
        return old

    def effective(self, workload: Workload) -> EffectivePolicies:
        """What applies to connections to `workload`."""
        known = self._effective.get(workload.uid)
        names = workload.authorization_policies
        if known is not None and known[0] == workload.namespace and known[1] == names:
            return known[2]
        effective = self._collect(workload)
        if len(self._effective) >= _REMEMBERED:
            self._effective.clear()
        self._effective[workload.uid] = (workload.namespace, names, effective)
        return effective

    def _collect(self, workload: Workload) -> EffectivePolicies:
        found = dict(self._global)
        found.update(self._by_namespace.get(workload.namespace, {}))
        unknown = []
        for name in workload.authorization_policies:
            compiled = self._policies.get(name)
            if compiled is None:
                unknown.append(name)
            else:
                found[name] = compiled
        # In order of name, so that every worker names the same policy in the same case.
        return EffectivePolicies([found[key] for key in sorted(found)], tuple(unknown))

    def _unlink(self, policy: Authorization) -> None:
        self._global.pop(policy.key, None)
        of_namespace = self._by_namespace.get(policy.namespace)
        if of_namespace is not None:
            of_namespace.pop(policy.key, None)
            if not of_namespace:
                del self._by_namespace[policy.namespace]

    def _changed(self) -> None:
        self.generation += 1
        self._effective.clear()
