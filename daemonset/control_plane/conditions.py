"""What the status of an object says about it. Pure.

For an AuthorizationPolicy: is it enforced as written, by which enforcement point (the node proxies:
``ZtunnelAccepted``, waypoints: ``WaypointAccepted``), and which part of it has no effect. The types
and most of the reasons are Istio's, so that tools which know those understand these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy
from daemonset.control_plane.objects.gateway import Gateway
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.translation.finding import Finding, Severity
from daemonset.control_plane.translation.gateway_address import HBONE_PORT
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings

ZTUNNEL = "ZtunnelAccepted"
WAYPOINT = "WaypointAccepted"
ACCEPTED = "Accepted"
BOUND = "istio.io/WaypointBound"
WAYPOINT_READY = "ambientd.io/WaypointReady"
"""On Gateways, whose other conditions are those of whoever runs them."""

TYPES = {
    "AuthorizationPolicy": (ZTUNNEL, WAYPOINT),
    "ServiceEntry": (ACCEPTED, BOUND),
    "Gateway": (WAYPOINT_READY,),
}
"""The conditions that are written here, by kind."""

_LONGEST_MESSAGE = 2048
# Findings about a policy that has targets: which of them are about its waypoint.
_AT_WAYPOINT = {
    "TargetNotFound": ("False", "TargetNotFound"),
    "AncestorNotBound": ("False", "AncestorNotBound"),
    "EnforcedAtWorkloads": ("False", "AncestorNotBound"),
    "WaypointIsNotReady": ("False", "WaypointIsNotReady"),
    "EnforcedAtGateway": ("Unknown", "EnforcedAtGateway"),
    "PortWithoutName": ("Unknown", "PortWithoutName"),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """``status`` is True, False or Unknown, in words as the API has it."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one translation has found."""

    objects: ObjectSet
    services: tuple[ServiceInfo, ...]
    findings: tuple[Finding, ...]
    problems: tuple[Problem, ...]


def conditions_of(
    keys: Iterable[ObjectKey], judgement: Judgement, settings: MeshSettings
) -> dict[ObjectKey, tuple[Condition, ...]]:
    """What to say of each of these objects, which are of the kinds in ``TYPES`` and this mesh's.

    An object that is there and about which there is nothing to say has no conditions.
    """
    found: dict[ObjectKey, list[Finding]] = {}
    for finding in judgement.findings:
        if finding.severity > Severity.INFO:
            found.setdefault(finding.object, []).append(finding)
    refused = {problem.object: problem for problem in judgement.problems}
    bound: dict[ObjectKey, ServiceInfo] = {}
    for service in judgement.services:
        bound.setdefault(service.meta.key, service)
    result: dict[ObjectKey, tuple[Condition, ...]] = {}
    for key in keys:
        # The worst first; otherwise in the order of the fields.
        about = sorted(found.get(key, ()), key=lambda finding: -finding.severity)
        problem = refused.get(str(key))
        named = (key.namespace, key.name)
        if problem is not None:
            result[key] = (_unreadable(TYPES[key.kind][0], problem),)
        elif key.kind == "AuthorizationPolicy":
            policy = judgement.objects.authorization_policies.get(named)
            result[key] = _of_policy(policy, about, settings) if policy is not None else ()
        elif key.kind == "ServiceEntry":
            result[key] = _of_entry(bound.get(key), about)
        else:
            gateway = judgement.objects.gateways.get(named)
            result[key] = _of_gateway(gateway) if gateway is not None else ()
    return result


def same_inputs(before: Judgement, now: Judgement) -> bool:
    """Is there nothing in ``now`` that could lead to other conditions?

    Parts that did not change are the same objects, so this compares no thousands of findings.
    """
    return (
        now.findings is before.findings
        and now.services is before.services
        and now.objects.authorization_policies is before.objects.authorization_policies
        and now.objects.gateways is before.objects.gateways
        and now.problems == before.problems
    )


def _unreadable(kind: str, problem: Problem) -> Condition:
    place = f"{problem.field}: " if problem.field else ""
    return Condition(kind, "False", "Invalid", _cut(f"{place}{problem.message}"))


