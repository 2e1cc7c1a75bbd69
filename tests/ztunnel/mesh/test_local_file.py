"""Resources from a YAML document."""

from __future__ import annotations

import copy
import json
import re
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.mesh.builders import going, identity, mesh
from tests.ztunnel.mesh.strategies import unhurried
from ztunnel.mesh.authorize import ConnectionAttributes, authorize
from ztunnel.mesh.decision import Hbone
from ztunnel.mesh.local_file import LocalFileError, read_resources
from ztunnel.mesh.policy import (
    Authorization,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import (
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Scope,
    Service,
    Visibility,
)
from ztunnel.mesh.workload import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
    WorkloadType,
)

WHOLE = """\
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: sa
  trustDomain: td
  network: ""
  protocol: HBONE
  node: local
  workloadIps: [127.0.0.2, "::1"]
  canonicalName: app
  canonicalRevision: v1
  workloadName: local-abc
  workloadType: deployment
  clusterId: k1
  hostname: local.example
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [default/p]
  status: Healthy
  networkMode: Standard
  locality: {region: r, zone: z, subzone: s}
  capacity: 3
  waypoint: {destination: default/waypoint.example, hboneMtlsPort: 15009}
  networkGateway: {destination: east/10.9.9.9}
  services:
    default/example.com: {80: 8080}
- name: remote
  namespace: default
  workloadIps: [10.0.0.2]
  services: {}
services:
- name: example
  namespace: default
  hostname: example.com
  vips: [/127.10.0.1, east/fd00::1]
  cidrVips: [{network: "", cidr: 240.240.0.0/16}]
  ports: {80: 8080}
  endpoints:
    x: {workloadUid: Kubernetes//Pod/default/remote, port: {80: 9090}}
  subjectAltNames: ["spiffe://td/ns/default/sa/sa"]
  weightedWaypoints: [{destination: {destination: /10.9.9.8}, weight: 10}]
  loadBalancer: {routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
policies:
- name: p
  namespace: default
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - principals: [!Exact td/ns/default/sa/sa, !Prefix td/, !Suffix /sa, !Presence ]
        notNamespaces: [{Exact: other}, Presence]
        serviceAccounts: [{namespace: default, serviceAccount: sa}]
        sourceIps: [10.0.0.0/8]
        notDestinationIps: ["fd00::1"]
        destinationPorts: [80, "81"]
"""


def read(text: str) -> list[Workload | Service | Authorization]:
    return read_resources(text, "mesh.yaml")


def test_every_field_is_read() -> None:
    local, remote, service, policy = read(WHOLE)
    assert local == Workload(
        uid="cluster1//v1/Pod/default/local",
        name="local",
        namespace="default",
        addresses=("127.0.0.2", "::1"),
        tunnel_protocol=TunnelProtocol.HBONE,
        trust_domain="td",
        service_account="sa",
        waypoint=GatewayAddress(NamespacedHostname("default", "waypoint.example"), 15009),
        network_gateway=GatewayAddress(NetworkAddress("east", "10.9.9.9")),
        node="local",
        canonical_name="app",
        canonical_revision="v1",
        workload_type=WorkloadType.DEPLOYMENT,
        workload_name="local-abc",
        native_tunnel=True,
        application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088),
        authorization_policies=("default/p",),
        status=WorkloadStatus.HEALTHY,
        cluster_id="k1",
        hostname="local.example",
        services={"default/example.com": {80: 8080}},
        locality=Locality("r", "z", "s"),
        network_mode=NetworkMode.STANDARD,
        capacity=3,
    )
    assert isinstance(remote, Workload)
    assert remote.uid == "Kubernetes//Pod/default/remote"
    assert remote.identity.uri == "spiffe://cluster.local/ns/default/sa/default"
    assert remote.services == {"default/example.com": {80: 9090}}
    assert isinstance(service, Service)
    assert service.vips == (NetworkAddress("", "127.10.0.1"), NetworkAddress("east", "fd00::1"))
    assert [str(block.cidr) for block in service.cidr_vips] == ["240.240.0.0/16"]
    assert service.load_balancing == LoadBalancing(
        (Scope.REGION, Scope.ZONE), LoadBalancingMode.FAILOVER, HealthPolicy.ALLOW_ALL
    )
    assert service.ip_families is IPFamilies.IPV4_ONLY
    assert service.visibility is Visibility.NAMESPACE
    assert service.canonical
    assert service.subject_alt_names == (identity("sa", "default", "td"),)
    assert [one.weight for one in service.weighted_waypoints] == [10]
    assert isinstance(policy, Authorization)
    assert (policy.scope, policy.action) == (PolicyScope.WORKLOAD_SELECTOR, PolicyAction.DENY)
    assert policy.dry_run
    match = policy.rules[0][0][0]
    presence = StringMatch(StringMatchKind.PRESENCE)
    assert match.principals == (
        StringMatch(StringMatchKind.EXACT, "td/ns/default/sa/sa"),
        StringMatch(StringMatchKind.PREFIX, "td/"),
        StringMatch(StringMatchKind.SUFFIX, "/sa"),
        presence,
    )
    assert match.not_namespaces == (StringMatch(StringMatchKind.EXACT, "other"), presence)
    assert match.service_accounts == (ServiceAccountMatch("default", "sa"),)
    assert [str(network) for network in match.not_destination_ips] == ["fd00::1/128"]
    assert match.destination_ports == (80, 81)


