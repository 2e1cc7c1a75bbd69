"""Messages that name a place: networks, addresses, gateways."""

from __future__ import annotations

import ipaddress

from daemonset.control_plane.objects.addresses import IPNetwork
from ztunnel.proto.workload_pb2 import GatewayAddress, NetworkAddress

HBONE_PORT = 15008


def packed(address: str) -> bytes:
    """4 or 16 bytes of a canonical address."""
    return ipaddress.ip_address(address).packed


def network_address(network: str, block: IPNetwork) -> NetworkAddress:
    """An address, or a block with its prefix length."""
    message = NetworkAddress(network=network, address=block.network_address.packed)
    if block.prefixlen < block.max_prefixlen:
        message.length = block.prefixlen
    return message


def gateway_by_hostname(namespace: str, hostname: str, port: int = HBONE_PORT) -> GatewayAddress:
    message = GatewayAddress(hbone_mtls_port=port)
    message.hostname.namespace = namespace
    message.hostname.hostname = hostname
    return message


def gateway_by_ip(network: str, address: str, port: int = HBONE_PORT) -> GatewayAddress:
    message = GatewayAddress(hbone_mtls_port=port)
    message.address.network = network
    message.address.address = packed(address)
    return message
