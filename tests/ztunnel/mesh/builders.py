"""Short ways to write workloads, services and policies in tests."""

from __future__ import annotations

from random import Random
from typing import Any

from ztunnel.mesh.address import SocketAddress, parse_network
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.decision import Decision
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import (
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    TunnelProtocol,
    Workload,
)

TRUST_DOMAIN = "cluster.local"


def pod(name: str, *ips: str, namespace: str = "shop", **fields: Any) -> Workload:
    """A pod in the mesh, with a service account of its own name."""
    fields.setdefault("tunnel_protocol", TunnelProtocol.HBONE)
    fields.setdefault("service_account", name)
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/{name}",
        name=name,
        namespace=namespace,
        addresses=ips,
        **fields,
    )


def service(name: str, *vips: str, namespace: str = "shop", **fields: Any) -> Service:
    """A service with port 80, whose target is 8080."""
    fields.setdefault("ports", {80: 8080})
    network = fields.pop("network", "")
    return Service(
        name=name,
        namespace=namespace,
        hostname=f"{name}.{namespace}.svc.cluster.local",
        vips=tuple(NetworkAddress(network, vip) for vip in vips),
        **fields,
    )


def behind(*services: Service) -> dict[str, dict[int, int]]:
    """The `services` of a workload that takes the ports as the services say."""
    return {one.key: dict(one.ports) for one in services}


def by_name(one: Service, port: int = 15008) -> GatewayAddress:
    """A gateway given by the hostname of its service."""
    return GatewayAddress(NamespacedHostname(one.namespace, one.hostname), port)


def by_address(ip: str, network: str = "", port: int = 15008) -> GatewayAddress:
    """A gateway given by address."""
    return GatewayAddress(NetworkAddress(network, ip), port)


def mesh(*resources: Resource, **options: bool) -> MeshState:
    """A state that holds these."""
    state = MeshState(**options)
    state.apply(Batch(resources))
    return state


def going(
    state: MeshState, source: Workload, destination: SocketAddress, **options: Any
) -> Decision:
    """`decide` with a seeded source of randomness."""
    options.setdefault("rng", Random(7))
    return decide(state, source, destination, **options)


def identity(account: str, namespace: str = "shop", trust_domain: str = TRUST_DOMAIN) -> Identity:
    """The identity of a pod made by `pod`."""
    return Identity(trust_domain, namespace, account)


def exact(text: str) -> StringMatch:
    """Exactly this text."""
    return StringMatch(StringMatchKind.EXACT, text)


PRESENT = StringMatch(StringMatchKind.PRESENCE)


def match(**fields: Any) -> Match:
    """A match; networks as text, accounts as "namespace/name", texts as exact principals."""
    for name, values in fields.items():
        if name.endswith("_ips"):
            fields[name] = tuple(parse_network(text) for text in values)
        elif name.endswith("accounts"):
            fields[name] = tuple(ServiceAccountMatch(*text.split("/")) for text in values)
        elif name.endswith(("principals", "namespaces")):
            fields[name] = tuple(exact(v) if isinstance(v, str) else v for v in values)
    return Match(**fields)


def rule(**fields: Any) -> Rule:
    """A rule of one clause of one match."""
    return ((match(**fields),),)


def policy(name: str, action: PolicyAction, *rules: Rule, **fields: Any) -> Authorization:
    """A policy of namespace shop, for all of it."""
    fields.setdefault("namespace", "shop")
    fields.setdefault("scope", PolicyScope.NAMESPACE)
    return Authorization(name=name, action=action, rules=rules, **fields)


def allow(name: str, *rules: Rule, **fields: Any) -> Authorization:
    """An ALLOW policy."""
    return policy(name, PolicyAction.ALLOW, *rules, **fields)


def deny(name: str, *rules: Rule, **fields: Any) -> Authorization:
    """A DENY policy."""
    return policy(name, PolicyAction.DENY, *rules, **fields)