def test_what_is_read_is_a_mesh_that_works() -> None:
    text = """\
    workloads:
    - {name: a, namespace: shop, workloadIps: [10.0.0.1], protocol: HBONE, services: {}}
    - name: b
      namespace: shop
      workloadIps: [10.0.0.2]
      protocol: HBONE
      services: {shop/b.example: {80: 8080}}
    services:
    - {name: b, namespace: shop, hostname: b.example, vips: [/10.96.0.1], ports: {80: 8080}}
    policies:
    - {name: d, namespace: shop, scope: Namespace, action: Deny,
       rules: [[[{destinationPorts: [8080]}]]]}
    """
    state = mesh(*read(textwrap.dedent(text)))
    client = state.local_workload("a", "shop", "default")
    assert client is not None
    decision = going(state, client, ("10.96.0.1", 80))
    assert isinstance(decision, Hbone)
    assert decision.authority == "10.0.0.2:8080"
    connection = ConnectionAttributes("10.0.0.1", client.identity, "10.0.0.2", 8080)
    assert authorize(state, decision.workload, connection).policy == "shop/d"


def test_json_is_yaml_and_nothing_is_nothing() -> None:
    document = {"workloads": [{"name": "a", "namespace": "n", "workloadIps": [], "services": {}}]}
    assert len(read(json.dumps(document))) == 1
    assert read("") == []
    assert read("workloads:\nservices: []\n") == []


def test_unhealthy_endpoints_are_left_out_unless_all_are_allowed() -> None:
    def endpoints_of(health: str, status: str) -> dict[str, int]:
        text = f"""\
        workloads: [{{uid: u, namespace: n, workloadIps: [], services: {{n/h: {{1: 1}}}}}}]
        services:
        - name: h
          namespace: n
          hostname: h
          vips: []
          ports: {{80: 80}}
          loadBalancer: {{healthPolicy: {health}}}
          endpoints: {{u: {{workloadUid: u, port: {{80: 81}}, status: {status}}}}}
        """
        workload = read(textwrap.dedent(text))[0]
        assert isinstance(workload, Workload)
        return {key: ports[80] for key, ports in workload.services.items()}

    assert endpoints_of("OnlyHealthy", "Healthy") == {"n/h": 81}
    assert endpoints_of("OnlyHealthy", "Unhealthy") == {}
    assert endpoints_of("AllowAll", "Unhealthy") == {"n/h": 81}


