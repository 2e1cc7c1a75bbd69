"""PeerAuthentication -> Authorization: STRICT is "deny whoever has no principal".

Node proxies take plaintext from anybody; what refuses it is a policy on the workload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.peer_authentication import MutualTLSMode, PeerAuthentication
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.resource import Resource, authorization_resource
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.authorization_pb2 import (
    Action,
    Authorization,
    Group,
    Match,
    Rules,
    Scope,
    StringMatch,
)

STATIC_STRICT = "istio_converted_static_strict"
CONVERTED = "converted_peer_authentication_"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds for one workload: the names of policies to attach, and is it STRICT at all."""

    policies: tuple[str, ...]
    strict: bool


class PeerAuthentications:
    """The effective mode of every workload.

    Attributes:
        resources: all policies that come of it, by name, whether somebody carries them or not:
            attaching one to a workload never waits for it.
    """

    def __init__(
        self, policies: Iterable[PeerAuthentication], settings: MeshSettings, findings: Findings
    ) -> None:
        self._settings = settings
        self._by_namespace: dict[str, PeerAuthentication] = {}
        self._selecting: dict[str, list[tuple[PeerAuthentication, Verdict]]] = {}
        root = settings.root_namespace
        selecting: list[PeerAuthentication] = []
        for policy in sorted(policies, key=lambda item: item.meta.age_order):
            namespace = policy.meta.namespace
            if policy.selector is None:
                first = self._by_namespace.setdefault(namespace, policy)
                if first is not policy:
                    _report_older(policy, first, findings)
            elif namespace == root:
                findings.warning(
                    policy.meta.key,
                    "spec.selector",
                    "SelectorInRootNamespace",
                    "a policy of the root namespace cannot select workloads: it has no effect.",
                    "Put it into the workloads' namespace.",
                )
            else:
                selecting.append(policy)
        static = authorization_resource(_message(root, STATIC_STRICT, [_group([_no_peer()])]))
        self._static_name = static.name
        self.resources: dict[str, Resource] = {static.name: static}
        for policy in selecting:
            inside = self._selecting.setdefault(policy.meta.namespace, [])
            inside.append((policy, self._verdict(policy)))

    def judge(self, namespace: str, labels: Mapping[str, str], findings: Findings) -> Verdict:
        """What holds for a workload."""
        matching = [
            (policy, verdict)
            for policy, verdict in self._selecting.get(namespace, ())
            if policy.selector is not None and policy.selector.matches(labels)
        ]
        if not matching:
            return self._static(self._parent_mode(namespace))
        policy, verdict = matching[0]
        for other, _ in matching[1:]:
            _report_older(other, policy, findings)
        return verdict

    def _verdict(self, policy: PeerAuthentication) -> Verdict:
        """Of a policy with a selector."""
        namespace = policy.meta.namespace
        strict = _is_strict(policy.mode, self._parent_mode(namespace))
        modes = {port: _is_strict(mode, strict) for port, mode in policy.ports.items()}
        exceptions = sorted(port for port, port_strict in modes.items() if port_strict != strict)
        if not exceptions:
            return self._static(strict)
        message = _message(
            namespace, f"{CONVERTED}{policy.meta.name}", _port_groups(strict, exceptions)
        )
        resource = authorization_resource(message)
        self.resources[resource.name] = resource
        return Verdict((resource.name,), strict=True)

    def _static(self, strict: bool) -> Verdict:
        return Verdict((self._static_name,) if strict else (), strict)

    def _parent_mode(self, namespace: str) -> bool:
        mesh = self._by_namespace.get(self._settings.root_namespace)
        own = self._by_namespace.get(namespace)
        strict = _is_strict(mesh.mode, False) if mesh is not None else False
        return _is_strict(own.mode, strict) if own is not None else strict


def _is_strict(mode: MutualTLSMode, inherited: bool) -> bool:
    # DISABLE has no meaning for a node proxy: like PERMISSIVE.
    return inherited if mode is MutualTLSMode.UNSET else mode is MutualTLSMode.STRICT


def _port_groups(strict: bool, exceptions: list[int]) -> list[Group]:
    if strict:
        # One group: no peer AND none of the permissive ports.
        others = [Match(not_destination_ports=[port]) for port in exceptions]
        return [_group([_no_peer(), *others])]
    # One group for each strict port. In one group they would have to hold all at once: never.
    groups: list[Group] = []
    for port in exceptions:
        match = _no_peer()
        match.destination_ports.append(port)
        groups.append(_group([match]))
    return groups


def _no_peer() -> Match:
    anybody = StringMatch()
    anybody.presence.SetInParent()
    return Match(not_principals=[anybody])


def _group(matches: list[Match]) -> Group:
    return Group(rules=[Rules(matches=[match]) for match in matches])


def _message(namespace: str, name: str, groups: list[Group]) -> Authorization:
    return Authorization(
        name=name,
        namespace=namespace,
        scope=Scope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        groups=groups,
    )


def _report_older(
    policy: PeerAuthentication, first: PeerAuthentication, findings: Findings
) -> None:
    older: ObjectKey = first.meta.key
    findings.warning(
        policy.meta.key,
        "",
        "OlderPolicyHolds",
        f"{older} is older and holds for the same workloads: this one has no effect on them.",
        "Keep one of the two.",
    )
