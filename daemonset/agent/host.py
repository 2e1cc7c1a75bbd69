"""The node's side: probes reach captured pods, and nothing else does in their guise.

The kubelet probes in plain text and has no identity, so what a process of the node itself sends to
a pod of the node is let through. Its source address does not tell: the node's address on the pod
network is also that of forwarded traffic (NodePort). What does is that the packet belongs to a
socket of the node's own namespace, which the kernel knows where the packet leaves. Such connections
get a link-local source address that nobody else has, and the pods' rules let that address in; who
sends under that address from outside the node, or from a pod, is not heard.
"""

import socket
from collections.abc import Collection, Iterable

from daemonset.agent.capture import CaptureError, explained
from daemonset.agent.capture_rules import PROBE_V4, PROBE_V6
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import (
    Chain,
    Element,
    Rule,
    Set,
    Table,
    address_bytes,
    differences,
)
from ztunnel.linux.nftables import Nftables

TABLE = "ambientd-host"
SET_V4, SET_V6 = "probed-v4", "probed-v6"

# One before the place where others rewrite sources (100): the first translation is the one that
# counts, and a masquerade by the network plugin would hide what this is about.
_BEFORE_SNAT = 99
_RAW = -300


def host_table() -> Table:
    """The rules, and sets that are still empty."""
    rules = tuple(
        Rule(
            (
                *nft.protocol(socket.IPPROTO_TCP),
                *nft.sent_by_a_process(),
                *nft.in_set(name, family),
                nft.counter(),
                *nft.source_nat(address),
            ),
            "a process of this node connects to a captured pod of it",
        )
        for family, name, address in (
            (socket.AF_INET, SET_V4, PROBE_V4),
            (socket.AF_INET6, SET_V6, PROBE_V6),
        )
    )
    guises = tuple(
        Rule(
            (*nft.source(address), nft.counter(), nft.drop()),
            "only this node itself may use this address, and it does not receive from itself",
        )
        for address in (PROBE_V4, PROBE_V6)
    )
    return Table(
        TABLE,
        (
            Chain("probes", rules, "postrouting", "nat", _BEFORE_SNAT),
            Chain("guises", guises, "prerouting", "filter", _RAW),
        ),
        (Set(SET_V4, ("ipv4_addr",)), Set(SET_V6, ("ipv6_addr",))),
    )


def _address(key: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(key) == 16 else socket.AF_INET, key)


class HostProbes:
    """The addresses that the node may probe, each with the uid of the pod that has it now.

    Synchronous; every method raises CaptureError.
    """

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        """`namespace` is the node's (default: the calling thread's own)."""
        self._namespace = namespace
        self._owners: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """Address to uid, as it is meant to be."""
        return dict(self._owners)

    def start(self) -> None:
        """Put the rules in place.

        Addresses that an agent before this one has left stay, as those of the pods that they were
        for: probes would fail until each pod was looked at anew, and pods be restarted for it.
        Addresses change hands, so that `keep_only` must follow once all pods are known.
        """
        try:
            with Nftables(self._namespace) as nftables:
                found = nftables.read(TABLE)
        except OSError as error:
            raise CaptureError(explained("cannot read the node's rules", error)) from error
        for entry in found.sets if found is not None else ():
            if entry.name in (SET_V4, SET_V6):
                self._owners |= {_address(each.key): each.comment for each in entry.elements}
        self._replace("cannot set the node's rules up")

    def keep_only(self, uids: Collection[str]) -> None:
        """Take out the addresses of all other pods."""
        self._change({address for address, uid in self._owners.items() if uid not in uids}, {})

    def add(self, uid: str, addresses: Iterable[str]) -> None:
        """These are the pod's addresses now: new ones are added, others of this uid taken out.

        An address that another uid had is this one's from now on: addresses are used again.
        """
        wanted = set(addresses)
        gone = {address for address, owner in self._owners.items() if owner == uid} - wanted
        new = {address for address in wanted if self._owners.get(address) != uid}
        self._change(gone | (new & self._owners.keys()), dict.fromkeys(new, uid))

    def remove(self, uid: str) -> None:
        """Take out the addresses that are still this pod's."""
        self._change({address for address, owner in self._owners.items() if owner == uid}, {})

    def repair(self) -> list[str]:
        """Compare rules and sets with what they should be, and put them right.

        Returns what was wrong, in words.
        """
        try:
            with Nftables(self._namespace) as nftables:
                found = nftables.read(TABLE)
        except OSError as error:
            raise CaptureError(explained("cannot verify the node's rules", error)) from error
        wrong = differences(host_table(), found)
        if found is not None and not wrong:
            held = {(e.key, e.comment) for entry in found.sets for e in entry.elements}
            meant = {(address_bytes(a), uid) for a, uid in self._owners.items()}
            if held != meant:
                wrong.append(f"{len(held ^ meant)} probed addresses are not as they should be")
        if wrong:
            self._replace("cannot repair the node's rules")
        return wrong

    def stop(self) -> None:
        """Remove the rules: no process of the node reaches captured pods in plain text any more."""
        try:
            with Nftables(self._namespace) as nftables:
                nftables.delete(TABLE)
        except OSError as error:
            raise CaptureError(explained("cannot remove the node's rules", error)) from error

    def is_present(self) -> bool:
        """Whether the rules are there."""
        try:
            with Nftables(self._namespace) as nftables:
                return TABLE in nftables.table_names()
        except OSError as error:
            raise CaptureError(explained("cannot ask for the node's rules", error)) from error

    def _replace(self, what: str) -> None:
        table = host_table()
        sets = tuple(
            Set(entry.name, entry.key, elements=tuple(self._elements(entry.name, self._owners)))
            for entry in table.sets
        )
        try:
            with Nftables(self._namespace) as nftables:
                nftables.replace(Table(TABLE, table.chains, sets))
        except OSError as error:
            raise CaptureError(explained(what, error)) from error

    def _change(self, gone: set[str], new: dict[str, str]) -> None:
        if not gone and not new:
            return
        old = {address: self._owners[address] for address in gone}
        try:
            with Nftables(self._namespace) as nftables:
                for name in (SET_V4, SET_V6):
                    nftables.replace_elements(
                        TABLE, name, self._elements(name, old), self._elements(name, new)
                    )
        except OSError as error:
            # The rules are not there, or not ours any more: put all of it right at once.
            self._owners = {a: u for a, u in self._owners.items() if a not in gone} | new
            try:
                self._replace("cannot change the probed addresses")
            except CaptureError as worse:
                raise worse from error
            return
        self._owners = {a: u for a, u in self._owners.items() if a not in gone} | new

    @staticmethod
    def _elements(name: str, owners: dict[str, str]) -> list[Element]:
        return [
            Element(address_bytes(address), comment=uid)
            for address, uid in owners.items()
            if (":" in address) == (name == SET_V6)
        ]
