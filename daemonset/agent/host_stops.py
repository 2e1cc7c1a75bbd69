"""Stops the traffic of addresses on the node, where a pod's own namespace cannot be entered.

Nothing from these addresses and nothing to them passes the node's network stack, probes of the
kubelet included, as with a pod that is stopped in its namespace. Senders are recognised where a
packet comes in, before connections are tracked and whatever anybody translates; receivers where it
leaves, after all translation, whether it was forwarded or sent by the node itself. What a bridge
switches itself does not come by there, and is recognised on the bridge.

Out of reach is what does not pass the kernel's own forwarding: interfaces that pods have from the
network card or share with the node (SR-IOV, macvlan, ipvlan), switches in eBPF or Open vSwitch, and
frames with a VLAN tag; other addresses that the pod has, or gives itself, are unknown here.

Each entry lapses after a while unless it is renewed: should an agent be gone for good without
having tidied up, an address is usable again for the pod that has it next.
"""

import logging
import socket
from collections.abc import Mapping

from daemonset.agent.capture import CaptureError, explained
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import (
    BRIDGE,
    INET,
    Chain,
    Element,
    Rule,
    Set,
    Table,
    address_bytes,
    differences,
)
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing

logger = logging.getLogger("daemonset.agent")

TABLE = "ambientd-host-stop"
LEASE = 1800.0
"""Seconds that entries last without an agent: longer than an agent takes to be replaced, image and
all."""

_SETS = ((socket.AF_INET, "stopped-v4", "ipv4_addr"), (socket.AF_INET6, "stopped-v6", "ipv6_addr"))
_RAW = -300


def stop_tables(stopped: Mapping[str, str]) -> tuple[Table, Table]:
    """One for what passes the node, one for what passes its bridges."""
    sets = tuple(
        Set(
            name,
            (kind,),
            elements=tuple(
                Element(address_bytes(address), comment=uid, timeout=int(LEASE * 1000))
                for address, uid in stopped.items()
                if (":" in address) == (family == socket.AF_INET6)
            ),
            timeouts=True,
        )
        for family, name, kind in _SETS
    )

    def rules(*, senders: bool, bridged: bool) -> tuple[Rule, ...]:
        match = nft.source_in_set if senders else nft.in_set
        return tuple(
            Rule(
                (*match(name, family, bridged=bridged), nft.counter(), nft.drop()),
                f"{'from' if senders else 'to'} a pod of the mesh that cannot be captured",
            )
            for family, name, _ in _SETS
        )

    routed = (
        Chain("from", rules(senders=True, bridged=False), "prerouting", "filter", _RAW),
        Chain("to", rules(senders=False, bridged=False), "postrouting", "filter", _RAW),
    )
    both = rules(senders=True, bridged=True) + rules(senders=False, bridged=True)
    bridged = (Chain("switched", both, "prerouting", "filter", _RAW),)
    return Table(TABLE, routed, sets, INET), Table(TABLE, bridged, sets, BRIDGE)


class HostStops:
    """The rules on the node. There are none as long as nothing is stopped.

    Synchronous; every method raises CaptureError.
    """

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        """`namespace` is the node's (default: the calling thread's own)."""
        self._namespace = namespace

    def own_addresses(self) -> set[str]:
        """Those of the node, and of the namespace that the agent itself runs in."""
        found = set()
        try:
            for namespace in (self._namespace, None):
                with Routing(namespace) as routing:
                    found |= routing.addresses()
        except OSError as error:
            raise CaptureError(explained("cannot ask for the node's addresses", error)) from error
        return found

    def uids(self) -> set[str]:
        """Whose addresses are stopped, by this agent or one before it."""
        try:
            with Nftables(self._namespace) as nftables:
                found = nftables.read(TABLE)
        except OSError as error:
            raise CaptureError(explained("cannot read what the node stops", error)) from error
        sets = found.sets if found is not None else ()
        return {element.comment for entry in sets for element in entry.elements}

    def write(self, stopped: Mapping[str, str]) -> str:
        """Stop these addresses, for `LEASE` seconds, and no others.

        Returns what of it this kernel cannot do, in words; "" where it can do all.
        """
        if not stopped:
            self.remove()
            return ""
        routed, bridged = stop_tables(stopped)
        try:
            with Nftables(self._namespace) as nftables:
                nftables.replace(routed)
                try:
                    nftables.replace(bridged)
                except OSError as error:
                    return explained("what a bridge of the node switches is not stopped", error)
        except OSError as error:
            raise CaptureError(explained("cannot be stopped on the node", error)) from error
        return ""

    def wrong(self, stopped: Mapping[str, str]) -> list[str]:
        """What is not as `write` has left it, in words."""
        wrong = []
        try:
            with Nftables(self._namespace) as nftables:
                for table in stop_tables(stopped) if stopped else ():
                    found = nftables.read(table.name, table.family)
                    differing = differences(table, found)
                    if not differing and found is not None and _held(found) != _held(table):
                        differing = [f"addresses of table {TABLE} are not as they should be"]
                    wrong += differing
                if not stopped and TABLE in nftables.table_names():
                    wrong.append(f"table {TABLE} is not to be there")
        except OSError as error:
            raise CaptureError(explained("cannot verify what the node stops", error)) from error
        return wrong

    def remove(self) -> None:
        """Let everything pass."""
        try:
            with Nftables(self._namespace) as nftables:
                for family in (INET, BRIDGE):
                    if TABLE in nftables.table_names(family):
                        nftables.delete(TABLE, family=family)
        except OSError as error:
            raise CaptureError(explained("cannot lift the stop on the node", error)) from error

    def is_present(self) -> bool:
        """Whether anything of it is there."""
        try:
            with Nftables(self._namespace) as nftables:
                return any(TABLE in nftables.table_names(family) for family in (INET, BRIDGE))
        except OSError as error:
            raise CaptureError(explained("cannot ask for what the node stops", error)) from error


def _held(table: Table) -> set[tuple[bytes, str]]:
    return {(element.key, element.comment) for entry in table.sets for element in entry.elements}
