"""Giving addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.translation.vips import AddressAllocator

BLOCK = ipaddress.IPv4Network("10.0.0.0/28")
names = st.sets(st.text("abc", min_size=1, max_size=3), max_size=20)


@given(steps=st.lists(names, max_size=5), taken=st.sets(st.integers(1, 14), max_size=5))
def test_addresses_are_unique_in_the_block_and_stay(steps: list[set[str]], taken: set[int]) -> None:
    allocator = AddressAllocator(BLOCK)
    occupied = {str(BLOCK[number]) for number in taken}
    before: dict[str, str] = {}
    for step in steps:
        given_now = allocator.allocate(step, occupied)
        addresses = list(given_now.values())
        assert len(set(addresses)) == len(addresses)
        assert all(ipaddress.ip_address(address) in BLOCK for address in addresses)
        assert not {"10.0.0.0", "10.0.0.15"} & set(addresses)
        assert not occupied & set(addresses)
        assert len(given_now) == min(len(step), 14 - len(occupied))
        for name in step & before.keys():
            assert given_now[name] == before[name]
        before = given_now


def test_a_name_gets_the_same_address_in_every_allocator() -> None:
    block = ipaddress.IPv6Network("2001:2::/48")
    first = AddressAllocator(block).allocate(["a", "b", "c"])
    assert AddressAllocator(block).allocate(["c"])["c"] == first["c"]


def test_a_block_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        AddressAllocator(ipaddress.IPv4Network("10.0.0.0/31"))
