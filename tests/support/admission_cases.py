"""Good and bad objects, for the offline validator and the API server's policies alike.

Both must refuse the same objects, warn of the same ones, and say nothing about the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Json = dict[str, Any]

ROOT = "istio-system"
NAMESPACE = "shop"


class Verdict(Enum):
    """What becomes of an object that somebody writes."""

    FINE = "fine"
    WARNED = "warned"
    REFUSED = "refused"


@dataclass(frozen=True)
class Case:
    """One object. ``by_type``: the definition refuses it, so that no policy has to."""

    name: str
    object: Json
    verdict: Verdict
    by_type: bool = False


@dataclass
class _Kind:
    api_version: str
    kind: str
    cases: list[Case] = field(default_factory=list)

    def add(
        self,
        verdict: Verdict,
        name: str,
        spec: Json | None,
        *,
        by_type: bool = False,
        namespace: str = NAMESPACE,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **beside: object,
    ) -> None:
        meta: Json = {"name": "case", "labels": labels or {}, "annotations": annotations or {}}
        if self.kind == "Namespace":
            meta["name"] = namespace
        else:
            meta["namespace"] = namespace
        item: Json = {"apiVersion": self.api_version, "kind": self.kind, "metadata": meta, **beside}
        if spec is not None:
            item["spec"] = spec
        self.cases.append(Case(f"{self.kind}: {name}", item, verdict, by_type))

    def fine(self, name: str, spec: Json | None, **more: Any) -> None:
        self.add(Verdict.FINE, name, spec, **more)

    def warned(self, name: str, spec: Json | None, **more: Any) -> None:
        self.add(Verdict.WARNED, name, spec, **more)

    def refused(self, name: str, spec: Json | None, **more: Any) -> None:
        self.add(Verdict.REFUSED, name, spec, **more)


def source(**fields: object) -> Json:
    return {"rules": [{"from": [{"source": fields}]}]}


def operation(**fields: object) -> Json:
    return {"rules": [{"to": [{"operation": fields}]}]}


def when(key: str, *values: str, **more: object) -> Json:
    entry: Json = {"key": key, **more}
    if values:
        entry["values"] = list(values)
    return {"rules": [{"when": [entry]}]}


SELECTOR = {"matchLabels": {"app": "web"}}
ORDERS = {"kind": "Service", "name": "orders"}
HTTP = operation(methods=["GET"])


def _policies() -> list[Case]:
    kind = _Kind("security.istio.io/v1", "AuthorizationPolicy")
    kind.fine("nothing is allowed", {})
    kind.fine("no spec at all", None)
    kind.fine("anything is allowed", {"rules": [{}]})
    kind.fine(
        "all that L4 knows",
        {
            "selector": SELECTOR,
            "action": "DENY",
            "rules": [
                {
                    "from": [
                        {"source": {"principals": ["*", "a*", "*b", "c"], "notNamespaces": ["x"]}},
                        {"source": {"ipBlocks": ["10.0.0.1/8", "::1", "fd00::/8"]}},
                        {"source": {"serviceAccounts": ["web", "street/web"]}},
                    ],
                    "to": [{"operation": {"ports": ["80", "0443"], "notPorts": ["65535"]}}],
                    "when": [
                        {"key": "source.ip", "notValues": ["0.0.0.0/0"]},
                        {"key": "destination.port", "values": ["80"], "notValues": []},
                        {"key": "source.principal", "values": ["*"]},
                    ],
                }
            ],
        },
    )
    kind.fine("an empty selector", {"selector": {}})
    kind.fine("dry run", {"rules": [{}]}, annotations={"istio.io/dry-run": "true"})
    kind.fine("L7 at a waypoint", {"targetRefs": [ORDERS], "action": "DENY", **HTTP})
    kind.fine("the old form of a target", {"targetRef": {**ORDERS, "group": "core"}, **HTTP})
    kind.fine("of another revision", {"rulez": 1}, labels={"istio.io/rev": "canary"})
    kind.warned("L7 without a waypoint, allowing", {"selector": SELECTOR, **HTTP})
    kind.warned("DENY with L7 fields alone", {"action": "DENY", **HTTP})
    kind.warned("hosts", operation(hosts=["a.example"]))
    kind.warned("paths, templates among them", operation(paths=["/a/{*}/b*c"]))
    kind.warned("request principals", source(requestPrincipals=["*"]))
    kind.warned("remote addresses", source(notRemoteIpBlocks=["10.0.0.0/8"]))
    kind.warned("a condition on headers", when("request.headers[x-a]", "b"))
    kind.warned("a condition on SNI", when("connection.sni", "a"))
    kind.warned("a condition on claims", when("request.auth.claims[a][b]", "c"))
    kind.warned("a condition on accounts", when("source.serviceAccount", "shop/web"))
    kind.warned("AUDIT", {"action": "AUDIT", "rules": [{}]})
    kind.warned("CUSTOM", {"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]})
    kind.warned("DENY without rules", {"action": "DENY"})
    kind.warned(
        "for a gateway",
        {
            "targetRefs": [
                {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "entry"}
            ],
            "rules": [{}],
        },
    )
    kind.warned("for a pod", {"targetRefs": [{"kind": "Pod", "name": "web"}], "rules": [{}]})
    kind.refused("an unknown field", {"rule": [{}]})
    kind.refused("rules beside spec", {}, rules=[{}])
    kind.refused("spec beside itself", None, specs={})
    kind.refused("an unknown action", {"action": "deny"}, by_type=True)
    kind.refused("an empty action", {"action": ""}, by_type=True)
    kind.refused("another selector", {"selector": {"app": "web"}})
    kind.refused("expressions in a selector", {"selector": {"matchExpressions": []}})
    kind.refused("a wildcard in a selector", {"selector": {"matchLabels": {"app": "w*"}}})
    kind.refused("a number in a selector", {"selector": {"matchLabels": {"app": 1}}}, by_type=True)
    kind.refused("selector and targets", {"selector": SELECTOR, "targetRefs": [ORDERS]})
    kind.refused("a target without a name", {"targetRefs": [{"kind": "Service"}]})
    kind.refused("a target without a kind", {"targetRefs": [{"name": "orders"}]})
    kind.refused("a target elsewhere", {"targetRefs": [{**ORDERS, "namespace": "street"}]})
    kind.refused("a target and more", {"targetRefs": [{**ORDERS, "sectionName": "http"}]})
    kind.refused("a provider without a name", {"action": "CUSTOM", "provider": {}})
    kind.refused("a provider and more", {"provider": {"name": "x", "port": 1}})
    kind.refused("rules that are a mapping", {"rules": {}}, by_type=True)
    kind.refused("rules that are nothing", {"rules": None}, by_type=True)
    kind.refused("a rule that is a string", {"rules": ["from"]}, by_type=True)
    kind.refused("an unknown field of a rule", {"rules": [{"form": []}]})
    for name in ("from", "to", "when"):
        kind.refused(f"{name} that is empty", {"rules": [{name: []}]})
        kind.refused(f"{name} that is nothing", {"rules": [{name: None}]}, by_type=True)
    kind.refused("no source", {"rules": [{"from": [{}]}]})
    kind.refused("an empty source", {"rules": [{"from": [{"source": {}}]}]})
    kind.refused(
        "more than a source", {"rules": [{"from": [{"source": {"ipBlocks": ["::1"]}, "x": 1}]}]}
    )
    kind.refused("no operation", {"rules": [{"to": [{}]}]})
    kind.refused("an operation in from", {"rules": [{"from": [{"operation": {"ports": ["80"]}}]}]})
    kind.refused("a misspelt field of a source", source(principal=["a"]))
    kind.refused("a misspelt field of an operation", operation(port=["80"]))
    kind.refused("an empty list", source(principals=[]))
    kind.refused("an empty string", source(principals=[""]))
    kind.refused("a line break", source(principals=["a\nb"]))
    kind.refused("a string for a list", source(principals="a"), by_type=True)
    kind.refused("a star in between", source(principals=["a*b"]))
    kind.refused("stars at both ends", source(namespaces=["*a*"]))
    kind.refused("two stars", source(namespaces=["**"]))
    kind.refused("a star in a method", operation(methods=["G*T"]))
    kind.refused("a prefix that is too long", source(ipBlocks=["10.0.0.0/33"]))
    kind.refused("no address", source(notIpBlocks=["10.0.0"]))
    kind.refused("a netmask", source(ipBlocks=["10.0.0.0/255.0.0.0"]))
    kind.refused("a zone", source(ipBlocks=["fe80::1%eth0"]))
    kind.refused("IPv4 in IPv6", source(ipBlocks=["::ffff:10.0.0.1"]))
    kind.refused("no remote address", source(remoteIpBlocks=["nobody"]))
    kind.refused("three parts of an account", source(serviceAccounts=["a/b/c"]))
    kind.refused("any account", source(serviceAccounts=["*"]))
    kind.refused("a port that is a number", operation(ports=[80]), by_type=True)
    kind.refused("port 0", operation(ports=["0"]))
    kind.refused("port 65536", operation(ports=["65536"]))
    kind.refused("a range of ports", operation(notPorts=["80-90"]))
    kind.refused("no key", {"rules": [{"when": [{"values": ["a"]}]}]})
    kind.refused("an unknown key", when("source.prinzipal", "a"))
    kind.refused("a key without brackets", when("request.headers", "a"))
    kind.refused("no values", when("source.ip"))
    kind.refused("empty values", when("source.ip", notValues=[]))
    kind.refused("a value that is no address", when("source.ip", "a"))
    kind.refused("a value that is no port", when("destination.port", notValues=["http"]))
    kind.refused("a value that is empty", when("source.principal", ""))
    kind.refused("a star in a value", when("source.namespace", "a*b"))
    kind.refused("more in a condition", when("source.ip", "::1", value="::1"))
    kind.refused("dry run, perhaps", {}, annotations={"istio.io/dry-run": "yes"})
    return kind.cases


def _peers() -> list[Case]:
    kind = _Kind("security.istio.io/v1", "PeerAuthentication")
    kind.fine("no spec", None)
    kind.fine("strict", {"mtls": {"mode": "STRICT"}})
    kind.fine(
        "a port",
        {
            "selector": SELECTOR,
            "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}},
        },
    )
    kind.fine("of another revision", {"mode": "x"}, labels={"istio.io/rev": "canary"})
    kind.warned("a selector in the root namespace", {"selector": SELECTOR}, namespace=ROOT)
    kind.refused("a misplaced mode", {"mode": "STRICT"})
    kind.refused("mtls beside spec", {}, mtls={"mode": "STRICT"})
    kind.refused("an unknown mode", {"mtls": {"mode": "strict"}}, by_type=True)
    kind.refused("a mode and more", {"mtls": {"mode": "STRICT", "port": 1}})
    kind.refused("ports of everybody", {"portLevelMtls": {"80": {"mode": "STRICT"}}})
    kind.refused("no port", {"selector": SELECTOR, "portLevelMtls": {"http": {"mode": "STRICT"}}})
    kind.refused("port 0", {"selector": SELECTOR, "portLevelMtls": {"0": {"mode": "STRICT"}}})
    kind.refused("a wildcard", {"selector": {"matchLabels": {"a": "*"}}})
    return kind.cases


def entry(**fields: object) -> Json:
    return {"hosts": ["a.example"], "resolution": "STATIC", **fields}


def _entries() -> list[Case]:
    kind = _Kind("networking.istio.io/v1", "ServiceEntry")
    port = {"number": 80, "name": "http", "protocol": "HTTP"}
    kind.fine("an address", entry(endpoints=[{"address": "10.0.0.1"}], ports=[port]))
    kind.fine("no port of its own", entry(endpoints=[{"address": "::ffff:10.0.0.1"}]))
    kind.fine("a name in DNS", entry(resolution="DNS", endpoints=[{"address": "b.example."}]))
    kind.fine("a network", entry(endpoints=[{"network": "other"}]))
    kind.fine("blocks", {"hosts": ["*.example"], "addresses": ["10.0.0.0/8", "::1"]})
    kind.fine("pods", entry(workloadSelector={"labels": {"app": "web"}}))
    kind.fine("an unknown field", entry(location="MESH_EXTERNAL", new={"a": 1}))
    kind.fine("for this namespace", entry(exportTo=["."]))
    kind.fine(
        "with names for its ports", entry(ports=[port]), labels={"istio.io/use-waypoint": "w"}
    )
    kind.fine("of another revision", {"hosts": ["?"]}, labels={"istio.io/rev": "canary"})
    kind.warned("a wildcard", {"hosts": ["*.example"], "resolution": "DNS"})
    kind.warned("for another namespace", entry(exportTo=[".", "street"]))
    kind.warned(
        "a port without a name behind a waypoint",
        entry(ports=[{"number": 80}]),
        labels={"istio.io/use-waypoint": "w"},
    )
    kind.warned(
        "an unknown distribution",
        entry(),
        annotations={"networking.istio.io/traffic-distribution": "PreferFar"},
    )
    kind.refused("no hosts", {"hosts": []}, by_type=True)
    kind.refused("no host at all", {"resolution": "NONE"})
    kind.refused("no host name", entry(hosts=["a b"]))
    kind.refused("a star in between", entry(hosts=["a.*.example"]))
    kind.refused("no block", entry(addresses=["10.0.0.0/40"]))
    kind.refused("an unknown resolution", entry(resolution="STATIK"), by_type=True)
    kind.refused("a port without a number", entry(ports=[{"name": "http"}]))
    kind.refused("port 0", entry(ports=[{"number": 0}]), by_type=True)
    kind.refused(
        "target port 70000", entry(ports=[{"number": 1, "targetPort": 70000}]), by_type=True
    )
    kind.refused("a quoted port", entry(ports=[{"number": "80"}]), by_type=True)
    kind.refused("pods and addresses", entry(workloadSelector={}, endpoints=[]))
    kind.refused("addresses for nobody", {"hosts": ["a.b"], "endpoints": [{"address": "::1"}]})
    kind.refused("an endpoint without an address", entry(endpoints=[{"labels": {"a": "b"}}]))
    kind.refused("a unix socket", entry(resolution="DNS", endpoints=[{"address": "unix:///a"}]))
    kind.refused("a name where there can be none", entry(endpoints=[{"address": "b.example"}]))
    kind.refused("a bad address", entry(resolution="DNS", endpoints=[{"address": "10.0.0.256"}]))
    kind.refused("a bad name", entry(resolution="DNS", endpoints=[{"address": "a b"}]))
    kind.refused(
        "a bad port of an endpoint",
        entry(endpoints=[{"address": "::1", "ports": {"http": 0}}]),
        by_type=True,
    )
    return kind.cases


def _workloads() -> list[Case]:
    kind = _Kind("networking.istio.io/v1", "WorkloadEntry")
    kind.fine("an address", {"address": "10.0.0.1", "ports": {"http": 80}, "weight": 3})
    kind.fine("a name", {"address": "vm.example"})
    kind.fine("a network", {"network": "other"})
    kind.fine("of another revision", {}, labels={"istio.io/rev": "canary"})
    kind.refused("no address", {"labels": {"app": "web"}})
    kind.refused("a unix socket", {"address": "unix:///tmp/a"})
    kind.refused("a bad address", {"address": "10.0.0.256"})
    kind.refused("an address and a port", {"address": "10.0.0.1:80"})
    kind.refused("no port", {"address": "::1", "ports": {"http": 65536}}, by_type=True)
    kind.refused("a negative weight", {"address": "::1", "weight": -1}, by_type=True)
    kind.refused("a number for a label", {"address": "::1", "labels": {"a": 1}}, by_type=True)
    return kind.cases


def _services() -> list[Case]:
    kind = _Kind("v1", "Service")
    waypoint = {"istio.io/use-waypoint": "w"}
    kind.fine("a port without a name", {"ports": [{"port": 80}]})
    kind.fine("a name", {"ports": [{"port": 80, "name": "http"}]}, labels=waypoint)
    kind.fine("a protocol", {"ports": [{"port": 80, "appProtocol": "http"}]}, labels=waypoint)
    kind.fine("UDP", {"ports": [{"port": 53, "protocol": "UDP"}]}, labels=waypoint)
    kind.warned("no name behind a waypoint", {"ports": [{"port": 80}]}, labels=waypoint)
    kind.warned(
        "an unknown distribution",
        {"ports": [{"port": 80}]},
        annotations={"networking.istio.io/traffic-distribution": "Near"},
    )
    mode = "istio.io/dataplane-mode"
    spaces = _Kind("v1", "Namespace")
    spaces.fine("in the mesh", None, labels={mode: "ambient"})
    spaces.fine("out of the mesh", None, labels={mode: "none"})
    spaces.fine("the system out of the mesh", None, namespace="kube-system", labels={mode: "none"})
    spaces.warned("an unknown mode", None, labels={mode: "enabled"})
    spaces.fine("pods of one node joined", None, labels={"ambientd.io/join": "enabled"})
    spaces.warned("pods joined, perhaps", None, labels={"ambientd.io/join": "yes"})
    spaces.warned("the system itself", None, namespace="kube-system", labels={mode: "ambient"})
    return kind.cases + spaces.cases


CASES = [*_policies(), *_peers(), *_entries(), *_workloads(), *_services()]

AROUND: list[Json] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "orders",
            "namespace": NAMESPACE,
            "labels": {"istio.io/use-waypoint": "w"},
        },
        "spec": {"ports": [{"port": 80, "name": "http"}]},
    },
]
"""What stands around the object: its namespace, and a service with a waypoint."""
