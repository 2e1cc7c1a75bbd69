"""nftables over netlink: tables written in one transaction, read back, removed.

Everything here is of the `inet` family where no other is named; numbers are those of
linux/netfilter/nf_tables.h.
"""

import errno
import struct
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from ztunnel.linux.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    each_attribute,
    string_of,
    text,
)
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_expressions import Expression
from ztunnel.linux.nft_tables import INET, Chain, Element, Rule, Set, Table

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
_SUBSYSTEM = 10 << 8

_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2
_NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN = 3, 4, 5
_NEW_RULE, _GET_RULE, _DELETE_RULE = 6, 7, 8
_NEW_SET, _GET_SET, _DELETE_SET = 9, 10, 11
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = 12, 13, 14
_GET_GENERATION = 16

_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_HOOK_NAMES = {number: name for name, number in _HOOKS.items()}
_SET_IS_MAP, _SET_HAS_TIMEOUTS = 8, 16

# nft's own numbers for data types: the kernel only carries them, `nft list` shows elements by them.
_DATA_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_service": (13, 2), "mark": (19, 4)}
_TYPE_BITS = 6
_ELEMENTS_AT_ONCE = 200
_READ_ATTEMPTS = 50
_BATCH = struct.pack("!BBH", 0, 0, 10)  # struct nfgenmsg of a batch for nftables
_ERESTART = 85


