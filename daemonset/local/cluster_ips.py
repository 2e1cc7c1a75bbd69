"""ClusterIPs: a small kube-proxy, one nftables table per node, replaced in one transaction."""

import socket
from collections.abc import Iterable, Iterator

from daemonset.local.kube_services import VirtualAddress
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables

TABLE = "ambient-services"

_TO_ITSELF = 0x4000
"""Mark of a connection that a service sends back to the pod that opened it (kube-proxy's bit)."""

_NUMBERS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP}


def service_table(addresses: Iterable[VirtualAddress]) -> Table:
    """Pure: the table that sends each virtual address to one of its endpoints, chosen at random.

    An address without endpoints gets no rule: it is routed towards the way out of the mesh, where
    there is none, and the caller is told at once that it is unreachable.
    """
    entries: list[Rule] = []
    chains: list[Chain] = []
    for number, one in enumerate(address for address in addresses if address.endpoints):
        name = f"service-{number}"
        match = (
            *nft.destination(one.address),
            *nft.protocol(_NUMBERS[one.protocol]),
            *nft.destination_port(one.port),
        )
        entries.append(Rule((*match, nft.goto(name)), f"{one.service}:{one.port}"))
        chains.append(Chain(name, tuple(_endpoint_rules(name, one))))
        chains.extend(_endpoint_chains(name, one))
    to_itself = nft.mark(_TO_ITSELF, _TO_ITSELF)
    return Table(
        TABLE,
        (
            *chains,
            Chain("prerouting", tuple(entries), "prerouting", "nat", -100),
            Chain("output", tuple(entries), "output", "nat", -100),
            Chain(
                "postrouting",
                (Rule((*to_itself, nft.masquerade()), "a pod that reached itself"),),
                "postrouting",
                "nat",
                100,
            ),
        ),
    )


def _endpoint_rules(name: str, one: VirtualAddress) -> Iterator[Rule]:
    """Of N endpoints the first is taken once in N times, the next once in N-1 of the rest…"""
    count = len(one.endpoints)
    for position in range(count):
        left = count - position
        choice = nft.random_choice(left, 0) if left > 1 else ()
        yield Rule((*choice, nft.goto(f"{name}-{position}")))


def _endpoint_chains(name: str, one: VirtualAddress) -> Iterator[Chain]:
    for position, (address, port) in enumerate(one.endpoints):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        itself = Rule((*nft.source(address), *nft.set_mark(_TO_ITSELF)))
        send = (
            *nft.family(family),
            *nft.protocol(_NUMBERS[one.protocol]),
            *nft.destination_nat(address, port),
        )
        yield Chain(f"{name}-{position}", (itself, Rule(send, f"{address} {port}")))


def install(node: NetworkNamespace, table: Table) -> None:
    """Put the table in force on a node. Raises ztunnel.linux.netlink.NetlinkError."""
    with Nftables(node) as nftables:
        nftables.replace(table)
