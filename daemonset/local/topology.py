"""Pure: from Kubernetes objects to the plan of a mesh on one machine.

Nodes come from Node objects (``status.addresses``, ``spec.podCIDR(s)``), pods from Pod objects
(``spec.nodeName``, ``status.podIP(s)``, the containers' ``command``, ``args`` and ``env``). What a
cluster would have filled in may be left out: a pod without an address gets the lowest free one of
its node's range, in the order of names, so that the same folder always gives the same plan.
"""

import ipaddress
import operator
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from daemonset.local.objects import Object, TopologyError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FIRST_POD = 2
"""Host part of a range's first pod: 0 is the network, 1 the gateway, as kind's CNI has it."""

RESTART_POLICIES = ("Always", "OnFailure", "Never")


@dataclass(frozen=True, slots=True)
class Probe:
    """A container's ``readinessProbe``: a TCP connection, or an HTTP GET where there is a path."""

    port: int
    path: str | None


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One container: a command to run in its pod, with its whole environment."""

    container: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    stand_in: bool = False
    """The pod names only an image, which nothing here can run; our own application stands in."""
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class PodPlan:
    """One pod: where it runs, how it is attached, what runs in it."""

    namespace: str
    name: str
    uid: str
    node: str
    service_account: str
    labels: Mapping[str, str]
    host_network: bool
    addresses: tuple[Address, ...]
    link: str
    """Name of the node's end of the pod's veth; unused with ``hostNetwork``."""
    restart: str
    """``restartPolicy``: Always, OnFailure or Never."""
    processes: tuple[ProcessPlan, ...]

    @property
    def key(self) -> str:
        """``namespace/name``, as messages and commands name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def netns(self) -> str:
        """Name of its network namespace on this machine."""
        return f"ambient-{self.namespace}_{self.name}"  # "_" is in no Kubernetes name


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: its addresses on the bridge and the ranges of its pods."""

    name: str
    addresses: tuple[Address, ...]
    pod_ranges: tuple[Network, ...]
    link: str
    """Name of the bridge's end of the node's veth."""

    @property
    def netns(self) -> str:
        return f"ambient-node-{self.name}"

    def gateways(self) -> Iterator[Address]:
        """The node's own addresses towards its pods: the first of each range."""
        for pod_range in self.pod_ranges:
            yield pod_range[1]


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that is built on the machine."""

    nodes: Mapping[str, NodePlan]
    pods: Mapping[str, PodPlan]
    underlay: tuple[Address, ...]
    """Addresses of the bridge itself, where the control plane and the cluster's DNS live."""

    def pods_on(self, node: str) -> list[PodPlan]:
        return [pod for pod in self.pods.values() if pod.node == node]


def plan(
    objects: Iterable[Object], given_before: Mapping[str, tuple[Address, ...]] | None = None
) -> Topology:
    """The plan for these objects.

    Args:
        objects: of a whole folder; kinds that mean nothing here are passed over.
        given_before: pod key -> addresses that it was given earlier, and keeps if they still fit.

    Raises:
        TopologyError: an object cannot be built as written; the text names it and the field.
    """
    everything = list(objects)
    nodes = {node.name: node for node in _plan_nodes(everything)}
    if not nodes:
        raise TopologyError(
            "there is no Node object: a mesh needs at least one node to run pods on"
        )
    pods = {pod.key: pod for pod in _plan_pods(everything, nodes, given_before or {})}
    return Topology(nodes, pods, _underlay(nodes))