WORKLOAD = "workloads: [{name: a, namespace: n, workloadIps: [], services: {}, %s}]"
SERVICE = "services: [{name: a, namespace: n, hostname: h, vips: [], ports: {}, %s}]"
POLICY = "policies: [{name: a, namespace: n, scope: Global, action: Deny, rules: [%s]}]"
MATCH = POLICY % "[[{%s}]]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workloads: ]", "mesh.yaml:1: "),
        ("a: \udc80", "mesh.yaml:1: not YAML: "),
        ("a: 1", "mesh.yaml:1: document: unknown key 'a'; known are policies, services, workloads"),
        ("[1]: 2", "a key must be a text or a number"),
        ("[]", "document: a mapping is expected"),
        ("workloads: {}", "workloads: a list is expected"),
        ("workloads: [1]", "workloads[0]: a mapping is expected"),
        ("---\n---\n", "mesh.yaml:2: "),
        ("workloads:\n- {name: a}", "mesh.yaml:2: workloads[0]: workloadIps is missing"),
        ("workloads: [{namespace: n, workloadIps: [], services: {}}]", "name or uid is missing"),
        (WORKLOAD % "name: b", "key 'name' stands here twice"),
        (WORKLOAD % "nme: b", "unknown key 'nme'"),
        (WORKLOAD % "network: 1", "workloads[0].network: a text is expected; quote '1'"),
        (WORKLOAD % "network: []", "workloads[0].network: a text is expected"),
        (WORKLOAD % "protocol: QUIC", "'QUIC' is none of TCP, HBONE"),
        (WORKLOAD % "capacity: -1", "capacity: a whole number is expected"),
        (WORKLOAD % "capacity: 1.5", "capacity: a whole number is expected"),
        (WORKLOAD % "capacity: 4294967296", "is not between 0 and 4294967295"),
        (WORKLOAD % "nativeTunnel: 1", "nativeTunnel: true or false is expected"),
        (WORKLOAD % "nativeTunnel: yes", "nativeTunnel: true or false is expected"),
        (WORKLOAD % "serviceAccount: a/b", "'a/b' cannot be part of an identity"),
        (WORKLOAD % "waypoint: {destination: x}", '"network/ip" or "namespace/hostname"'),
        (WORKLOAD % "waypoint: {hboneMtlsPort: 1}", "destination is missing"),
        (WORKLOAD % "waypoint: {destination: n/h, hboneMtlsPort: 0}", "is not between 1 and 65535"),
        (WORKLOAD.replace("workloadIps: []", "workloadIps: [x]") % "", "workloadIps[0]: 'x'"),
        (WORKLOAD.replace("services: {}", "services: {a: {}}") % "", '"namespace/hostname"'),
        (WORKLOAD.replace("services: {}", "services: {a/b: {0: 1}}") % "", "0 is not between 1"),
        (
            "workloads: [&a {name: a, namespace: n, workloadIps: [], services: {}}, *a]",
            "aliases (*name) cannot be used here",
        ),
        (
            "workloads:\n"
            "- {name: a, namespace: n, workloadIps: [], services: {}}\n"
            "- {name: a, namespace: n, workloadIps: [], services: {}}\n",
            "mesh.yaml:3: workloads[1]: Kubernetes//Pod/n/a stands here twice",
        ),
        (SERVICE.replace("vips: []", "vips: [1.2.3.4]") % "", '"network/ip" is expected'),
        (SERVICE.replace("vips: []", "vips: [/x]") % "", "'x' does not appear"),
        (SERVICE.replace("hostname: h", "hostname: ''") % "", "the hostname is empty"),
        (SERVICE % "cidrVips: [{cidr: x}]", "cidrVips[0].cidr"),
        (SERVICE % "subjectAltNames: [x]", "subjectAltNames[0]: 'x' does not begin with"),
        (SERVICE % "loadBalancer: {mode: Best}", "'Best' is none of Standard, Strict"),
        (
            SERVICE % "endpoints: {u: {workloadUid: u, port: {}}}",
            "there is no workload u in this document",
        ),
        (POLICY.replace("scope: Global", "scope: Mesh") % "", "'Mesh' is none of Global"),
        (POLICY % "1", "rules[0]: a list is expected"),
        (MATCH % "ports: [1]", "unknown key 'ports'"),
        (MATCH % "principals: [a]", "a text tagged with one of !Exact, !Prefix"),
        (MATCH % "principals: [!Regex a]", "a text tagged with one of !Exact, !Prefix"),
        (MATCH % "principals: [{Regex: a}]", "'Regex' is none of Exact"),
        (MATCH % "principals: [{Exact: a, Prefix: b}]", "one of Exact, Prefix, Suffix, Presence"),
        (MATCH % "principals: [!Exact '']", "an empty Exact value is met by nobody"),
        (MATCH % "principals: [!Exact 'spiffe://a']", "without spiffe://"),
        (MATCH % "serviceAccounts: [{namespace: a}]", "serviceAccount is missing"),
        (MATCH % "serviceAccounts: [{namespace: a, serviceAccount: ''}]", "a name"),
        (MATCH % "sourceIps: [10.0.0.0/33]", "sourceIps[0]: '10.0.0.0/33'"),
        (MATCH % "destinationPorts: [65536]", "65536 is not between 1 and 65535"),
    ],
)
def test_errors_name_line_and_field(text: str, reason: str) -> None:
    with pytest.raises(LocalFileError) as caught:
        read(text)
    assert str(caught.value).startswith("mesh.yaml:")
    assert reason in str(caught.value)


