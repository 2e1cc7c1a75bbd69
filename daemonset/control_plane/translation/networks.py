"""Which network the mesh is in, and the gateways through which it reaches others.

The network of everything here is the label ``topology.istio.io/network`` of the root namespace. A
Gateway of class ``istio-remote`` with that label stands for the gateway of another network: it is
published as a workload of its own, and whatever lives in that network points to it.
"""

from __future__ import annotations

from daemonset.control_plane.objects.addresses import canonical_ip
from daemonset.control_plane.objects.gateway import Gateway
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.section import EMPTY
from daemonset.control_plane.translation.gateway_address import (
    gateway_by_hostname,
    gateway_by_ip,
    packed,
)
from daemonset.control_plane.translation.resource import Resource, workload_resource
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.workload_pb2 import GatewayAddress, Workload

NETWORK = "topology.istio.io/network"
REMOTE_CLASS = "istio-remote"
SERVICE_ACCOUNT = "gateway.istio.io/service-account"


class Networks:
    """The networks of one mesh."""

    def __init__(self, objects: ObjectSet, settings: MeshSettings) -> None:
        root = objects.namespaces.get(settings.root_namespace)
        labels = root.meta.labels if root is not None else EMPTY
        self.own = labels.get(NETWORK, "")
        """The network of pods and services; "" where none is named."""
        self._trust_domain = (
            "" if settings.trust_domain == "cluster.local" else settings.trust_domain
        )
        self._cluster_id = settings.cluster_id
        self._gateways: dict[str, list[tuple[Gateway, str, int]]] = {}
        for _, gateway in sorted(objects.gateways.items()):
            network = gateway.meta.labels.get(NETWORK, "")
            port = next((one.port for one in gateway.listeners if one.protocol == "HBONE"), 0)
            if network and port and gateway.class_name == REMOTE_CLASS:
                for address in (*gateway.hostnames, *gateway.ips):
                    self._gateways.setdefault(network, []).append((gateway, address, port))

    def gateway_to(self, network: str) -> GatewayAddress | None:
        """How to reach another network: its first gateway, by name; None for the own network, and
        where there is none."""
        if network == self.own or network not in self._gateways:
            return None
        gateway, address, port = self._gateways[network][0]
        ip = canonical_ip(address)
        if ip is None:
            return gateway_by_hostname(gateway.meta.namespace, address, port)
        return gateway_by_ip(network, ip, port)

    def resources(self) -> list[Resource]:
        """The gateways themselves, so that a proxy knows whom to expect there."""
        return [
            self._encode(network, *found)
            for network, gateways in self._gateways.items()
            for found in gateways
        ]

    def _encode(self, network: str, gateway: Gateway, address: str, port: int) -> Resource:
        meta = gateway.meta
        ip = canonical_ip(address)
        message = Workload(
            uid=f"NetworkGateway/{network}/{address}/{port}",
            name=meta.name,
            namespace=meta.namespace,
            service_account=meta.annotations.get(SERVICE_ACCOUNT)
            or f"{meta.name}-{gateway.class_name}",
            network=network,
            trust_domain=self._trust_domain,
            cluster_id=self._cluster_id,
            addresses=[packed(ip)] if ip is not None else [],
            hostname="" if ip is not None else address,
        )
        return workload_resource(message, [f"{network}/{ip}"] if ip is not None else [])
