"""nftables tables as values, and what is different between two of them, in words."""

import socket
from dataclasses import dataclass, field

from ztunnel.linux.nft_expressions import Expression

INET = 1
"""NFPROTO_INET: packets of IPv4 and IPv6, where they are routed, sent and received."""
BRIDGE = 7
"""NFPROTO_BRIDGE: frames, where a bridge takes them in or hands them on."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Expressions, evaluated in order until one does not match; `comment` says what it is for."""

    expressions: tuple[Expression, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain. With a `hook` it is a base chain, called by the kernel at that hook's `priority`."""

    name: str
    rules: tuple[Rule, ...]
    hook: str = ""
    kind: str = "filter"
    priority: int = 0
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set: its key's bytes (of a concatenation each part padded to four), in a map
    its value, and a comment. `timeout`: milliseconds after which it goes by itself; 0 is never."""

    key: bytes
    value: bytes = b""
    comment: str = ""
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class Set:
    """A named set, or a map when `value` is given. `key` and `value` name data types; several in
    `key` are a concatenation. Elements that are changed one by one are not part of a comparison;
    only in a set of `timeouts` they may have one."""

    name: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    elements: tuple[Element, ...] = field(default=(), compare=False)
    timeouts: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a family (`INET`, `BRIDGE`). The order of its chains and sets has no meaning."""

    name: str
    chains: tuple[Chain, ...]
    sets: tuple[Set, ...] = ()
    family: int = INET


def differences(meant: Table, found: Table | None) -> list[str]:
    """What is wrong with a table that was read back, in words; an empty list when nothing is."""
    if found is None:
        return [f"table {meant.name} is gone"]
    wrong = []
    chains = {chain.name: chain for chain in found.chains}
    for chain in meant.chains:
        actual = chains.pop(chain.name, None)
        if actual is None:
            wrong.append(f"chain {chain.name} is gone")
        elif actual != chain:
            wrong += _chain_differences(chain, actual)
    wrong += [f"chain {name} is not ours" for name in chains]
    sets = {entry.name: entry for entry in found.sets}
    for entry in meant.sets:
        if sets.pop(entry.name, None) != entry:
            wrong.append(f"set {entry.name} is gone or has another type")
    return wrong + [f"set {name} is not ours" for name in sets]


def _chain_differences(meant: Chain, actual: Chain) -> list[str]:
    wrong = []
    if (meant.hook, meant.kind, meant.priority, meant.drop) != (
        actual.hook,
        actual.kind,
        actual.priority,
        actual.drop,
    ):
        wrong.append(f"chain {meant.name} hangs somewhere else")
    wrong += [
        f"rule of chain {meant.name} is gone or changed: {rule.comment}"
        for rule in meant.rules
        if rule not in actual.rules
    ]
    wrong += [
        f"rule of chain {meant.name} is not ours: {rule.comment or 'no comment'}"
        for rule in actual.rules
        if rule not in meant.rules
    ]
    if not wrong:
        wrong.append(f"rules of chain {meant.name} are in another order")
    return wrong


def address_bytes(address: str) -> bytes:
    """An IP address as the key of a set. Raises OSError when it is none."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
