"""What the rules of a pod ask its gate about, and where the gate's verdicts lead: their sets."""

import errno
import logging
from typing import Final

from ztunnel.kernel import direct_rules
from ztunnel.linux.nft_tables import Element
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.sockets import SocketAddress
from ztunnel.proxy.local_pod import LocalPod

log = logging.getLogger("ztunnel.proxy")

_PATIENT: Final = 30  # ticks at most between attempts at a pod whose rules have no room for us


class GateRules:
    """The sets of one pod (see `kernel.direct_rules`).

    Args:
        owner: the number of the gate.

    Attributes:
        ask: the rules ask the gate. They do not any more when the pod is about to leave the mesh,
            while ztunnel still serves it.
    """

    def __init__(self, pod: LocalPod, owner: int) -> None:
        self.ask = False
        self._pod = pod
        self._owner = owner
        self._targets: dict[SocketAddress, int] = {}  # numbers of targets behind services
        self._filled: frozenset[str] = frozenset()
        self._generation = -1
        self._pause = self._next_pause = 0  # ticks without an attempt to fill the sets

    def _fill(self, addresses: frozenset[str]) -> None:
        """Has first packets to and from these addresses queued, and no others. Raises OSError."""
        with Nftables(self._pod.namespace) as nftables:
            generation = nftables.generation()
            if generation != self._generation:
                # Somebody has changed the rules; perhaps they are new, and the sets empty.
                self._targets.clear()
                self._filled = frozenset(
                    direct_rules.neighbour_address(element)
                    for name in direct_rules.neighbour_sets()
                    for element in nftables.elements(direct_rules.TABLE, name)
                )
            for name in direct_rules.neighbour_sets():
                old = _elements(name, self._filled - addresses)
                new = _elements(name, addresses - self._filled)
                nftables.replace_elements(direct_rules.TABLE, name, old, new)
            self._generation = nftables.generation()
        self._filled = addresses

    def keep_filled(self, addresses: frozenset[str]) -> None:
        """Every second: has first packets to and from these addresses queued, and no others.
        Where that is not possible connections are captured as ever."""
        if self._pause:
            self._pause -= 1
            return
        try:
            self._fill(addresses)
        except OSError as error:
            self.ask = False
            # ENOENT: another node agent's rules, or the pod is not captured yet.
            self._next_pause = min(2 * self._next_pause + 1, _PATIENT)
            self._pause = self._next_pause
            log.debug("pod %s: nothing goes past the proxy: %s", self._pod, error)
        else:
            self.ask = True
            self._next_pause = 0

    def rest(self, addresses: frozenset[str]) -> bool:
        """Whether there is nothing to be done about these addresses before the next tick."""
        return self._filled == addresses if self.ask else self._pause > 0

    def changed(self) -> None:
        """The next attempt to fill the sets may succeed: it is not put off."""
        self._pause = 0

    def mark_for(self, target: SocketAddress) -> int:
        """The mark that leads a packet to `target`. Raises OSError."""
        mark = self._targets.get(target)
        if mark is None:
            if len(self._targets) + 1 >= direct_rules.TARGETS:
                raise OSError(errno.ENOSPC, "no number is left for another target")
            mark = direct_rules.verdict(self._owner, len(self._targets) + 1)
            name, element = direct_rules.target_element(mark, *target)
            with Nftables(self._pod.namespace) as nftables:
                changed = nftables.generation() != self._generation
                nftables.replace_elements(direct_rules.TABLE, name, (), (element,))
                if not changed:
                    self._generation = nftables.generation()
            self._targets[target] = mark
        return mark

    def empty(self) -> None:
        """Nothing is asked about any more."""
        try:
            self._fill(frozenset())
        except OSError as error:
            log.debug("the rules of pod %s are gone already: %s", self._pod, error)


def leave_captured(pod: LocalPod) -> None:
    """Where there are no gates: undoes what a predecessor that had them may have left, or first
    packets would wait for an answer for ever."""
    try:
        with Nftables(pod.namespace) as nftables:
            for name in direct_rules.neighbour_sets():
                found = nftables.elements(direct_rules.TABLE, name)
                nftables.replace_elements(direct_rules.TABLE, name, found, ())
    except OSError as error:
        log.debug("pod %s has no rules for first packets: %s", pod, error)


def _elements(name: str, addresses: frozenset[str]) -> list[Element]:
    found = (direct_rules.neighbour_element(address) for address in sorted(addresses))
    return [element for where, element in found if where == name]
