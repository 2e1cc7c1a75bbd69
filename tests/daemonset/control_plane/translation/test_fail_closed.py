"""Whatever a policy refuses at L7, its translation refuses at L4: checked with the node proxy's own
evaluation against a plain reading of the policy, over random policies, connections and requests.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.control_plane import AMBIENT_SHOP, translate
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.from_proto import address_from_proto
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy_from_proto import authorization_from_proto
from ztunnel.mesh.policy_match import CompiledPolicy

Fields = dict[str, list[str]]


@dataclass(frozen=True)
class Call:
    """A connection, and a request on it whose L7 attributes are decided by ``seed``."""

    identity: Identity | None
    source_ip: str
    port: int
    seed: int

    def attributes(self) -> ConnectionAttributes:
        return ConnectionAttributes(self.source_ip, self.identity, "10.0.0.1", self.port)

    def l7(self, path: str) -> bool:
        return bool(crc32(f"{path} {self.seed}".encode()) & 1)


def text_matches(pattern: str, text: str) -> bool:
    if pattern == "*":
        return text != ""
    if pattern.startswith("*"):
        return text != "" and text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text != "" and text.startswith(pattern[:-1])
    return text == pattern


def one_of(name: str, values: list[str], call: Call) -> bool:
    identity = call.identity
    match name:
        case "principals":
            principal = identity.principal if identity else ""
            return any(text_matches(value, principal) for value in values)
        case "namespaces":
            namespace = identity.namespace if identity else ""
            return any(text_matches(value, namespace) for value in values)
        case "serviceAccounts":
            known = {value if "/" in value else f"shop/{value}" for value in values}
            own = f"{identity.namespace}/{identity.service_account}" if identity else ""
            return own in known
        case "ipBlocks":
            address = ipaddress.ip_address(call.source_ip)
            return any(address in ipaddress.ip_network(value, strict=False) for value in values)
        case _:
            return str(call.port) in values


L4 = ("principals", "namespaces", "serviceAccounts", "ipBlocks", "ports")


def element_matches(path: str, fields: Fields, call: Call) -> bool:
    for field, values in fields.items():
        negated = field.startswith("not")
        name = field[3].lower() + field[4:] if negated else field
        if name not in L4:
            if not call.l7(f"{path}.{field}"):
                return False
        elif one_of(name, values, call) == negated:
            return False
    return True


CONDITIONS = {
    "source.ip": "ipBlocks",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "destination.port": "ports",
}


def condition_matches(path: str, condition: dict[str, object], call: Call) -> bool:
    name = CONDITIONS.get(str(condition["key"]))
    if name is None:
        return call.l7(path)
    values, excluded = condition.get("values"), condition.get("notValues")
    if isinstance(values, list) and not one_of(name, values, call):
        return False
    return not (isinstance(excluded, list) and one_of(name, excluded, call))


def rule_matches(number: int, rule: dict[str, list[dict[str, Fields]]], call: Call) -> bool:
    for clause, inner in (("from", "source"), ("to", "operation")):
        if clause in rule and not any(
            element_matches(f"{number}{clause}{index}", item[inner], call)
            for index, item in enumerate(rule[clause])
        ):
            return False
    conditions: list[dict[str, object]] = rule.get("when", [])  # type: ignore[assignment]
    return all(
        condition_matches(f"{number}when{index}", condition, call)
        for index, condition in enumerate(conditions)
    )


def values(*known: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True)


PRINCIPALS = values("cluster.local/ns/a/sa/x", "*", "cluster.local/ns/b/*", "*/sa/x")
NAMESPACES = values("a", "b", "*", "shop")
BLOCKS = values("10.1.0.0/16", "10.2.0.2", "0.0.0.0/0")
PORTS = values("80", "443")
PATTERNS = values("GET", "x*", "*")


def some(strategies: dict[str, st.SearchStrategy[list[str]]]) -> st.SearchStrategy[Fields]:
    """One or two of these fields, each as it is or negated."""

    def with_values(names: list[tuple[str, bool]]) -> st.SearchStrategy[Fields]:
        fields = {
            f"not{name[0].upper()}{name[1:]}" if negated else name: strategies[name]
            for name, negated in names
        }
        return st.fixed_dictionaries(fields)

    name = st.tuples(st.sampled_from(sorted(strategies)), st.booleans())
    return st.lists(name, min_size=1, max_size=2, unique=True).flatmap(with_values)


L4_SOURCE = {
    "principals": PRINCIPALS,
    "namespaces": NAMESPACES,
    "ipBlocks": BLOCKS,
    "serviceAccounts": values("a/x", "x"),
}
L7_SOURCE = {"requestPrincipals": PATTERNS, "remoteIpBlocks": BLOCKS}
SOURCE = some(L4_SOURCE) | some(L7_SOURCE) | some(L4_SOURCE | L7_SOURCE)
L7_OPERATION = {"methods": PATTERNS, "hosts": PATTERNS, "paths": PATTERNS}
OPERATION = some({"ports": PORTS}) | some(L7_OPERATION) | some({"ports": PORTS} | L7_OPERATION)


def condition(key: str, known: st.SearchStrategy[list[str]]) -> st.SearchStrategy[object]:
    return st.fixed_dictionaries(
        {"key": st.just(key)}, optional={"values": known, "notValues": known}
    ).filter(lambda item: len(item) > 1)


CONDITION = st.one_of(
    condition("source.ip", BLOCKS),
    condition("source.namespace", NAMESPACES),
    condition("source.principal", PRINCIPALS),
    condition("destination.port", PORTS),
    condition("request.headers[x]", PATTERNS),
    condition("connection.sni", PATTERNS),
)
RULE = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(st.fixed_dictionaries({"source": SOURCE}), min_size=1, max_size=2),
        "to": st.lists(st.fixed_dictionaries({"operation": OPERATION}), min_size=1, max_size=2),
        "when": st.lists(CONDITION, min_size=1, max_size=2),
    },
)
CALL = st.builds(
    Call,
    st.sampled_from(
        [
            None,
            Identity("cluster.local", "a", "x"),
            Identity("cluster.local", "shop", "x"),
            Identity("cluster.local", "b", "y"),
        ]
    ),
    st.sampled_from(["10.1.0.1", "10.2.0.2"]),
    st.sampled_from([80, 443]),
    st.integers(0, 7),
)


def mentions_l7(rules: list[object]) -> bool:
    text = json.dumps(rules)
    words = ("equestPrincipals", "emoteIpBlocks", "ethods", "osts", "aths", "headers", "sni")
    return any(word in text for word in words)


@settings(max_examples=300)
@given(
    action=st.sampled_from(["ALLOW", "DENY", "CUSTOM"]),
    rules=st.lists(RULE, max_size=2),
    calls=st.lists(CALL, min_size=1, max_size=6),
)
def test_what_the_policy_refuses_its_translation_refuses(
    action: str, rules: list[dict[str, list[dict[str, Fields]]]], calls: list[Call]
) -> None:
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"action": action, "rules": rules},
    }
    resource = translate(json.dumps(policy)).raw.authorizations["shop/p"]
    compiled = CompiledPolicy(authorization_from_proto(resource.payload))
    exact = not mentions_l7(list(rules))
    for call in calls:
        meant = any(rule_matches(number, rule, call) for number, rule in enumerate(rules))
        found = compiled.first_rule(call.attributes()) > 0
        if action == "ALLOW":
            assert meant or not found
        else:
            assert found or not meant
        if exact:
            assert found == meant


MESH = (
    AMBIENT_SHOP
    + """
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {nodeName: n, hostNetwork: false}, status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop,
   labels: {istio.io/use-waypoint: missing}},
 spec: {clusterIP: 10.96.0.1, selector: {app: web}, trafficDistribution: PreferSameNode,
   publishNotReadyAddresses: true, ports: [{port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: shop},
 spec: {clusterIP: None, internalTrafficPolicy: Local, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: bare-1, namespace: shop, labels: {kubernetes.io/service-name: bare}},
 ports: [{port: 81}], endpoints: [{addresses: [192.0.2.1]}]}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext, namespace: shop},
 spec: {hosts: [a.example, b.example], addresses: [198.51.100.0/24], resolution: DNS,
   exportTo: ["."], ports: [{number: 443, name: tls}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: any, namespace: shop},
 spec: {hosts: ["*.example"], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls}]}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: shop},
 spec: {address: vm.example, weight: 0, network: other, labels: {app: web}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication,
 metadata: {name: p, namespace: shop},
 spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}}
"""
)


def test_the_node_proxy_reads_every_resource() -> None:
    for trust_domain in ("cluster.local", "corp.example"):
        raw = translate(MESH, trust_domain=trust_domain).raw
        assert len(raw.addresses) == 11
        for resource in raw.addresses.values():
            address_from_proto(resource.payload)
        assert len(raw.authorizations) == 2
        for resource in raw.authorizations.values():
            assert not authorization_from_proto(resource.payload).unreadable
