"""The rules by which two captured pods of one node talk past the proxy, once it has said so.

The first packet of a connection between them is queued to ztunnel twice: where it leaves the
client's namespace, and where it enters the server's. Only one that ztunnel let go on both times
passes capture; after that, connection tracking carries it, and no packet of it is looked at again.

Which addresses are worth asking about stands in a set of each pod's own table. The node agent
makes the set, empty, with the capture rules; ztunnel fills it while it is there to answer. Without
its elements everything is captured as ever, so nothing depends on what the other side can do.

A verdict is a mark on the packet, which tells the rules behind the queue where the packet goes. It
is worth nothing where ztunnel did not set it: it is taken off packets before they are queued.
"""

import socket
import struct
from enum import Enum
from typing import Final

from ztunnel.linux import netns
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.nft_tables import Chain, Element, Rule, Set, Table
from ztunnel.linux.nftables import Nftables

TABLE: Final = "ambientd"
QUEUE: Final = 15001
FIRST_OWNER: Final = 15100
"""Nothing is ever sent to the queues from here on: a worker is bound to that of its number for as
long as it lives, by which others see that its connections have somebody who watches them."""

# A verdict, from its highest bit: the tag, the worker's number, the target's. Below them lies what
# routing looks at. The connection is marked with all of it.
TAG: Final = 0x50000000
TAG_MASK: Final = 0xF0000000
_OWNER_SHIFT: Final = 22
_TARGET_SHIFT: Final = 12
OWNERS: Final = 1 << 6
TARGETS: Final = 1 << 10

_FAMILIES: Final = (
    (socket.AF_INET, "neighbours4", "targets4", "ipv4_addr"),
    (socket.AF_INET6, "neighbours6", "targets6", "ipv6_addr"),
)
_BEFORE_NAT: Final = -151  # and behind connection tracking
_BEGINS: Final = (*nft.protocol(socket.IPPROTO_TCP), *nft.begins_connection())


class Queueing(Enum):
    """How a rule queues a packet: by nftables' own statement (NFT_QUEUE), or by the target of
    xtables (NFT_COMPAT), for kernels that were built without it."""

    NATIVE = "queue"
    XTABLES = "NFQUEUE"


def find_queueing() -> Queueing:
    """What this kernel knows, tried in a namespace of its own.

    Raises:
        OSError: neither (the error of the second), or no namespace can be made.
    """
    with netns.create() as namespace, Nftables(namespace) as nftables:
        try:
            nftables.replace(Table(TABLE, direct_chains(1, 1, Queueing.NATIVE), direct_sets()))
        except OSError:
            # Mostly ENOENT; whatever it was, the other form shows whether there is any use in it.
            nftables.replace(Table(TABLE, direct_chains(1, 1, Queueing.XTABLES), direct_sets()))
            return Queueing.XTABLES
        return Queueing.NATIVE


def verdict(owner: int, target: int) -> int:
    """The mark that says "past the proxy, to that target"; target 0 is where it was sent."""
    return TAG | owner << _OWNER_SHIFT | target << _TARGET_SHIFT


def owner_of(mark: int) -> int:
    """The number of the worker that gave this verdict."""
    return mark >> _OWNER_SHIFT & (OWNERS - 1)


def direct_sets() -> tuple[Set, ...]:
    """Addresses that are worth asking about, and targets by number."""
    sets: list[Set] = []
    for _, neighbours, targets, address in _FAMILIES:
        sets.append(Set(neighbours, (address,)))
        sets.append(Set(targets, ("mark",), (address, "inet_service")))
    return tuple(sets)


def direct_chains(
    mark: int, mask: int, queueing: Queueing, *, inbound: bool = True
) -> tuple[Chain, ...]:
    """What queues first packets.

    Args:
        mark, mask: by which ztunnel's own packets are known.
        queueing: what this kernel knows.
        inbound: whether the pod's incoming connections are captured.
    """
    queue = nft.queue(QUEUE, native=queueing is Queueing.NATIVE)
    others = nft.mark(mark, mask, negated=True)
    forged = Rule(
        (*others, *nft.mark(TAG, TAG_MASK), nft.counter(), *nft.set_mark(0)),
        "a verdict that ztunnel did not give",
    )
    asked = tuple(
        Rule(
            (
                *others,
                *nft.output_interface("lo", negated=True),
                *nft.in_set(neighbours, family),
                nft.counter(),
                queue,
            ),
            "to a pod of this node: ztunnel decides",
        )
        for family, neighbours, _, _ in _FAMILIES
    )
    chains = [
        Chain("leaving", (forged, *asked)),
        Chain("direct-out", (_first("leaving"),), "output", "filter", _BEFORE_NAT),
    ]
    if inbound:
        arriving = tuple(
            Rule(
                (
                    *nft.input_interface("lo", negated=True),
                    *nft.source_in_set(neighbours, family),
                    nft.counter(),
                    queue,
                ),
                "from a pod of this node: ztunnel knows whether it let it go",
            )
            for family, neighbours, _, _ in _FAMILIES
        )
        chains += [
            Chain("arriving", (forged, *arriving)),
            Chain("direct-in", (_first("arriving"),), "prerouting", "filter", _BEFORE_NAT),
        ]
    return tuple(chains)


def _first(chain: str) -> Rule:
    # All that every other packet has to do with it.
    return Rule((*_BEGINS, nft.jump(chain)), "first packets of connections")


def outbound_rules() -> tuple[Rule, ...]:
    """For the beginning of the chain that redirects what the pod sends."""
    passed = nft.mark(TAG, TAG_MASK)
    straight = nft.mark(TAG, TAG_MASK | (TARGETS - 1) << _TARGET_SHIFT)
    remembered = nft.connection_mark_from_packet()
    return (
        *(
            Rule(
                (
                    *_BEGINS,
                    *passed,
                    nft.counter(),
                    *nft.destination_nat_by_mark(targets, family, remembered),
                ),
                "past the proxy, to the pod behind a service",
            )
            for family, _, targets, _ in _FAMILIES
        ),
        Rule((*_BEGINS, *straight, nft.counter(), *remembered, nft.accept()), "past the proxy"),
    )


def inbound_rules() -> tuple[Rule, ...]:
    """For the beginning of the chain that redirects what comes in."""
    passed = nft.mark(TAG, TAG_MASK)
    remembered = nft.connection_mark_from_packet()
    return (Rule((*_BEGINS, *passed, nft.counter(), *remembered, nft.accept()), "past the proxy"),)


def neighbour_element(address: str) -> tuple[str, Element]:
    """The name of a set, and the element that stands for an address in it."""
    family, neighbours = _of(address)
    return neighbours, Element(socket.inet_pton(family, address))


def target_element(mark: int, address: str, port: int) -> tuple[str, Element]:
    """The name of a map, and the element that leads packets with that verdict there."""
    family, neighbours = _of(address)
    key = struct.pack("=I", mark)
    where = socket.inet_pton(family, address) + struct.pack("!Hxx", port)
    return neighbours.replace("neighbours", "targets"), Element(key, where)


def neighbour_sets() -> tuple[str, ...]:
    """The names of the sets of addresses."""
    return tuple(neighbours for _, neighbours, _, _ in _FAMILIES)


def neighbour_address(element: Element) -> str:
    """The address that an element stands for."""
    family = socket.AF_INET if len(element.key) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, element.key)


def _of(address: str) -> tuple[int, str]:
    family, neighbours, _, _ = _FAMILIES[":" in address]
    return family, neighbours
