"""Do NetworkPolicies let tunnels through (TCP 15008) where they let the applications through?

Pure. Of pods that all policies treat alike one stands for the rest: a cluster of thousands of pods
has some hundred kinds of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daemonset.cluster.network_policy import (
    EGRESS,
    INGRESS,
    Block,
    End,
    Policy,
    common,
    passage,
)
from daemonset.control_plane.objects.meta import ObjectKey

HBONE = 15008


@dataclass(frozen=True, slots=True)
class Blocked:
    """A rule that lets an application's connection through, and not the tunnel that it becomes.

    Attributes:
        source, destination: an example; ``port`` is what the rule lets through there.
        others: how many more pairs of kinds of pods there are.
    """

    policy: ObjectKey
    field: str
    direction: str
    source: str
    destination: str
    port: int
    others: int = 0


@dataclass(frozen=True, slots=True)
class Widened:
    """A rule that limits ports, of a pod that lets tunnels in: inside them it limits nothing."""

    policy: ObjectKey
    field: str
    destination: str


def blocked_tunnels(policies: Sequence[Policy], pods: Iterable[End]) -> list[Blocked]:
    """Every rule that breaks connections between pods of the mesh, ``pods``."""
    found: dict[tuple[ObjectKey, str], Blocked] = {}
    for source, destination, out, into in _pairs(policies, pods):
        ways = {
            EGRESS: passage(out, EGRESS, source, destination),
            INGRESS: passage(into, INGRESS, source, destination),
        }
        port = common(ways[EGRESS].ranges, ways[INGRESS].ranges)
        if not port:
            continue  # they may not talk to each other anyhow
        for direction, way in ways.items():
            if way.lets(HBONE):
                continue
            policy, rule = next(
                (policy, rule)
                for policy, rule in way.rules
                if any(first <= port <= last for first, last in rule.ranges(destination))
            )
            before = found.get((policy.key, rule.place))
            found[policy.key, rule.place] = Blocked(
                policy.key,
                f"{rule.place}.ports",
                direction,
                str(source) if before is None else before.source,
                str(destination) if before is None else before.destination,
                port if before is None else before.port,
                0 if before is None else before.others + 1,
            )
    return list(found.values())


def widened_ports(policies: Sequence[Policy], pods: Iterable[End]) -> list[Widened]:
    """Rules about ports that clients in the mesh need not keep to any more."""
    found: dict[tuple[ObjectKey, str], Widened] = {}
    for source, destination, _, into in _pairs(policies, pods):
        way = passage(into, INGRESS, source, destination)
        if not way.isolated or not way.lets(HBONE):
            continue
        for policy, rule in way.rules:
            spans = rule.ranges(destination)
            if spans and (1, 65535) not in spans and (HBONE, HBONE) not in spans:
                place = f"{rule.place}.ports"
                found[policy.key, place] = Widened(policy.key, place, str(destination))
    return list(found.values())


Chosen = Sequence[Policy]


def _pairs(
    policies: Sequence[Policy], pods: Iterable[End]
) -> Iterable[tuple[End, End, Chosen, Chosen]]:
    """Two of each kind with each other, with the policies that select either, as far as any policy
    has something to say about them."""
    kinds = [
        (end, [policy for policy in policies if policy.selects(end)])
        for end in _kinds(policies, pods)
    ]
    for source, out in kinds:
        for destination, into in kinds:
            if out or into:
                yield source, destination, out, into


def _kinds(policies: Sequence[Policy], pods: Iterable[End]) -> Iterable[End]:
    blocks: list[Block] = sorted(
        {
            peer.block
            for policy in policies
            for rules in policy.rules.values()
            for rule in rules
            for peer in rule.peers or ()
            if peer.block is not None
        },
        key=str,
    )
    # Only what a selector asks for tells pods apart: names of ReplicaSets and hashes do not.
    asked = {name for policy in policies for name in _asked(policy)}
    seen: set[object] = set()
    for pod in pods:
        labels = frozenset((name, pod.labels.get(name)) for name in asked)
        inside = tuple(any(map(block.holds, pod.ips)) for block in blocks)
        kind = (pod.namespace, labels, inside, frozenset(pod.ports.items()))
        if kind not in seen:
            seen.add(kind)
            yield pod


def _asked(policy: Policy) -> Iterable[str]:
    selectors = [policy.pods]
    for rules in policy.rules.values():
        for rule in rules:
            for peer in rule.peers or ():
                selectors += [one for one in (peer.pods,) if one is not None]
    for selector in selectors:
        yield from selector.labels
        yield from (requirement.key for requirement in selector.requirements)