def _of_policy(
    policy: AuthorizationPolicy, about: list[Finding], settings: MeshSettings
) -> tuple[Condition, ...]:
    at_waypoint = [finding for finding in about if finding.reason in _AT_WAYPOINT]
    at_ztunnel = [finding for finding in about if finding.reason not in _AT_WAYPOINT]
    if not policy.targets:
        return (_at_ztunnel(at_ztunnel, _scope(policy, settings)),)
    result: list[Condition] = []
    if any(finding.reason == "EnforcedAtWorkloads" for finding in at_waypoint):
        words = "without a waypoint it is enforced by the ztunnels of the target's workloads"
        result.append(_at_ztunnel(at_ztunnel, words))
    if at_waypoint:
        states = [_AT_WAYPOINT[finding.reason] for finding in at_waypoint]
        status, reason = next((state for state in states if state[0] == "False"), states[0])
        result.append(Condition(WAYPOINT, status, reason, _words(at_waypoint)))
    else:
        words = "belongs to its targets' waypoint: what that makes of it is not known here"
        result.append(Condition(WAYPOINT, "Unknown", "EnforcedAtWaypoint", words))
    return tuple(result)


def _at_ztunnel(about: list[Finding], otherwise: str) -> Condition:
    if about:
        return Condition(ZTUNNEL, "False", about[0].reason, _words(about))
    return Condition(ZTUNNEL, "True", "Accepted", otherwise)


def _scope(policy: AuthorizationPolicy, settings: MeshSettings) -> str:
    in_root = policy.meta.namespace == settings.root_namespace
    where = "the whole mesh" if in_root else "this namespace"
    whom = "the workloads that it selects in" if policy.selector is not None else "all workloads of"
    what = "only tried out (dry run)" if policy.dry_run else "enforced"
    return f"{what} by the ztunnels of {whom} {where}"


def _of_entry(service: ServiceInfo | None, about: list[Finding]) -> tuple[Condition, ...]:
    # Whether there is a waypoint is the other condition's.
    own = [finding for finding in about if not finding.field.startswith("metadata.labels")]
    errors = [one for one in own if one.severity is Severity.ERROR or one.reason == "HostTaken"]
    if own:
        status = "False" if errors else "True"
        result = [Condition(ACCEPTED, status, (errors or own)[0].reason, _words(own))]
    else:
        result = [Condition(ACCEPTED, "True", "Accepted", "its hosts are known to node proxies")]
    if service is not None and service.waypoint is not None:
        if service.waypoint.ready:
            words = "connections to its hosts go through the waypoint"
            result.append(Condition(BOUND, "True", "WaypointAccepted", words))
        else:
            words = "its waypoint is missing or not ready: connections are refused until it is"
            result.append(Condition(BOUND, "False", "WaypointIsNotReady", words))
    return tuple(result)


def _of_gateway(gateway: Gateway) -> tuple[Condition, ...]:
    serves = any(one.protocol == "HBONE" and one.port == HBONE_PORT for one in gateway.listeners)
    if not serves:
        return ()  # no waypoint
    if gateway.hostnames or gateway.ips:
        words = "has an address: what names it as its waypoint is sent there"
        return (Condition(WAYPOINT_READY, "True", "HasAddress", words),)
    words = (
        "has no address: what names it as its waypoint is refused. Waypoints are not run by this "
        "control plane"
    )
    return (Condition(WAYPOINT_READY, "False", "WaypointIsNotReady", words),)


def _words(about: list[Finding]) -> str:
    parts = []
    for finding in about:
        place = f"{finding.field}: " if finding.field else ""
        advice = f" {finding.advice}" if finding.advice else ""
        parts.append(f"{place}{finding.message}{advice}")
    return _cut(" ".join(parts))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the API server last had of an object with a status, readable or not.

    Attributes:
        revision: its label istio.io/rev.
        times: of the last change of each condition in ``conditions``, by type.
        observed: the generations that they speak of.
    """

    uid: str
    generation: int
    revision: str
    conditions: tuple[Condition, ...]
    times: Mapping[str, str]
    observed: frozenset[int]


def standing(item: Mapping[str, object], kind: str) -> Standing:
    """Read an object of the API as far as its status goes; what is not as it should be is as if it
    were not there, and is so written anew."""
    meta = _mapping(item.get("metadata"))
    listed = _mapping(item.get("status")).get("conditions")
    conditions: list[Condition] = []
    times: dict[str, str] = {}
    observed: set[int] = set()
    for each in map(_mapping, listed if isinstance(listed, list) else ()):
        name = str(each.get("type", ""))
        if name not in TYPES[kind]:
            continue
        words = (str(each.get(field, "")) for field in ("status", "reason", "message"))
        conditions.append(Condition(name, *words))
        times[name] = str(each.get("lastTransitionTime", ""))
        observed.add(_integer(each.get("observedGeneration")))
    revision = str(_mapping(meta.get("labels")).get("istio.io/rev", ""))
    return Standing(
        uid=str(meta.get("uid", "")),
        generation=_integer(meta.get("generation")),
        revision=revision,
        conditions=tuple(conditions),
        times=times,
        observed=frozenset(observed),
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _integer(value: object) -> int:
    return int(value) if isinstance(value, int | str) and str(value).isdigit() else 0