def test_an_endpoint_healthier_than_its_workload_is_refused() -> None:
    text = """\
    workloads: [{uid: u, namespace: n, workloadIps: [], services: {}, status: Unhealthy}]
    services:
    - {name: h, namespace: n, hostname: h, vips: [], ports: {}, endpoints:
       {u: {workloadUid: u, port: {}}}}
    """
    with pytest.raises(LocalFileError, match="is Healthy but its workload u is Unhealthy"):
        read(textwrap.dedent(text))


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(LocalFileError):
        read("[" * 100_000)


@unhurried
@given(
    st.text(max_size=100)
    | st.text("workloads: []{}!&*,-\n\"'Exact", max_size=100)
    | st.lists(st.sampled_from(WHOLE.splitlines(keepends=True)), max_size=30).map("".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read(text)
    except LocalFileError as error:
        refused = str(error)
    else:
        assert isinstance(found, list)
        return
    assert refused.startswith("mesh.yaml")


TREE: dict[str, Any] = {
    "workloads": [
        {
            "name": "local", "namespace": "default", "serviceAccount": "sa", "protocol": "HBONE",
            "workloadIps": ["10.0.0.1"], "services": {"default/example.com": {"80": 8080}},
            "applicationTunnel": {"protocol": "PROXY", "port": 15088}, "capacity": 3,
            "authorizationPolicies": ["default/p"], "status": "Healthy", "trustDomain": "td",
            "waypoint": {"destination": "default/waypoint.example", "hboneMtlsPort": 15009},
            "locality": {"region": "r", "zone": "z", "subzone": "s"}, "networkMode": "Standard",
        }
    ],
    "services": [
        {
            "name": "example", "namespace": "default", "hostname": "example.com",
            "vips": ["/127.10.0.1"], "cidrVips": [{"network": "", "cidr": "240.240.0.0/16"}],
            "ports": {"80": 8080}, "ipFamilies": "IPv4", "visibility": "Namespace",
            "weightedWaypoints": [{"destination": {"destination": "/10.9.9.8"}, "weight": 10}],
            "loadBalancer": {"routingPreferences": ["Region"], "mode": "Failover"},
            "subjectAltNames": ["spiffe://td/ns/default/sa/sa"],
        }
    ],
    "policies": [
        {
            "name": "p", "namespace": "default", "scope": "Global", "action": "Deny",
            "dryRun": False,
            "rules": [[[{
                "principals": [{"Exact": "td/ns/default/sa/sa"}, "Presence"],
                "serviceAccounts": [{"namespace": "default", "serviceAccount": "sa"}],
                "sourceIps": ["10.0.0.0/8"], "notDestinationIps": ["fd00::1"],
                "destinationPorts": [80, "81"],
            }]]],
        }
    ],
}  # fmt: skip

Path = tuple[str | int, ...]


def _paths(value: object, here: Path = ()) -> list[Path]:
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    below = [path for key, item in items for path in _paths(item, (*here, key))]
    return [here, *below] if here else below


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "/", "10.0.0.1/33", "::ffff:1.2.3.4", "spiffe://", "a/b/c", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@unhurried
@given(st.sampled_from(_paths(TREE)), _ANYTHING, st.booleans())
def test_a_value_that_is_replaced_by_anything_is_read_or_refused_with_its_place(
    path: Path, value: object, remove: bool
) -> None:
    tree = copy.deepcopy(TREE)
    holder: Any = tree
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    try:
        found = read(json.dumps(tree))
    except LocalFileError as error:
        refused = str(error)
    else:
        assert len(found) <= 3
        return
    assert re.match(r"mesh\.yaml:1: ", refused)
