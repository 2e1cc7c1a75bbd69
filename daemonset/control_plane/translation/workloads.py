"""Pods and other endpoints -> workloads of the workload API."""

from __future__ import annotations

import ipaddress

from google.protobuf.wrappers_pb2 import BoolValue

from daemonset.control_plane.objects.meta import ObjectMeta
from daemonset.control_plane.objects.node import Node
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.workload_entry import EntrySpec, WorkloadEntry
from daemonset.control_plane.translation.endpoints import (
    ServicePorts,
    entry_meta,
    port_list,
)
from daemonset.control_plane.translation.enrolment import is_captured, speaks_hbone_itself
from daemonset.control_plane.translation.gateway_address import packed
from daemonset.control_plane.translation.joins import JOIN
from daemonset.control_plane.translation.naming import (
    WORKLOAD_NAME,
    canonical_name,
    canonical_revision,
    workload_name,
)
from daemonset.control_plane.translation.networks import Networks
from daemonset.control_plane.translation.resource import Resource, workload_resource
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.waypoints import Binding
from ztunnel.proto.workload_pb2 import (
    ApplicationTunnel,
    Locality,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
    WorkloadType,
)

_REGISTRATION_GROUP = "istio.io/autoRegistrationGroup"


class WorkloadWriter:
    """Writes workloads of one mesh."""

    def __init__(self, objects: ObjectSet, settings: MeshSettings, networks: Networks) -> None:
        self._settings = settings
        self._networks = networks
        self._network = networks.own
        self._localities = {name: _locality(node) for name, node in objects.nodes.items()}
        self._trust_domain = (
            "" if settings.trust_domain == "cluster.local" else settings.trust_domain
        )

    def locality(self, node: str) -> Locality | None:
        """Where a node is, if its labels say so."""
        return self._localities.get(node)

    def pod(
        self,
        pod: Pod,
        services: ServicePorts,
        policies: list[str],
        waypoint: Binding | None,
        tunnel: ApplicationTunnel | None,
        *,
        captured: bool,
        join: bool | None = None,
    ) -> Resource:
        """A pod that has an address. ``captured``: it is reached through HBONE by its node's
        proxy; a pod may also bring its own tunnel end. ``tunnel``: how the node's proxy hands over
        connections, for a waypoint that is captured itself. ``join``: see ``joins``."""
        meta = pod.meta
        labels = meta.labels
        workload = workload_name(meta)
        native = speaks_hbone_itself(labels)
        ready = pod.ready and not meta.deleting
        message = Workload(
            uid=f"{self._settings.cluster_id}//Pod/{meta.namespace}/{meta.name}",
            name=meta.name,
            namespace=meta.namespace,
            addresses=[packed(address) for address in pod.ips],
            network=self._network,
            tunnel_protocol=TunnelProtocol.HBONE
            if native or captured or is_captured(meta)
            else TunnelProtocol.NONE,
            native_tunnel=native,
            trust_domain=self._trust_domain,
            service_account=pod.service_account,
            node=pod.node,
            canonical_name=canonical_name(labels, workload),
            canonical_revision=canonical_revision(labels),
            workload_type=WorkloadType.POD,
            workload_name=workload,
            authorization_policies=policies,
            status=WorkloadStatus.HEALTHY if ready else WorkloadStatus.UNHEALTHY,
            cluster_id=self._settings.cluster_id,
            services={name: port_list(services[name]) for name in services},
            network_mode=NetworkMode.HOST_NETWORK if pod.host_network else NetworkMode.STANDARD,
        )
        locality = self.locality(pod.node)
        if locality is not None:
            message.locality.CopyFrom(locality)
        if waypoint is not None:
            message.waypoint.CopyFrom(waypoint.address)
        if tunnel is not None:
            message.application_tunnel.CopyFrom(tunnel)
        if join is not None:
            said = message.extensions.add(name=JOIN)
            said.config.Pack(BoolValue(value=join))
        # Host addresses belong to many: nobody must find one pod by them.
        aliases = [] if pod.host_network else [f"{self._network}/{ip}" for ip in pod.ips]
        return workload_resource(message, aliases)

    def workload_entry(
        self,
        entry: WorkloadEntry,
        services: ServicePorts,
        policies: list[str],
        waypoint: Binding | None,
    ) -> Resource:
        meta = entry_meta(entry)
        uid = (
            f"{self._settings.cluster_id}/networking.istio.io/WorkloadEntry/"
            f"{meta.namespace}/{meta.name}"
        )
        name = meta.annotations.get(_REGISTRATION_GROUP) or meta.labels.get(WORKLOAD_NAME)
        message = self._entry(uid, meta, name or meta.name, entry.spec)
        return self._finish_entry(message, entry.spec, services, policies, waypoint)

    def inline_endpoint(
        self,
        meta: ObjectMeta,
        spec: EntrySpec,
        services: ServicePorts,
        policies: list[str],
        waypoint: Binding | None,
    ) -> Resource:
        """An endpoint of the ServiceEntry ``meta``, or a host that stands for itself."""
        place = spec.ip or spec.hostname or f"network/{spec.network}"
        kind = "networking.istio.io/ServiceEntry"
        uid = f"{self._settings.cluster_id}/{kind}/{meta.namespace}/{meta.name}/{place}"
        message = self._entry(uid, meta, meta.name, spec)
        return self._finish_entry(message, spec, services, policies, waypoint)

    def _entry(self, uid: str, meta: ObjectMeta, workload: str, spec: EntrySpec) -> Workload:
        native = speaks_hbone_itself(meta.labels)
        message = Workload(
            uid=uid,
            name=meta.name,
            namespace=meta.namespace,
            addresses=[packed(spec.ip)] if spec.ip else [],
            hostname=spec.hostname,
            network=spec.network or self._network,
            tunnel_protocol=TunnelProtocol.HBONE
            if native or is_captured(meta)
            else TunnelProtocol.NONE,
            native_tunnel=native,
            trust_domain=self._trust_domain,
            service_account=spec.service_account,
            canonical_name=canonical_name(meta.labels, workload),
            canonical_revision=canonical_revision(meta.labels),
            workload_type=WorkloadType.POD,
            workload_name=workload,
            status=WorkloadStatus.HEALTHY,
            cluster_id=self._settings.cluster_id,
        )
        gateway = self._networks.gateway_to(message.network)
        if gateway is not None:
            message.network_gateway.CopyFrom(gateway)
        region, zone, subzone = ([*spec.locality.split("/", 2), "", ""])[:3]
        if region:
            message.locality.CopyFrom(Locality(region=region, zone=zone, subzone=subzone))
        if spec.weight:
            message.capacity.value = spec.weight
        return message

    def _finish_entry(
        self,
        message: Workload,
        spec: EntrySpec,
        services: ServicePorts,
        policies: list[str],
        waypoint: Binding | None,
    ) -> Resource:
        if waypoint is not None:
            message.waypoint.CopyFrom(waypoint.address)
        message.authorization_policies.extend(policies)
        for name, pairs in services.items():
            message.services[name].CopyFrom(port_list(pairs))
        aliases = [f"{message.network}/{spec.ip}"] if spec.ip else []
        return workload_resource(message, aliases)

    def slice_endpoint(
        self, namespace: str, slice_name: str, address: str, ready: bool, services: ServicePorts
    ) -> Resource:
        """An address of an EndpointSlice that is no pod's. Marked as host network, so that it
        never hides what else is known by that address."""
        uid = (
            f"{self._settings.cluster_id}/discovery.k8s.io/EndpointSlice/"
            f"{namespace}/{slice_name}/{address}"
        )
        message = Workload(
            uid=uid,
            name=slice_name,
            namespace=namespace,
            addresses=[ipaddress.ip_address(address).packed],
            network=self._network,
            trust_domain=self._trust_domain,
            status=WorkloadStatus.HEALTHY if ready else WorkloadStatus.UNHEALTHY,
            cluster_id=self._settings.cluster_id,
            network_mode=NetworkMode.HOST_NETWORK,
            services={name: port_list(pairs) for name, pairs in services.items()},
        )
        return workload_resource(message, ())


def _locality(node: Node) -> Locality | None:
    labels = node.meta.labels
    region = labels.get("topology.kubernetes.io/region", "")
    zone = labels.get("topology.kubernetes.io/zone", "")
    subzone = labels.get("topology.istio.io/subzone", "")
    if not (region or zone or subzone):
        return None
    return Locality(region=region, zone=zone, subzone=subzone)
