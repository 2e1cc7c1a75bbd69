"""All policies of the mesh, and which of them each workload carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy, TargetRef
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import Named
from daemonset.control_plane.objects.peer_authentication import PeerAuthentication
from daemonset.control_plane.translation.authorization import asks_for_http, convert
from daemonset.control_plane.translation.authorization_match import PortTargets
from daemonset.control_plane.translation.endpoints import Selectable, ServicePorts
from daemonset.control_plane.translation.finding import Ledger
from daemonset.control_plane.translation.label_index import SelectorIndex
from daemonset.control_plane.translation.peer_authentication import PeerAuthentications, Verdict
from daemonset.control_plane.translation.resource import Resource, authorization_resource
from daemonset.control_plane.translation.roster import Roster, Turnout, untie
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.authorization_pb2 import Authorization

Place = tuple[str, str, str]
"""Kind, namespace and name of what a policy hangs on."""

_TARGET_KINDS = (
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)


@dataclass(slots=True)
class Reach:
    """What a change of policies reaches: workloads that carry others than before; namespaces
    ("" for all of them) in which workloads that are no objects of their own must be judged again.
    """

    workloads: set[ObjectKey] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)


class Policies:
    """Translates policies and hands out the names that a workload must carry, change by change."""

    def __init__(self, settings: MeshSettings, findings: Ledger, roster: Roster) -> None:
        self._settings = settings
        self._findings = findings
        self._roster = roster
        self._policies: dict[Named, AuthorizationPolicy] = {}
        self._resources: dict[str, Resource] = {}
        self._selectors: SelectorIndex[Named] = SelectorIndex()
        self._carriers: dict[Named, set[ObjectKey]] = {}
        self._carried: dict[ObjectKey, set[Named]] = {}
        self._services: dict[Place, dict[str, ServiceInfo]] = {}
        self._place_of: dict[str, Place] = {}
        self._targeting: dict[Place, set[Named]] = {}
        self._peers = PeerAuthentications((), settings, findings)
        self._merged: dict[str, Resource] | None = None

    def set_peers(
        self,
        policies: Iterable[PeerAuthentication],
        changed: Iterable[Named],
        reach: Reach,
    ) -> None:
        """All PeerAuthentications; those that have changed are named."""
        with self._findings.part("PeerAuthentications"):
            self._peers = PeerAuthentications(policies, self._settings, self._findings)
        self._merged = None
        workloads = self._roster.workloads
        for namespace, _ in changed:
            self._add_namespace(namespace, reach)
            everywhere = namespace == self._settings.root_namespace
            for each in workloads.namespaces() if everywhere else (namespace,):
                reach.workloads.update(workloads.inside(each))

    def update(
        self,
        policies: Mapping[Named, AuthorizationPolicy | None],
        workloads: Mapping[ObjectKey, Selectable | None],
        services: Mapping[str, ServiceInfo | None],
        turnout: Turnout,
        reach: Reach,
    ) -> None:
        """Take in what has changed (None: it is gone); ``turnout`` is the roster's answer."""
        again: dict[Named, AuthorizationPolicy | None] = {}
        for name, service in services.items():
            places = {self._place_of.get(name), self._set_service(name, service)}
            for place in places - {None}:
                again |= self._aimed_at(place)
        for name in turnout.services & self._place_of.keys():
            again |= self._aimed_at(self._place_of[name])
        again |= policies
        counted: set[Named] = set()
        for key, workload in workloads.items():
            matching = (
                set(self._selectors.matching(key.namespace, workload.labels)) if workload else set()
            )
            before = {item for item in self._carried.get(key, ()) if item in self._selectors}
            for item in before ^ matching:
                counted.add(item)
                self._carry(item, key, item in matching)
        for item, policy in again.items():
            self._replace(item, policy, reach)
            counted.add(item)
        for item in counted:
            self._report_idle(item)

    def _set_service(self, name: str, service: ServiceInfo | None) -> Place | None:
        """Where the service is to be found now."""
        before = self._place_of.pop(name, None)
        if before is not None:
            del self._services[before][name]
            if not self._services[before]:
                del self._services[before]
        if service is None:
            return None
        place = (service.meta.kind, service.meta.namespace, service.meta.name)
        self._place_of[name] = place
        self._services.setdefault(place, {})[name] = service
        return place

    def _aimed_at(self, place: Place | None) -> dict[Named, AuthorizationPolicy | None]:
        found = self._targeting.get(place, ()) if place is not None else ()
        return {item: self._policies[item] for item in found}

    def _carry(self, item: Named, key: ObjectKey, carries: bool) -> None:
        if carries:
            self._carriers.setdefault(item, set()).add(key)
            self._carried.setdefault(key, set()).add(item)
            return
        untie(self._carriers, item, key)
        untie(self._carried, key, item)

    def _replace(self, item: Named, policy: AuthorizationPolicy | None, reach: Reach) -> None:
        before = self._policies.pop(item, None)
        name = "/".join(item)
        for place in _places(before) if before is not None else ():
            untie(self._targeting, place, item)
        carriers = set(self._carriers.get(item, ()))
        self._resources.pop(name, None)
        self._merged = None
        if before is not None and before.selector is not None:
            self._add_namespace(item[0], reach)
        self._selectors.drop(item)
        now: set[ObjectKey] = set()
        with self._findings.part(("policy", item)):
            if policy is not None:
                self._policies[item] = policy
                for place in _places(policy):
                    self._targeting.setdefault(place, set()).add(item)
                message, now = (
                    self._place_on_targets(policy)
                    if policy.targets
                    else (self._place_by_selector(policy))
                )
                if message is not None:
                    self._resources[name] = authorization_resource(message)
                if item in self._selectors:
                    self._add_namespace(item[0], reach)
        for key in carriers ^ now:
            self._carry(item, key, key in now)
        reach.workloads |= carriers ^ now

    def _place_by_selector(
        self, policy: AuthorizationPolicy
    ) -> tuple[Authorization | None, set[ObjectKey]]:
        message = convert(policy, self._settings, self._findings)
        if message is None or policy.selector is None:
            return message, set()
        # A policy of the root namespace selects in all of them, any other in its own alone.
        workloads = self._roster.workloads
        in_root = policy.meta.namespace == self._settings.root_namespace
        space = "" if in_root else policy.meta.namespace
        self._selectors.put((policy.meta.namespace, policy.meta.name), space, policy.selector)
        found = {
            workload.key
            for namespace in (workloads.namespaces() if in_root else (space,))
            for workload in workloads.select(namespace, policy.selector)
        }
        return message, found

    def _report_idle(self, item: Named) -> None:
        with self._findings.part(("idle policy", item)):
            if item in self._selectors and not self._carriers.get(item):
                self._findings.warning(
                    self._policies[item].meta.key,
                    "spec.selector",
                    "SelectsNothing",
                    "no workload has these labels: the policy is enforced nowhere.",
                    "Compare the labels with those of the pods.",
                )

    def _place_on_targets(
        self, policy: AuthorizationPolicy
    ) -> tuple[Authorization | None, set[ObjectKey]]:
        bare: list[ServiceInfo] = []
        for number, target in enumerate(policy.targets):
            bare += self._without_waypoint(policy, target, f"spec.targetRefs[{number}]")
        if not bare:
            return None, set()
        if self._settings.like_istio:
            for service in bare:
                self._findings.warning(
                    policy.meta.key,
                    "spec.targetRefs",
                    "AncestorNotBound",
                    f"{service.name} has no waypoint: the policy is enforced nowhere.",
                )
            return None, set()
        names = {service.name for service in bare}
        members = {key for name in names for key in self._roster.members.get(name, ())}
        serving = [self._roster.serving[key] for key in members]
        message = convert(
            policy,
            self._settings,
            self._findings,
            workload_scope=True,
            targets=_service_targets(names, serving),
        )
        if message is None:
            return None, set()
        self._findings.warning(
            policy.meta.key,
            "spec.targetRefs",
            "EnforcedAtWorkloads",
            f"{', '.join(sorted(names))} has no waypoint: the policy is enforced at its workloads, "
            "for whatever reaches them, as far as L4 can tell.",
            "Give the service a waypoint.",
        )
        return message, members

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
        found = self._services.get((target.kind, target.namespace, target.name), {})
        if not found:
            self._findings.error(
                key,
                field,
                "TargetNotFound",
                f"{target.kind} {target.namespace}/{target.name} is not there: nothing is "
                "enforced for it.",
                "Correct the name.",
            )
        self._report_waypoints(policy, found.values(), field)
        return [service for service in found.values() if service.waypoint is None]

    def _report_waypoints(
        self, policy: AuthorizationPolicy, services: Iterable[ServiceInfo], field: str
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
        return _sorted_names(self._carried.get(key, ()), verdict), verdict

    def of_labels(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        """Names to attach to a workload that is no object of its own."""
        verdict = self._peers.judge(namespace, labels, self._findings)
        return _sorted_names(self._selectors.matching(namespace, labels), verdict)

    def resources(self) -> dict[str, Resource]:
        """All policies, by name; the same mapping as before where nothing has changed."""
        if self._merged is None:
            self._merged = {**self._resources, **self._peers.resources}
        return self._merged

    def _add_namespace(self, namespace: str, reach: Reach) -> None:
        reach.namespaces.add("" if namespace == self._settings.root_namespace else namespace)


def _sorted_names(policies: Iterable[Named], verdict: Verdict) -> list[str]:
    return sorted({*map("/".join, policies), *verdict.policies})


def _places(policy: AuthorizationPolicy) -> set[Place]:
    return {(target.kind, target.namespace, target.name) for target in policy.targets}


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
