"""All policies of the mesh, and which of them each workload carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy, TargetRef
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.authorization import asks_for_http, convert
from daemonset.control_plane.translation.authorization_match import PortTargets
from daemonset.control_plane.translation.endpoints import Selectable, ServicePorts
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.label_index import LabelIndex
from daemonset.control_plane.translation.peer_authentication import PeerAuthentications, Verdict
from daemonset.control_plane.translation.resource import Resource, authorization_resource
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.authorization_pb2 import Authorization, Scope

_TARGET_KINDS = (
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)


class Policies:
    """Translates policies and hands out the names that a workload must carry."""

    def __init__(
        self,
        objects: ObjectSet,
        services: Iterable[ServiceInfo],
        endpoints: Mapping[ObjectKey, ServicePorts],
        index: LabelIndex[Selectable],
        settings: MeshSettings,
        findings: Findings,
    ) -> None:
        self._settings = settings
        self._findings = findings
        self._endpoints = endpoints
        self._messages: list[Authorization] = []
        self._attached: dict[ObjectKey, list[str]] = {}
        self._selecting: dict[str, list[AuthorizationPolicy]] = {}
        self._services: dict[tuple[str, str, str], list[ServiceInfo]] = {}
        for service in services:
            meta = service.meta
            self._services.setdefault((meta.kind, meta.namespace, meta.name), []).append(service)
        policies = objects.authorization_policies.values()
        for policy in sorted(policies, key=lambda item: item.meta.key):
            if policy.targets:
                self._place_on_targets(policy)
            else:
                self._place(policy, index)
        self._peers = PeerAuthentications(objects.peer_authentications.values(), settings, findings)

    def _place(self, policy: AuthorizationPolicy, index: LabelIndex[Selectable]) -> None:
        message = convert(policy, self._settings, self._findings)
        if message is None:
            return
        self._messages.append(message)
        if policy.selector is None:
            return
        # A policy of the root namespace selects in all of them, any other in its own alone.
        in_root = policy.meta.namespace == self._settings.root_namespace
        namespaces = index.namespaces() if in_root else (policy.meta.namespace,)
        self._selecting.setdefault("" if in_root else policy.meta.namespace, []).append(policy)
        name = f"{policy.meta.namespace}/{policy.meta.name}"
        some = False
        for namespace in namespaces:
            for workload in index.select(namespace, policy.selector):
                self._attached.setdefault(workload.key, []).append(name)
                some = True
        if not some:
            self._findings.warning(
                policy.meta.key,
                "spec.selector",
                "SelectsNothing",
                "no workload has these labels: the policy is enforced nowhere.",
                "Compare the labels with those of the pods.",
            )

    def _place_on_targets(self, policy: AuthorizationPolicy) -> None:
        bare: list[ServiceInfo] = []
        for number, target in enumerate(policy.targets):
            field = f"spec.targetRefs[{number}]"
            bare += self._without_waypoint(policy, target, field)
        if not bare:
            return
        if self._settings.like_istio:
            for service in bare:
                self._findings.warning(
                    policy.meta.key,
                    "spec.targetRefs",
                    "AncestorNotBound",
                    f"{service.name} has no waypoint: the policy is enforced nowhere.",
                )
            return
        names = {service.name for service in bare}
        message = convert(
            policy,
            self._settings,
            self._findings,
            workload_scope=True,
            targets=_service_targets(names, self._endpoints.values()),
        )
        if message is None:
            return
        self._messages.append(message)
        full_name = f"{policy.meta.namespace}/{policy.meta.name}"
        for key, ports in self._endpoints.items():
            if not names.isdisjoint(ports):
                self._attached.setdefault(key, []).append(full_name)
        self._findings.warning(
            policy.meta.key,
            "spec.targetRefs",
            "EnforcedAtWorkloads",
            f"{', '.join(sorted(names))} has no waypoint: the policy is enforced at its workloads, "
            "for whatever reaches them, as far as L4 can tell.",
            "Give the service a waypoint.",
        )

    def _without_waypoint(
        self, policy: AuthorizationPolicy, target: TargetRef, field: str
    ) -> list[ServiceInfo]:
        key = policy.meta.key
        if (target.group, target.kind) not in _TARGET_KINDS:
            self._findings.error(
                key,
                field,
                "TargetNotFound",
                f"{target.group}/{target.kind} cannot be a target: nothing is enforced for it.",
                "Use Service, ServiceEntry, Gateway or GatewayClass.",
            )
            return []
        if target.kind in ("Gateway", "GatewayClass"):
            self._findings.warning(
                key,
                field,
                "EnforcedAtGateway",
                f"belongs to {target.kind} {target.name}; node proxies do not enforce it.",
                "Use a selector for what every connection must obey.",
            )
            return []
        found = self._services.get((target.kind, target.namespace, target.name), [])
        if not found:
            self._findings.error(
                key,
                field,
                "TargetNotFound",
                f"{target.kind} {target.namespace}/{target.name} is not there: nothing is "
                "enforced for it.",
                "Correct the name.",
            )
        self._report_waypoints(policy, found, field)
        return [service for service in found if service.waypoint is None]

    def _report_waypoints(
        self, policy: AuthorizationPolicy, services: list[ServiceInfo], field: str
    ) -> None:
        for service in services:
            if service.waypoint is None:
                continue
            if not service.waypoint.ready:
                self._findings.warning(
                    policy.meta.key,
                    field,
                    "WaypointIsNotReady",
                    f"the waypoint of {service.name} is missing or not ready: what should pass it "
                    "is refused.",
                )
            nameless = [port.number for port in service.ports if not (port.name or port.protocol)]
            if nameless and asks_for_http(policy):
                ports = ", ".join(map(str, sorted(nameless)))
                self._findings.warning(
                    policy.meta.key,
                    field,
                    "PortWithoutName",
                    f"port {ports} of {service.name} has no name that says its protocol: the "
                    "waypoint takes it for TCP, and rules about requests do not apply.",
                    "Name it http-…, grpc-… or the like.",
                )

    def of_workload(self, key: ObjectKey, labels: Mapping[str, str]) -> tuple[list[str], Verdict]:
        """Names to attach, sorted, and what peer authentication says."""
        verdict = self._peers.judge(key.namespace, labels, self._findings)
        names = {*self._attached.get(key, ()), *verdict.policies}
        return sorted(names), verdict

    def of_labels(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        """Names to attach to a workload that is no object of its own."""
        names = {
            f"{policy.meta.namespace}/{policy.meta.name}"
            for place in ("", namespace)
            for policy in self._selecting.get(place, ())
            if policy.selector is not None and policy.selector.matches(labels)
        }
        names.update(self._peers.judge(namespace, labels, self._findings).policies)
        return sorted(names)

    def resources(self) -> list[Resource]:
        """All policies; call it once all workloads have been judged."""
        messages = [*self._messages, *self._peers.messages]
        return [authorization_resource(message) for message in messages]

    @property
    def has_scope_wide_policies(self) -> bool:
        return any(message.scope != Scope.WORKLOAD_SELECTOR for message in self._messages)


def _service_targets(names: set[str], endpoints: Iterable[ServicePorts]) -> PortTargets:
    """A service's port -> the ports behind it. A port that is no service port, or one that some
    workload serves elsewhere than another, cannot be told: one policy holds for all of them."""
    found: dict[int, set[int]] = {}
    for services in endpoints:
        for name in names & services.keys():
            for number, target in services[name]:
                found.setdefault(number, set()).add(target)

    def targets(port: int) -> tuple[int, ...] | None:
        ports = found.get(port)
        return tuple(ports) if ports is not None and len(ports) == 1 else None

    return targets
