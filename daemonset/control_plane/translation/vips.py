"""Addresses for services that bring none, the same ones every time."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from hashlib import blake2b

from daemonset.control_plane.objects.addresses import IPNetwork


class AddressAllocator:
    """Gives each name an address of a block, by hash of the name.

    A name keeps its address for the life of the allocator, and where no two names fall on one
    address (a block of 65,536 holds 100 names without such a pair in 19 cases of 20) also after
    a restart and in any other allocator.
    """

    def __init__(self, block: IPNetwork) -> None:
        self._block = block
        # Never the network's own address, nor the broadcast address.
        self._size = min(block.num_addresses - 2, 2**32)
        if self._size < 1:
            raise ValueError(f"{block} is too small to give addresses from")
        self._by_name: dict[str, int] = {}

    def allocate(self, names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
        """Addresses for exactly these names: others are forgotten.

        Args:
            names: of the services, unique.
            taken: canonical addresses that must not be given.

        Returns:
            Name -> canonical address. Names are left out once the block is full.
        """
        wanted = sorted(names)
        kept = {name: self._by_name[name] for name in wanted if name in self._by_name}
        result: dict[str, int] = {
            name: slot for name, slot in kept.items() if self._text(slot) not in taken
        }
        used = set(result.values())
        for name in wanted:
            if name in result or len(used) >= self._size:
                continue
            slot = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) % self._size
            for _ in range(self._size):
                if slot not in used and self._text(slot) not in taken:
                    result[name] = slot
                    used.add(slot)
                    break
                slot = (slot + 1) % self._size
        self._by_name = result
        return {name: self._text(slot) for name, slot in result.items()}

    def _text(self, slot: int) -> str:
        base = int(self._block.network_address) + 1 + slot
        if isinstance(self._block, ipaddress.IPv4Network):
            return str(ipaddress.IPv4Address(base))
        return str(ipaddress.IPv6Address(base))