def choose_pod(name: str, keys: Sequence[str]) -> str:
    """The key ``namespace/name`` that *name* means. Raises TopologyError when none or several."""
    found = [key for key in keys if key == name or key.partition("/")[2] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise TopologyError(f"several pods are called {name}: {', '.join(found)}")
    raise TopologyError(f"there is no pod {name}; there are {', '.join(sorted(keys))}")


def _plan_nodes(objects: list[Object]) -> Iterator[NodePlan]:
    for number, node in enumerate(_of_kind(objects, "Node"), start=1):
        addresses = tuple(
            _address(entry, "address", entry.body.get("address"))
            for entry in node.items("status.addresses")
            if entry.body.get("type") == "InternalIP"
        )
        if not addresses:
            raise node.error("status.addresses", "has no InternalIP")
        texts = node.get("spec.podCIDRs", list) or [node.get("spec.podCIDR", str)]
        ranges = tuple(_range(node, text) for text in texts)
        for pod_range in ranges:
            if all(address.version != pod_range.version for address in addresses):
                raise node.error(
                    "spec.podCIDRs", f"has {pod_range}, but no InternalIP of its family"
                )
        yield NodePlan(node.name, addresses, ranges, f"node-{number}")


def _plan_pods(
    objects: list[Object],
    nodes: Mapping[str, NodePlan],
    given_before: Mapping[str, tuple[Address, ...]],
) -> Iterator[PodPlan]:
    pods = [pod for pod in _of_kind(objects, "Pod") if not _finished(pod)]
    given: dict[str, tuple[Address, ...]] = {}
    owners: dict[Address, str] = {a: n.name for n in nodes.values() for a in n.addresses}
    taken: set[Address] = set()
    for pod in pods:
        key = f"{pod.namespace}/{pod.name}"
        if key in given:
            raise pod.error("metadata.name", "is used by another Pod of this namespace")
        _node_of(pod, nodes)
        given[key] = () if pod.get("spec.hostNetwork", bool, False) else tuple(_pod_ips(pod))
        for address in given[key]:
            if address in owners:
                raise pod.error("status.podIP", f"{address} is the address of {owners[address]}")
            owners[address] = key
            taken.add(address)
    for pod in pods:
        key = f"{pod.namespace}/{pod.name}"
        earlier = given_before.get(key, ())
        ranges = _node_of(pod, nodes).pod_ranges
        fits = len(earlier) == len(ranges) and all(map(operator.contains, ranges, earlier))
        if not given[key] and fits and taken.isdisjoint(earlier):
            given[key] = earlier
            taken.update(earlier)
    for pod in pods:
        node = _node_of(pod, nodes)
        key = f"{pod.namespace}/{pod.name}"
        addresses = given[key]
        host_network = pod.get("spec.hostNetwork", bool, False)
        if host_network:
            addresses = node.addresses
        elif not addresses:
            if not node.pod_ranges:
                raise pod.error(
                    "status.podIP", f"is not given, and node {node.name} has no podCIDR"
                )
            addresses = tuple(_lowest_free(one, taken, pod) for one in node.pod_ranges)
        yield PodPlan(
            namespace=pod.namespace,
            name=pod.name,
            uid=pod.get("metadata.uid", str) or f"{pod.namespace}-{pod.name}",
            node=node.name,
            service_account=pod.get("spec.serviceAccountName", str) or "default",
            labels=pod.get("metadata.labels", dict, {}),
            host_network=host_network,
            addresses=addresses,
            link=_link(pod.name, key),
            restart=_restart(pod),
            processes=tuple(_processes(pod)),
        )


def _lowest_free(network: Network, taken: set[Address], pod: Object) -> Address:
    for number in range(FIRST_POD, network.num_addresses):
        address = network[number]
        if address not in taken:
            taken.add(address)
            return address
    raise pod.error("status.podIP", f"is not given and {network} is full")


def _finished(pod: Object) -> bool:
    return pod.get("status.phase", str) in ("Succeeded", "Failed")


def _node_of(pod: Object, nodes: Mapping[str, NodePlan]) -> NodePlan:
    name = pod.get("spec.nodeName", str)
    if name is None:
        raise pod.error("spec.nodeName", "is missing: nothing here schedules pods")
    if name not in nodes:
        raise pod.error("spec.nodeName", f"{name!r} is not the name of a Node ({', '.join(nodes)})")
    return nodes[name]


def _pod_ips(pod: Object) -> Iterator[Address]:
    listed = [_address(one, "ip", one.body.get("ip")) for one in pod.items("status.podIPs")]
    single = pod.get("status.podIP", str)
    if not listed and single is not None:
        yield _address(pod, "status.podIP", single)
    yield from listed


def _link(name: str, key: str) -> str:
    """A name for the node's end of a veth: at most 15 bytes (IFNAMSIZ), the same every time."""
    return f"{name[:6]}-{zlib.crc32(key.encode()):08x}"


def _restart(pod: Object) -> str:
    policy = pod.get("spec.restartPolicy", str, "Always")
    if policy not in RESTART_POLICIES:
        raise pod.error("spec.restartPolicy", f"{policy!r} is not one of {RESTART_POLICIES}")
    return str(policy)


def _processes(pod: Object) -> Iterator[ProcessPlan]:
    shared = {
        "POD_NAME": pod.name,
        "POD_NAMESPACE": pod.namespace,
        "NODE_NAME": pod.get("spec.nodeName", str),
        "SERVICE_ACCOUNT": pod.get("spec.serviceAccountName", str) or "default",
        "HOSTNAME": pod.name,
    }
    for number, container in enumerate(pod.items("spec.containers")):
        name = container.get("name", str) or f"container-{number}"
        command = _words(container, "command")
        environment = dict(shared)
        for variable in container.items("env"):
            # References to Secrets and to fields of the Pod have no meaning here.
            key, value = variable.get("name", str), variable.get("value", str)
            if key is not None and value is not None:
                environment[key] = value
        probe = _probe(container)
        if command:
            words = (*command, *_words(container, "args"))
            yield ProcessPlan(name, words, environment, probe=probe)
            continue
        ports = [str(port.get("containerPort", int)) for port in container.items("ports")]
        if ports:
            stand_in = (sys.executable, "-m", "daemonset.local.app", "serve", "--http", *ports)
            yield ProcessPlan(name, stand_in, environment, stand_in=True, probe=probe)


def _words(container: Object, field: str) -> tuple[str, ...]:
    words = container.get(field, list, [])
    for word in words:
        if not isinstance(word, str):
            raise container.error(field, f"should be a list of strings, has {word!r}")
    return tuple(words)


def _probe(container: Object) -> Probe | None:
    """Other kinds of probes (exec, grpc) are passed over: the container then counts as ready."""
    for kind in ("tcpSocket", "httpGet"):
        action = container.part(f"readinessProbe.{kind}")
        if action is None:
            continue
        port = action.body.get("port")
        if isinstance(port, str):
            named = {
                one.get("name", str): one.get("containerPort", int)
                for one in container.items("ports")
            }
            port = named.get(port)
        if not isinstance(port, int) or not 0 < port < 65_536:
            raise action.error("port", f"{action.body.get('port')!r} is not a port")
        return Probe(port, (action.get("path", str) or "/") if kind == "httpGet" else None)
    return None


def _underlay(nodes: Mapping[str, NodePlan]) -> tuple[Address, ...]:
    """One address per family beside the nodes': the lowest of the first node's /24 or /64."""
    taken = {address for node in nodes.values() for address in node.addresses}
    found: dict[int, Address] = {}
    for node in nodes.values():
        for address in node.addresses:
            if address.version not in found:
                prefix = 24 if address.version == 4 else 64
                around = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
                hosts = (around[number] for number in range(1, 255))
                found[address.version] = next(host for host in hosts if host not in taken)
    return tuple(found[version] for version in sorted(found))


def _of_kind(objects: list[Object], kind: str) -> list[Object]:
    chosen = [one for one in objects if one.kind == kind]
    return sorted(chosen, key=lambda one: (one.namespace, one.name))


def _address(owner: Object, field_name: str, text: object) -> Address:
    try:
        return ipaddress.ip_address(str(text))
    except ValueError:
        raise owner.error(field_name, f"has {text!r}, which is not an IP address") from None


def _range(node: Object, text: object) -> Network:
    try:
        network = ipaddress.ip_network(str(text))
    except ValueError:
        raise node.error("spec.podCIDR", f"{text!r} is not a range of addresses") from None
    if network.num_addresses < 4:
        raise node.error("spec.podCIDR", f"{network} has no room for pods")
    return network
