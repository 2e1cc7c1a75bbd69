"""NetworkPolicies (networking.k8s.io/v1): what they let through, by the rules of their definition.

Pure. A pod that a policy selects is isolated in the policy's directions, and then only what some
rule of some policy names gets through; a connection needs both its ends to agree.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daemonset.control_plane.objects.located import locate
from daemonset.control_plane.objects.meta import ObjectKey, read_meta
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.selector import LabelSelector, read_selector
from daemonset.kube.client import Json

INGRESS, EGRESS = "ingress", "egress"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class End:
    """A pod as policies see it. ``ports`` are the names of its TCP ports."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]
    ips: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Block:
    """An ipBlock."""

    network: Network
    excluded: tuple[Network, ...]

    def holds(self, address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return ip in self.network and not any(ip in network for network in self.excluded)


@dataclass(frozen=True, slots=True)
class Peer:
    """An entry of ``from`` or ``to``: a block, or pods of the policy's own namespace, or of those
    that ``namespaces`` matches."""

    pods: LabelSelector | None = None
    namespaces: LabelSelector | None = None
    block: Block | None = None

    def matches(self, end: End, home: str) -> bool:
        if self.block is not None:
            return any(map(self.block.holds, end.ips))  # one for each family
        if self.namespaces is None:
            if end.namespace != home:
                return False
        elif not self.namespaces.matches(end.namespace_labels):
            return False
        return self.pods is None or self.pods.matches(end.labels)


@dataclass(frozen=True, slots=True)
class Port:
    """An entry of ``ports``, for TCP: a number up to ``last``, a name, or all (both empty)."""

    first: int = 0
    last: int = 0
    name: str = ""

    def range_at(self, destination: End) -> tuple[int, int] | None:
        """From and to, at a pod that may not have a port of that name."""
        if self.name:
            number = destination.ports.get(self.name)
            return None if number is None else (number, number)
        return (self.first, self.last) if self.first else (1, 65535)


@dataclass(frozen=True, slots=True)
class Rule:
    """``peers`` None: everybody. ``ports`` are those of TCP; empty where a rule is only about
    other protocols."""

    place: str
    peers: tuple[Peer, ...] | None
    ports: tuple[Port, ...]

    def matches(self, end: End, home: str) -> bool:
        return self.peers is None or any(peer.matches(end, home) for peer in self.peers)

    def ranges(self, destination: End) -> list[tuple[int, int]]:
        found = (port.range_at(destination) for port in self.ports)
        return [span for span in found if span is not None]


@dataclass(frozen=True, slots=True)
class Policy:
    """``rules`` by direction; a direction that is not in it is not isolated."""

    key: ObjectKey
    pods: LabelSelector
    rules: Mapping[str, tuple[Rule, ...]]

    def selects(self, end: End) -> bool:
        return end.namespace == self.key.namespace and self.pods.matches(end.labels)


def read_policy(item: Json) -> Policy:
    """A NetworkPolicy as the API has it.

    Raises:
        ObjectError: a field is of the wrong type, or no address block.
        TypeError: it is not JSON.
    """
    root = Section(locate(item))
    meta = read_meta(root, "NetworkPolicy", namespaced=True)
    spec = root.section("spec")
    types = spec.texts("policyTypes") or (
        ("Ingress", "Egress") if spec.has("egress") else ("Ingress",)
    )
    rules: dict[str, tuple[Rule, ...]] = {}
    for kind, direction, peers in (("Ingress", INGRESS, "from"), ("Egress", EGRESS, "to")):
        if kind in types:
            rules[direction] = tuple(_rule(one, peers) for one in spec.sections(direction))
    return Policy(meta.key, read_selector(spec.section("podSelector")), rules)


def _rule(rule: Section, peers: str) -> Rule:
    entries = rule.sections(peers)
    ports = rule.sections("ports")
    tcp = [_port(port) for port in ports if port.text("protocol", "TCP") == "TCP"]
    return Rule(
        rule.path,
        tuple(_peer(one) for one in entries) if entries else None,
        tuple(tcp) if ports else (Port(),),
    )


def _peer(peer: Section) -> Peer:
    if peer.has("ipBlock"):
        block = peer.section("ipBlock")
        excluded = tuple(_network(block, "except", text) for text in block.texts("except"))
        return Peer(block=Block(_network(block, "cidr", block.required_text("cidr")), excluded))
    pods = read_selector(peer.section("podSelector")) if peer.has("podSelector") else None
    spaces = (
        read_selector(peer.section("namespaceSelector")) if peer.has("namespaceSelector") else None
    )
    return Peer(pods, spaces)


def _network(block: Section, name: str, text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise block.error(name, f"is no address block: {error}") from None


def _port(port: Section) -> Port:
    found = port.integer_or_text("port")
    if isinstance(found, str):
        return Port(name=found)
    if not found:
        return Port()
    return Port(found, max(port.integer("endPort", 1, 65535) or found, found))


@dataclass(frozen=True, slots=True)
class Passage:
    """What one end lets through to or from the other.

    Attributes:
        isolated: does any policy select it in this direction?
        rules: those that name the other end, with their policies.
        ranges: TCP ports that they let through; everything where nothing is isolated.
    """

    isolated: bool
    rules: tuple[tuple[Policy, Rule], ...]
    ranges: tuple[tuple[int, int], ...]

    def lets(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self.ranges)


def passage(policies: Iterable[Policy], direction: str, source: End, destination: End) -> Passage:
    """What the destination lets in (``INGRESS``), or the source out (``EGRESS``)."""
    own, other = (destination, source) if direction == INGRESS else (source, destination)
    chosen = [one for one in policies if direction in one.rules and one.selects(own)]
    if not chosen:
        return Passage(False, (), ((1, 65535),))
    rules = tuple(
        (policy, rule)
        for policy in chosen
        for rule in policy.rules[direction]
        if rule.matches(other, policy.key.namespace)
    )
    spans = tuple(span for _, rule in rules for span in rule.ranges(destination))
    return Passage(True, rules, spans)


def common(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> int:
    """The lowest port that both let through; 0 where there is none."""
    both = [max(a, c) for a, b in one for c, d in other if max(a, c) <= min(b, d)]
    return min(both, default=0)
