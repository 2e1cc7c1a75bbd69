"""The policies of the mesh, found by what they are for.

A connection must not pay for policies that cannot apply to it: global policies, those of each
namespace, and those that a workload names are kept apart, each with an index of its own that a
change of one policy updates in place. Which of them a workload is subject to is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.mesh.policy import Authorization, PolicyAction, PolicyScope
from ztunnel.mesh.policy_index import PolicyGroup, PolicySet
from ztunnel.mesh.policy_match import CompiledPolicy
from ztunnel.mesh.workload import Workload

# Only workloads of this node are destinations, so this is never reached in a healthy process.
_REMEMBERED = 10_000


class _Layer:
    """Policies that apply together: all global ones, those of one namespace, or some by name.

    One that could not be read and is only tried out says nothing, but counts.
    """

    __slots__ = ("allow", "count", "deny", "dry_run_allow", "dry_run_deny", "unreadable")

    def __init__(self) -> None:
        self.count = 0
        self.deny = PolicySet()
        self.allow = PolicySet()
        self.dry_run_deny = PolicySet()
        self.dry_run_allow = PolicySet()
        self.unreadable = PolicySet()

    def add(self, policy: CompiledPolicy) -> None:
        self.count += 1
        place = self._place(policy.policy)
        if place is not None:
            place.add(policy)

    def remove(self, policy: CompiledPolicy) -> None:
        self.count -= 1
        place = self._place(policy.policy)
        if place is not None:
            place.remove(policy)

    def _place(self, policy: Authorization) -> PolicySet | None:
        denies = policy.action is PolicyAction.DENY
        if policy.unreadable:
            return None if policy.dry_run else self.unreadable
        if policy.dry_run:
            return self.dry_run_deny if denies else self.dry_run_allow
        return self.deny if denies else self.allow


class EffectivePolicies:
    """The policies for one destination, as they are at each moment.

    `unknown` are names that the workload lists although no such policy is here; `unreadable`
    are policies whose rules could not be read.
    """

    __slots__ = (
        "_layers",
        "allow",
        "deny",
        "dry_run_allow",
        "dry_run_deny",
        "unknown",
        "unreadable",
    )

    def __init__(self, layers: tuple[_Layer, ...], unknown: tuple[str, ...]) -> None:
        self._layers = layers
        self.deny = PolicyGroup(tuple(layer.deny for layer in layers))
        self.allow = PolicyGroup(tuple(layer.allow for layer in layers))
        self.dry_run_deny = PolicyGroup(tuple(layer.dry_run_deny for layer in layers))
        self.dry_run_allow = PolicyGroup(tuple(layer.dry_run_allow for layer in layers))
        self.unreadable = PolicyGroup(tuple(layer.unreadable for layer in layers))
        self.unknown = unknown

    @property
    def none(self) -> bool:
        """Whether nothing at all is said about connections to the destination."""
        if self.unknown:
            return False
        for layer in self._layers:  # noqa: SIM110  (asked for every connection)
            if layer.count:
                return False
        return True


class PolicyTable:
    """Every policy, by name and by scope."""

    __slots__ = ("_by_namespace", "_effective", "_global", "_named", "_policies", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._policies: dict[str, CompiledPolicy] = {}
        self._global = _Layer()
        self._by_namespace: dict[str, _Layer] = {}
        self._effective: dict[str, tuple[str, tuple[str, ...], EffectivePolicies]] = {}
        self._named: set[str] = set()  # by workloads in _effective

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
            self._unlink(self._policies[policy.key])
        compiled = CompiledPolicy(policy)
        self._policies[policy.key] = compiled
        if policy.scope is PolicyScope.GLOBAL:
            self._global.add(compiled)
        elif policy.scope is PolicyScope.NAMESPACE:
            self._namespace(policy.namespace).add(compiled)
        self._changed(policy.key)
        return True

    def remove(self, key: str) -> Authorization | None:
        """Take a policy away; gives what it was."""
        old = self._policies.get(key)
        if old is None:
            return None
        self._unlink(old)
        del self._policies[key]
        self._changed(key)
        return old.policy

    def effective(self, workload: Workload) -> EffectivePolicies:
        """What applies to connections to `workload`."""
        known = self._effective.get(workload.uid)
        names = workload.authorization_policies
        if known is not None and known[0] == workload.namespace and known[1] == names:
            return known[2]
        if len(self._effective) >= _REMEMBERED:
            self._forget()
        effective = self._collect(workload)
        self._effective[workload.uid] = (workload.namespace, names, effective)
        self._named.update(names)
        return effective

    def _collect(self, workload: Workload) -> EffectivePolicies:
        layers = [self._global, self._namespace(workload.namespace)]
        unknown = []
        own = _Layer()
        for name in dict.fromkeys(workload.authorization_policies):
            compiled = self._policies.get(name)
            if compiled is None:
                unknown.append(name)
                continue
            scope, namespace = compiled.policy.scope, compiled.policy.namespace
            # The others are in one of the first two layers already.
            if scope is PolicyScope.WORKLOAD_SELECTOR or (
                scope is PolicyScope.NAMESPACE and namespace != workload.namespace
            ):
                own.add(compiled)
        if own.count:
            layers.append(own)
        return EffectivePolicies(tuple(layers), tuple(unknown))

    def _namespace(self, namespace: str) -> _Layer:
        layer = self._by_namespace.get(namespace)
        if layer is None:
            layer = self._by_namespace[namespace] = _Layer()
        return layer

    def _unlink(self, policy: CompiledPolicy) -> None:
        if policy.policy.scope is PolicyScope.GLOBAL:
            self._global.remove(policy)
        elif policy.policy.scope is PolicyScope.NAMESPACE:
            self._by_namespace[policy.policy.namespace].remove(policy)

    def _changed(self, key: str) -> None:
        """What is remembered sees changes of the scopes by itself, but not of what it names."""
        self.generation += 1
        if key in self._named:
            self._forget()

    def _forget(self) -> None:
        self._effective.clear()
        self._named.clear()
        self._by_namespace = {name: la for name, la in self._by_namespace.items() if la.count}
