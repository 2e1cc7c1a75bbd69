import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.local.objects import TopologyError, parse
from daemonset.local.topology import Topology, choose_pod, plan
from tests.support.lab import node_yaml, pod_yaml


def planned(*texts: str) -> Topology:
    return plan(parse("".join(texts)))


def addresses(topology: Topology, pod: str) -> list[str]:
    return [str(address) for address in topology.pods[pod].addresses]


def test_pods_get_the_lowest_free_addresses_in_the_order_of_their_names() -> None:
    topology = planned(node_yaml(1), pod_yaml("b", 1), pod_yaml("a", 1))
    assert addresses(topology, "default/a") == ["10.244.1.2", "fd00:244:1::2"]
    assert addresses(topology, "default/b") == ["10.244.1.3", "fd00:244:1::3"]


def test_an_address_that_a_pod_brings_is_kept_and_not_given_again() -> None:
    fixed = """---
apiVersion: v1
kind: Pod
metadata: {name: z}
spec: {nodeName: node-1, containers: []}
status: {podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
"""
    topology = planned(node_yaml(1, ipv6=False), pod_yaml("a", 1), fixed)
    assert addresses(topology, "default/z") == ["10.244.1.2"]
    assert addresses(topology, "default/a") == ["10.244.1.3"]


def test_addresses_stay_when_other_pods_come_and_go() -> None:
    first = planned(node_yaml(1), pod_yaml("b", 1))
    before = {key: pod.addresses for key, pod in first.pods.items()}
    objects = parse(node_yaml(1) + pod_yaml("a", 1) + pod_yaml("b", 1))
    second = plan(objects, before)
    assert addresses(second, "default/b") == addresses(first, "default/b")
    assert addresses(second, "default/a") == ["10.244.1.3", "fd00:244:1::3"]


def test_the_bridge_takes_the_lowest_address_beside_the_nodes() -> None:
    topology = planned(node_yaml(1), node_yaml(2))
    assert [str(address) for address in topology.underlay] == ["172.18.0.1", "fc00:18::1"]


def test_a_pod_on_the_host_network_has_its_nodes_addresses() -> None:
    pod = """---
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodeName: node-1, hostNetwork: true, containers: []}
"""
    topology = planned(node_yaml(1), pod)
    assert topology.pods["default/a"].addresses == topology.nodes["node-1"].addresses


def test_containers_become_commands_with_their_environment() -> None:
    pod = """---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
spec:
  nodeName: node-1
  containers:
    - name: main
      command: [python, -m, thing]
      args: [--loud]
      env: [{name: COLOUR, value: red}, {name: SECRET, valueFrom: {secretKeyRef: {name: s}}}]
      readinessProbe: {httpGet: {port: web, path: /healthy}}
      ports: [{name: web, containerPort: 8080}]
    - {name: image-only, image: nginx, ports: [{containerPort: 80}]}
    - {name: nothing, image: pause}
"""
    main, stand_in = planned(node_yaml(1), pod).pods["shop/a"].processes
    assert main.command == ("python", "-m", "thing", "--loud")
    assert main.environment["COLOUR"] == "red"
    assert main.environment["POD_NAME"] == "a"
    assert "SECRET" not in main.environment
    assert main.probe is not None
    assert (main.probe.port, main.probe.path) == (8080, "/healthy")
    assert stand_in.stand_in
    assert stand_in.command[-1] == "80"