class Nftables:
    """nftables of one namespace. Every method is synchronous and raises NetlinkError."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, namespace)

    def replace(self, *tables: Table) -> None:
        """Put these tables in place of those with the same names: all of them, or nothing.

        There is no moment in between: a packet sees the old rules or the new ones.
        """
        messages: list[Message] = []
        names: list[str] = []
        for table in tables:
            made = _delete_messages(table.name, table.family) + _table_messages(table)
            messages += made
            names += [table.name] * len(made)
        self._commit(messages, names)

    def change(self, found: Table, meant: Table) -> None:
        """Make `meant` of the table of the same name that was `found`: in one step as `replace`,
        but what both have stays, also the elements of sets.

        When a base chain goes, or a rule that sets a zone of connection tracking, the kernel drops
        every packet of the namespace that waits in a queue (NFQUEUE), whichever rule queued it.
        """
        messages = _change_messages(found, meant)
        try:
            self._commit(messages, [meant.name] * len(messages))
        except NetlinkError:
            # It is not any more what was found; what is really refused is refused here too.
            self.replace(meant)

    def delete(self, *names: str, family: int = INET) -> None:
        """Remove tables, all or nothing. One that is not there is no error."""
        messages: list[Message] = []
        for name in names:
            messages += _delete_messages(name, family)
        self._commit(messages, [name for name in names for _ in range(2)])

    def read(self, name: str, family: int = INET) -> Table | None:
        """The table as the kernel has it at one moment, or None. Counters are not part of it."""
        for _ in range(_READ_ATTEMPTS):
            self._wait_for_commit()
            generation = self.generation()
            try:
                found = self._read_once(name, family)
            except NetlinkError as error:
                # Somebody took away what was just being listed: look again.
                if error.errno != errno.ENOENT:
                    raise
            else:
                if self._wait_for_commit(generation):
                    return found
        raise NetlinkError(errno.EBUSY, 0, f"table {name} cannot be read: rules keep changing")

    def _wait_for_commit(self, generation: int = 0) -> bool:
        """Let a transaction that is under way come to its end; it changes what is listed and the
        generation not quite at the same time. True when it is still `generation` (0 always is).
        """
        expected = _number(1, generation) if generation else b""  # NFNL_BATCH_GENID
        begin = Message(0x10, 0, _BATCH + expected)
        try:
            self._netlink.batch_of_none(begin, Message(0x11, 0, _BATCH))
        except NetlinkError as error:
            if error.errno == _ERESTART:
                return False
            raise
        return True

    def _read_once(self, name: str, family: int) -> Table | None:
        try:
            self._netlink.ask(_SUBSYSTEM | _GET_TABLE, _body(text(1, name), family))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        rules: dict[str, list[Rule]] = {}
        for found in self._list(_GET_RULE, name, family):
            rules.setdefault(string_of(found[2]), []).append(_read_rule(found))
        chains = [_read_chain(found, rules) for found in self._list(_GET_CHAIN, name, family)]
        sets = [
            _read_set(found, self.elements(name, string_of(found[2]), family))
            for found in self._list(_GET_SET, name, family)
        ]
        return Table(name, tuple(chains), tuple(sets), family)

    def _list(self, kind: int, table: str, family: int) -> list[dict[int, bytes]]:
        """Attributes of everything of one kind in a table; the kernel filters some kinds only."""
        body = _body(text(1, table) if kind != _GET_CHAIN else b"", family)
        listed = [
            attributes(answer.body[4:]) for answer in self._netlink.dump(_SUBSYSTEM | kind, body)
        ]
        return [found for found in listed if string_of(found[1]) == table]

    def table_names(self, family: int = INET) -> list[str]:
        """The names of all tables of one family in this namespace."""
        found = self._netlink.dump(_SUBSYSTEM | _GET_TABLE, _body(family=family))
        return [string_of(attributes(message.body[4:])[1]) for message in found]

    def elements(self, table: str, name: str, family: int = INET) -> tuple[Element, ...]:
        """What a set holds now."""
        body = _body(text(1, table) + text(2, name), family)
        found: list[Element] = []
        for message in self._netlink.dump(_SUBSYSTEM | _GET_ELEMENT, body):
            for _, raw in each_attribute(attributes(message.body[4:]).get(3, b"")):
                found.append(_read_element(attributes(raw)))
        return tuple(found)

    def add_elements(self, table: str, name: str, elements: Sequence[Element]) -> None:
        """Add to a set in one transaction. One that is already there keeps its old comment."""
        self.replace_elements(table, name, (), elements)

    def replace_elements(
        self, table: str, name: str, old: Sequence[Element], new: Sequence[Element]
    ) -> None:
        """Swap elements in one transaction, e.g. one for itself with another comment."""
        messages = _element_messages(_DELETE_ELEMENT, 0, table, name, old)
        messages += _element_messages(_NEW_ELEMENT, NLM_F_CREATE, table, name, new)
        if messages:
            self._commit(messages, [table] * len(messages))

    def generation(self) -> int:
        """A number that changes with every change of any table in this namespace."""
        answer = self._netlink.ask(_SUBSYSTEM | _GET_GENERATION, _body())
        (number,) = struct.unpack("!I", attributes(answer.body[4:])[1])
        return int(number)

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> "Nftables":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, messages: Sequence[Message], tables: Sequence[str]) -> None:
        try:
            self._netlink.batch(messages, (Message(0x10, 0, _BATCH), Message(0x11, 0, _BATCH)))
        except NetlinkError as error:
            where = "the transaction"
            if 0 <= error.position < len(messages):
                where = f"{_describe(messages[error.position])} of table {tables[error.position]}"
            error.add_note(f"nftables: {where} was refused")
            raise


def subscribe(namespace: NetworkNamespace | None = None) -> NetlinkSocket:
    """A socket that becomes readable whenever nftables of the namespace change."""
    return NetlinkSocket(NETLINK_NETFILTER, namespace, [NFNLGRP_NFTABLES])


def _describe(message: Message) -> str:
    names = {0: "creation", 2: "removal", 3: "a chain", 6: "a rule", 9: "a set"}
    return names.get(message.kind & 0xFF, "an element")


def _body(packed: bytes = b"", family: int = INET) -> bytes:
    return struct.pack("!BBH", family, 0, 0) + packed


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _delete_messages(name: str, family: int) -> list[Message]:
    # Creating what exists already is no error, so this removes a table whether it is there or not.
    body = _body(text(1, name), family)
    return [
        Message(_SUBSYSTEM | _NEW_TABLE, NLM_F_CREATE, body),
        Message(_SUBSYSTEM | _DELETE_TABLE, 0, body),
    ]


def _table_messages(table: Table, there: Container[str] = ()) -> list[Message]:
    """What makes a table; `there` are names of chains that it has, without rules."""
    family = table.family
    body = _body(text(1, table.name), family)
    messages = [Message(_SUBSYSTEM | _NEW_TABLE, NLM_F_CREATE, body)]
    for number, entry in enumerate(table.sets, start=1):
        body = _body(_set_attributes(table.name, entry, number), family)
        messages.append(Message(_SUBSYSTEM | _NEW_SET, NLM_F_CREATE, body))
        messages += _element_messages(
            _NEW_ELEMENT, NLM_F_CREATE, table.name, entry.name, entry.elements, family
        )
    for chain in table.chains:
        if chain.name in there:
            continue
        packed = text(1, table.name) + text(3, chain.name)
        if chain.hook:
            hook = _number(1, _HOOKS[chain.hook])
            hook += attribute(2, struct.pack("!i", chain.priority))
            packed += attribute(4, hook) + _number(5, 0 if chain.drop else 1)
            packed += text(7, chain.kind)
        messages.append(Message(_SUBSYSTEM | _NEW_CHAIN, NLM_F_CREATE, _body(packed, family)))
    for chain in table.chains:
        for rule in chain.rules:
            packed = text(1, table.name) + text(2, chain.name)
            packed += attribute(4, b"".join(each.packed() for each in rule.expressions))
            if rule.comment:
                packed += attribute(7, _comment(rule.comment))
            flags = NLM_F_CREATE | NLM_F_APPEND
            messages.append(Message(_SUBSYSTEM | _NEW_RULE, flags, _body(packed, family)))
    return messages


def _change_messages(found: Table, meant: Table) -> list[Message]:
    def delete(kind: int, packed: bytes) -> Message:
        return Message(_SUBSYSTEM | kind, 0, _body(text(1, meant.name) + packed, meant.family))

    places = {_place(chain) for chain in meant.chains}
    same = {chain.name for chain in found.chains if chain in meant.chains}
    there = {chain.name for chain in found.chains if _place(chain) in places}
    sets = {entry.name for entry in found.sets if entry in meant.sets}
    # Rules first: they hold the chains and sets that they speak of.
    messages = [
        delete(_DELETE_RULE, text(2, chain.name))
        for chain in found.chains
        if chain.rules and chain.name not in same
    ]
    messages += [
        delete(_DELETE_CHAIN, text(3, chain.name))
        for chain in found.chains
        if chain.name not in there
    ]
    messages += [
        delete(_DELETE_SET, text(2, entry.name)) for entry in found.sets if entry.name not in sets
    ]
    new_sets = tuple(entry for entry in meant.sets if entry.name not in sets)
    changed = tuple(chain for chain in meant.chains if chain.name not in same)
    return messages + _table_messages(replace(meant, chains=changed, sets=new_sets), there)


def _place(chain: Chain) -> Chain:
    return replace(chain, rules=())


def _comment(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return bytes((0, len(raw))) + raw


def _read_comment(raw: bytes) -> str:
    if len(raw) < 2 or raw[0] != 0:
        return ""
    return string_of(raw[2 : 2 + raw[1]])


def _read_rule(found: dict[int, bytes]) -> Rule:
    expressions = tuple(Expression.read(raw) for _, raw in each_attribute(found.get(4, b"")))
    return Rule(expressions, _read_comment(found.get(7, b"")))


def _read_chain(found: dict[int, bytes], rules: dict[str, list[Rule]]) -> Chain:
    name = string_of(found[3])
    own = tuple(rules.get(name, ()))
    if 4 not in found:
        return Chain(name, own)
    hook = attributes(found[4])
    (number,) = struct.unpack("!I", hook[1])
    (priority,) = struct.unpack("!i", hook[2])
    drop = found.get(5) == struct.pack("!I", 0)
    return Chain(name, own, _HOOK_NAMES[number], string_of(found[7]), priority, drop)


def _type_number(names: Iterable[str]) -> tuple[int, int]:
    """nft's number for a type or a concatenation, and its length padded to registers."""
    number = 0
    length = 0
    parts = tuple(names)
    for name in parts:
        kind, size = _DATA_TYPES[name]
        number = number << _TYPE_BITS | kind
        length += size if len(parts) == 1 else size + -size % 4
    return number, length


