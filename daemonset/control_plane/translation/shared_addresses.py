"""Addresses that several claim: whoever shares one can be taken for the other, identity and all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Ledger


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """``rank`` decides whose address it is: the least one's."""

    rank: tuple[bool, str, str, str]
    owner: ObjectKey
    field: str


class SharedAddresses:
    """Who claims which address."""

    def __init__(self, findings: Ledger) -> None:
        self._findings = findings
        self._of: dict[ObjectKey, frozenset[str]] = {}
        self._at: dict[str, dict[ObjectKey, Claim]] = {}
        self._again: set[str] = set()

    def put(self, claim: Claim, addresses: Iterable[str]) -> None:
        """All that an object claims."""
        now = frozenset(addresses)
        self.drop(claim.owner)
        if now:
            self._of[claim.owner] = now
        for address in now:
            claims = self._at.setdefault(address, {})
            claims[claim.owner] = claim
            if len(claims) > 1:
                self._again.add(address)

    def drop(self, owner: ObjectKey) -> None:
        """The object is gone."""
        for address in self._of.pop(owner, ()):
            claims = self._at[address]
            if len(claims) > 1:
                self._again.add(address)
            del claims[owner]
            if not claims:
                del self._at[address]

    def report(self) -> None:
        """Say what has changed."""
        for address in self._again:
            with self._findings.part(("address", address)):
                owner, *others = sorted(self._at.get(address, {}).values()) or (None,)
                for claim in others:
                    assert owner is not None
                    self._findings.error(
                        claim.owner,
                        claim.field,
                        "AddressTaken",
                        f"{address} is the address of {owner.owner} as well: connections may reach "
                        "either.",
                        "Give each an address of its own.",
                    )
        self._again.clear()
