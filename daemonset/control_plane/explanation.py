"""Pure: why a connection between two workloads is or is not allowed, and where it would go.

The same decisions as the node proxies', asked one after the other: where the client's proxy would
send the connection (each endpoint that it could choose), and what the destination's would say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from ztunnel.mesh.authority import parse_authority
from ztunnel.mesh.authorize import ConnectionAttributes, authorize
from ztunnel.mesh.decision import (
    Decision,
    Direct,
    Hbone,
    NeedsDns,
    NeedsLookup,
    Passthrough,
    Refuse,
    Via,
)
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.load_balance import target_port
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.service import HealthPolicy, Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import NetworkMode, TunnelProtocol, Workload, WorkloadStatus

MOST_ENDPOINTS = 20
"""So many of a service's endpoints are asked about."""


class UnknownNameError(Exception):
    """There is no such workload or service, or several; the text says which there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a client would connect to. ``name`` is in words."""

    name: str
    address: str
    port: int
    service: Service | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One way that a connection can go. ``policies`` ("namespace/name") decided about it, or would
    have had to allow it; ``rule`` (from 1) is that of the one that decided, 0 where none did."""

    allowed: bool
    steps: tuple[str, ...]
    policies: tuple[str, ...] = ()
    rule: int = 0


def find_workload(state: MeshState, name: str) -> Workload:
    """A pod (or another workload) by "namespace/name", or by its name where that is unique.

    Raises:
        UnknownNameError: there is none, or several.
    """
    everybody = list(state.workloads)
    found = [
        one for one in everybody if name in (str(one), one.name, f"{one.namespace}/{one.name}")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(f"{one.namespace}/{one.name}" for one in found))
        raise UnknownNameError(f"several workloads are called {name}: {names}")
    names = ", ".join(sorted(f"{one.namespace}/{one.name}" for one in everybody)) or "none"
    raise UnknownNameError(f"there is no workload {name} with an address; there are: {names}")


def find_targets(state: MeshState, source: Workload, name: str, port: int | None) -> list[Target]:
    """What a client may mean by a name: a service ("name", "namespace/name" or a hostname), else a
    pod, else an IP address; ``service/NAME`` and ``pod/NAME`` leave no doubt. Without a port: all
    ports of the service, or those at which services reach the pod.

    Raises:
        UnknownNameError: nothing of that name; no port is known; a service has no address.
    """
    kind, _, rest = name.partition("/")
    service = (
        None if kind == "pod" else _service(state, source, rest if kind == "service" else name)
    )
    if service is not None:
        return _targets_of_service(source, service, port)
    if kind == "service":
        raise UnknownNameError(f"there is no service {rest}")
    if _is_address(name):
        if port is None:
            raise UnknownNameError(f"which port of {name}?")
        return [Target(name, name, port)]
    workload = find_workload(state, rest if kind == "pod" else name)
    numbers = sorted({number for ports in workload.services.values() for number in ports.values()})
    ports = [port] if port is not None else numbers
    if not ports:
        raise UnknownNameError(f"which port of {name}? No service names one.")
    if not workload.addresses:
        raise UnknownNameError(f"{workload} has no address")
    label = f"{workload.namespace}/{workload.name}"
    return [Target(f"pod {label}", workload.addresses[0], number) for number in ports]


def _service(state: MeshState, source: Workload, name: str) -> Service | None:
    everybody = [record.service for record in state.services if record.service is not None]
    exact = [
        one for one in everybody if name in (one.hostname, one.key, f"{one.namespace}/{one.name}")
    ]
    here = [one for one in everybody if (one.namespace, one.name) == (source.namespace, name)]
    short = [one for one in everybody if one.name == name]
    for found in (exact, here, short):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(sorted(one.key for one in found))
            raise UnknownNameError(f"several services are called {name}: {names}")
    return None


def _targets_of_service(source: Workload, service: Service, port: int | None) -> list[Target]:
    if port is not None and port not in service.ports:
        known = ", ".join(map(str, sorted(service.ports))) or "none"
        raise UnknownNameError(f"service {service} has no port {port}; it has: {known}")
    address = next((vip.address for vip in service.vips if vip.network == source.network), "")
    if not address:
        raise UnknownNameError(
            f"service {service} has no address of its own: ask about one of its pods, pod/NAME"
        )
    ports = sorted(service.ports) if port is None else [port]
    return [Target(f"service {service}", address, number, service) for number in ports]


def _is_address(text: str) -> bool:
    return ":" in text or text.replace(".", "").isdigit()


def explain(state: MeshState, source: Workload, target: Target) -> list[Way]:
    """Every way that a connection from ``source`` can go; at least one."""
    if source.network_mode is NetworkMode.HOST_NETWORK or (
        source.tunnel_protocol is not TunnelProtocol.HBONE
    ):
        return list(_without_mesh(state, source, target))
    found: list[Way] = []
    tried: list[str] = []
    first = f"{_label(source)} is in the mesh: its node's ztunnel decides"
    while len(found) < MOST_ENDPOINTS:
        decision = decide(
            state, source, (target.address, target.port), rng=Random(0), exclude=tried
        )
        if tried and isinstance(decision, Refuse):
            break
        found.append(_follow(state, source, decision, first))
        chosen = decision.workload
        if target.service is None or chosen is None or chosen.uid in tried:
            break
        if isinstance(decision, Hbone) and decision.via is not Via.WORKLOAD:
            break
        tried.append(chosen.uid)
    return found


def _follow(state: MeshState, source: Workload, decision: Decision, first: str) -> Way:
    match decision:
        case Refuse() | NeedsLookup():
            return Way(False, (first, f"it refuses: {decision.reason}"))
        case NeedsDns():
            return Way(True, (first, f"it asks DNS for {decision.hostname}: {decision.reason}"))
        case Passthrough():
            return Way(True, (first, f"in the clear: {decision.reason}", "nobody checks it"))
        case Direct():
            return Way(True, (first, f"in the clear: {decision.reason}", "nobody checks it"))
        case Hbone():
            return _through_tunnel(state, source, decision, first)


def _through_tunnel(state: MeshState, source: Workload, decision: Hbone, first: str) -> Way:
    host, port = decision.next_hop
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    whom = " or ".join(identity.uri for identity in decision.expected_identities)
    steps = (first, decision.reason, f"mutual TLS to {place}, which must show {whom}")
    if decision.via is not Via.WORKLOAD:
        return Way(True, (*steps, f"what the {decision.via.value} allows is not known here"))
    inner = parse_authority(decision.authority)
    address = source.addresses[0] if source.addresses else ""
    for own in source.addresses:
        if (":" in own) == (":" in host):
            address = own
    return _judge(state, decision.workload, address, source.identity, host, inner.port, steps)


def _without_mesh(state: MeshState, source: Workload, target: Target) -> Iterator[Way]:
    first = f"{_label(source)} is not in the mesh: it connects in the clear, without an identity"
    address = source.addresses[0] if source.addresses else ""
    some = False
    for workload, ip, port in _ends(state, source, target):
        some = True
        steps: tuple[str, ...] = (first, f"reaches {_label(workload)} at {ip}:{port}")
        if workload.tunnel_protocol is not TunnelProtocol.HBONE or workload.native_tunnel:
            steps = (*steps, f"{_label(workload)} is not captured either: nobody checks it")
            yield Way(True, steps)
            continue
        yield _judge(state, workload, address, None, ip, port, steps)
    if not some:
        yield Way(
            target.service is None,
            (
                first,
                f"{target.name} has no healthy endpoint for port {target.port}"
                if target.service is not None
                else f"the mesh knows nobody at {target.address}: nobody checks it",
            ),
        )


def _ends(
    state: MeshState, source: Workload, target: Target
) -> Iterator[tuple[Workload, str, int]]:
    service = target.service
    if service is None:
        workload = state.workload_by_address(source.network, target.address)
        if workload is not None:
            yield workload, target.address, target.port
        return
    everybody = service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
    for workload in state.endpoints(service.key):
        port = target_port(service, workload, target.port, False)
        healthy = everybody or workload.status is WorkloadStatus.HEALTHY
        if port and healthy and workload.addresses:
            yield workload, workload.addresses[0], port


def _judge(
    state: MeshState,
    destination: Workload,
    source_ip: str,
    identity: Identity | None,
    ip: str,
    port: int,
    steps: tuple[str, ...],
) -> Way:
    verdict = authorize(state, destination, ConnectionAttributes(source_ip, identity, ip, port))
    policies: tuple[str, ...] = (verdict.policy,) if verdict.policy else ()
    if not verdict.allowed and not policies:
        effective = state.effective_policies(destination)
        policies = tuple(policy.key for policy in effective.allow)
    words = (
        *(finding.words for finding in verdict.dry_run),
        f"the ztunnel of {_label(destination)} decides: {verdict.reason}",
    )
    return Way(verdict.allowed, (*steps, *words), policies, verdict.rule)


def _label(workload: Workload) -> str:
    return f"{workload.namespace}/{workload.name}"
