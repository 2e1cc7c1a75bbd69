"""The names that pods ask for, as the mesh state and this machine's resolv.conf have them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ztunnel.config.model import ProxyMode
from ztunnel.dns.lookup import BOTH_FAMILIES, EndpointRecord, Family, ServiceRecord
from ztunnel.dns.names import Labels
from ztunnel.dns.resolv_conf import ResolvConf, parse_resolv_conf
from ztunnel.dns.resolver import Resolver
from ztunnel.mesh.service import HealthPolicy, IPFamilies, Service, Visibility
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import WorkloadStatus
from ztunnel.proxy.context import Context

RESOLV_CONF: Final = Path("/etc/resolv.conf")

_FAMILIES: Final = {
    IPFamilies.AUTOMATIC: BOTH_FAMILIES,
    IPFamilies.IPV4_ONLY: frozenset({Family.IPV4}),
    IPFamilies.IPV6_ONLY: frozenset({Family.IPV6}),
    IPFamilies.DUAL: BOTH_FAMILIES,
}


class MeshLookup:
    """The mesh state as DNS reads it."""

    def __init__(self, state: MeshState) -> None:
        self._state = state

    def services_named(self, hostname: str) -> Iterable[ServiceRecord]:
        """Every service of that name, in any namespace."""
        return [_record(service) for service in self._state.services_by_hostname(hostname)]

    def endpoints_of(self, service: ServiceRecord) -> Iterable[EndpointRecord]:
        """The endpoints of a headless service that clients may be sent to."""
        key = f"{service.namespace}/{service.hostname}"
        known = self._state.service(key)
        anyone = known is not None and known.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
        return [
            EndpointRecord(workload.name, workload.network, workload.addresses)
            for workload in self._state.endpoints(key)
            if anyone or workload.status is WorkloadStatus.HEALTHY
        ]


def _record(service: Service) -> ServiceRecord:
    return ServiceRecord(
        service.hostname,
        service.namespace,
        tuple((vip.network, vip.address) for vip in service.vips),
        _FAMILIES[service.ip_families],
        service.canonical,
        service.visibility is Visibility.NAMESPACE,
    )


def make_resolver(context: Context) -> Resolver:
    """Answers from the mesh as `context` knows it."""
    config = context.config
    return Resolver(
        MeshLookup(context.state),
        config.node.cluster_domain,
        config.dns.preferred_service_namespace or "",
        config.sockets.ipv6,
        context.rng,
    )


def search_domains(context: Context) -> tuple[Labels, ...] | None:
    """Those of our own resolv.conf if it is the workload's too; None: what the kubelet writes.

    A node's proxy does not know each pod's search domains.
    """
    if context.config.mode is ProxyMode.DEDICATED:
        return read_resolv_conf().search
    return None


def read_resolv_conf() -> ResolvConf:
    """As it is now."""
    try:
        text = RESOLV_CONF.read_text(errors="replace")
    except FileNotFoundError:
        text = ""  # then only the mesh's own names resolve
    return parse_resolv_conf(text)