def _type_names(number: int) -> tuple[str, ...]:
    by_number = {kind: name for name, (kind, _) in _DATA_TYPES.items()}
    names: list[str] = []
    while number:
        names.insert(0, by_number.get(number & (1 << _TYPE_BITS) - 1, "unknown"))
        number >>= _TYPE_BITS
    return tuple(names)


def _set_attributes(table: str, entry: Set, number: int) -> bytes:
    kind, length = _type_number(entry.key)
    packed = text(1, table) + text(2, entry.name)
    flags = _SET_IS_MAP if entry.value else 0
    packed += _number(3, flags | (_SET_HAS_TIMEOUTS if entry.timeouts else 0))
    packed += _number(4, kind) + _number(5, length)
    if entry.value:
        kind, length = _type_number(entry.value)
        packed += _number(6, kind) + _number(7, length)
    return packed + _number(10, number)


def _read_set(found: dict[int, bytes], elements: tuple[Element, ...]) -> Set:
    (kind,) = struct.unpack("!I", found[4])
    value = struct.unpack("!I", found[6])[0] if 6 in found else 0
    flags = struct.unpack("!I", found[3])[0] if 3 in found else 0
    timeouts = bool(flags & _SET_HAS_TIMEOUTS)
    return Set(string_of(found[2]), _type_names(kind), _type_names(value), elements, timeouts)


def _element_messages(
    kind: int, flags: int, table: str, name: str, elements: Sequence[Element], family: int = INET
) -> list[Message]:
    messages = []
    # An attribute cannot be longer than 64 KiB, and an element with its comment is up to 300 bytes.
    for start in range(0, len(elements), _ELEMENTS_AT_ONCE):
        packed = []
        for element in elements[start : start + _ELEMENTS_AT_ONCE]:
            one = attribute(1, attribute(1, element.key))
            if element.value:
                one += attribute(2, attribute(1, element.value))
            if element.timeout:
                one += attribute(4, struct.pack("!Q", element.timeout))
            if element.comment:
                one += attribute(6, _comment(element.comment))
            packed.append(attribute(1, one))
        body = _body(text(1, table) + text(2, name) + attribute(3, b"".join(packed)), family)
        messages.append(Message(_SUBSYSTEM | kind, flags, body))
    return messages


def _read_element(found: dict[int, bytes]) -> Element:
    value = attributes(found[2]).get(1, b"") if 2 in found else b""
    timeout = struct.unpack("!Q", found[4])[0] if 4 in found else 0
    return Element(attributes(found[1])[1], value, _read_comment(found.get(6, b"")), timeout)