POD = "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}\nstatus: {status}\n"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("", "no Node object"),
        ("- 1", r"f.yaml:1: \[1\] is not a Kubernetes object"),
        ("a: [", "f.yaml:1: not YAML"),
        ("kind: Pod", "without kind or metadata.name"),
        ("kind: Node\nmetadata: {name: n}", "Node n: status.addresses has no InternalIP"),
        (
            "kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.0.0.0/40}\n"
            "status: {addresses: [{type: InternalIP, address: 10.1.0.1}]}",
            "'10.0.0.0/40' is not a range of addresses",
        ),
        (
            "kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 'fd00::/64'}\n"
            "status: {addresses: [{type: InternalIP, address: 10.1.0.1}]}",
            "fd00::/64, but no InternalIP of its family",
        ),
        (
            node_yaml(1) + POD.format(spec="{}", status="{}"),
            "Pod default/a: spec.nodeName is missing",
        ),
        (
            node_yaml(1) + POD.format(spec="{nodeName: nope}", status="{}"),
            r"'nope' is not the name of a Node \(node-1\)",
        ),
        (
            node_yaml(1) + POD.format(spec="{nodeName: node-1}", status="{podIP: 300.1.1.1}"),
            "'300.1.1.1', which is not an IP address",
        ),
        (
            node_yaml(1) + POD.format(spec="{nodeName: node-1}", status="{podIP: 172.18.0.2}"),
            "172.18.0.2 is the address of node-1",
        ),
        (
            node_yaml(1) + POD.format(spec="{nodeName: node-1, hostNetwork: 3}", status="{}"),
            "spec.hostNetwork should be a bool, is 3",
        ),
        (
            node_yaml(1) + POD.format(spec="{nodeName: node-1, restartPolicy: x}", status="{}"),
            "spec.restartPolicy 'x' is not one of",
        ),
        (node_yaml(1) + pod_yaml("a", 1) * 2, "is used by another Pod"),
        (
            node_yaml(1) + pod_yaml("a", 1, command="[1]"),
            r"containers\[0\].command should be a list of strings",
        ),
    ],
)
def test_errors_name_the_object_and_the_field(objects: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        plan(parse(objects, "f.yaml"))


def test_a_full_range_is_an_error() -> None:
    node = """---
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.0.0.0/30}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
"""
    with pytest.raises(TopologyError, match=r"Pod default/c: status.podIP .* 10.0.0.0/30 is full"):
        planned(node, pod_yaml("a", 1), pod_yaml("b", 1), pod_yaml("c", 1))


def test_a_pod_is_found_by_its_short_name_where_that_is_unique() -> None:
    keys = ["shop/web", "shop/echo", "street/echo"]
    assert choose_pod("web", keys) == "shop/web"
    assert choose_pod("street/echo", keys) == "street/echo"
    with pytest.raises(TopologyError, match="several pods are called echo: shop/echo, street/echo"):
        choose_pod("echo", keys)
    with pytest.raises(TopologyError, match="there is no pod nope"):
        choose_pod("nope", keys)


names = st.lists(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True), unique=True)


@given(names, st.sets(st.integers(0, 5)))
def test_no_two_things_share_an_address_or_an_interface(pods: list[str], kept: set[int]) -> None:
    text = node_yaml(1) + node_yaml(2)
    text += "".join(pod_yaml(name, 1 + number % 2) for number, name in enumerate(pods))
    topology = plan(parse(text))
    before = {
        pod.key: pod.addresses
        for number, pod in enumerate(topology.pods.values())
        if number in kept
    }
    again = plan(parse(text), before)
    for result in (topology, again):
        everything = [a for pod in result.pods.values() for a in pod.addresses]
        assert len(everything) == len(set(everything)) == 2 * len(pods)
        links = [pod.link for pod in result.pods.values()]
        assert len(links) == len(set(links))
        assert all(len(link.encode()) <= 15 for link in links)
        for pod in result.pods.values():
            for address, one in zip(pod.addresses, result.nodes[pod.node].pod_ranges, strict=True):
                assert address in one
                assert address not in (one[0], one[1])
    assert all(again.pods[key].addresses == kept_before for key, kept_before in before.items())


KEYS = [
    *("name", "containers", "nodeName", "command", "args", "env", "value", "ports", "port"),
    *("containerPort", "readinessProbe", "httpGet", "tcpSocket", "path", "podIP", "podIPs"),
    *("addresses", "address", "type", "podCIDR", "podCIDRs", "restartPolicy", "hostNetwork"),
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=15,
)


@given(
    kind=st.sampled_from(["Pod", "Node"]),
    spec=values,
    container=values,
    status=values,
    labels=values,
)
def test_anything_at_all_is_a_plan_or_a_named_error(
    kind: str, spec: object, container: object, status: object, labels: object
) -> None:
    if isinstance(spec, dict):
        spec = {"nodeName": "node-1", "containers": [container], **spec}
    thing = {
        "kind": kind,
        "metadata": {"name": "x", "labels": labels},
        "spec": spec,
        "status": status,
    }
    try:
        topology = plan(parse(node_yaml(1) + "---\n" + json.dumps(thing)))
    except TopologyError as error:
        said = str(error)
    else:
        said = f"inline YAML makes {len(topology.nodes)} nodes"
    assert said.startswith("inline YAML")
