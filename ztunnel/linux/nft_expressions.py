"""The expressions of nftables rules, small functions that read like `nft` itself.

Registers: matches go through the first; NAT takes the address from the first and the port from the
second. Attribute numbers are those of linux/netfilter/nf_tables.h; each expression carries exactly
the attributes that the kernel lists, in its order, so that a rule can be compared when read back.
"""

import socket
import struct
from dataclasses import dataclass

from ztunnel.linux.netlink import attribute, attributes, each_attribute, string_of, text

_ELEMENT = 1  # NFTA_LIST_ELEM
_REGISTER = 1
_PORT_REGISTER = 2
_LAST_REGISTER = 4
_FIRST_SMALL_REGISTER = 8  # NFT_REG32_00, the first four bytes of the first register

_EQ, _NEQ, _GTE = 0, 1, 5
_META_PROTOCOL, _META_MARK, _META_IIFNAME, _META_OIFNAME, _META_SKUID = 1, 3, 6, 7, 10
_META_NFPROTO, _META_L4PROTO = 15, 16
_CT_DIRECTION, _CT_MARK, _CT_ZONE = 1, 3, 17
_ORIGINAL = 0
_NETWORK, _TRANSPORT = 1, 2
_NFPROTO: dict[int, int] = {socket.AF_INET: 2, socket.AF_INET6: 10}
_ETHERTYPE: dict[int, int] = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}

_MAP_ADDRESSES, _PROTO_SPECIFIED = 1, 2  # NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED

_DROP, _ACCEPT = 0, 1
_JUMP, _GOTO, _RETURN = -3, -4, -5


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression by name, with its attributes in numeric order, as bytes."""

    name: str
    attributes: tuple[tuple[int, bytes], ...] = ()

    def packed(self) -> bytes:
        """As an element of a rule's list of expressions."""
        data = b"".join(attribute(kind, value) for kind, value in self.attributes)
        return attribute(_ELEMENT, text(1, self.name) + attribute(2, data))

    @classmethod
    def read(cls, raw: bytes) -> "Expression":
        """From an element of a listed rule. Raises ValueError, KeyError on malformed data."""
        found = attributes(raw)
        name = string_of(found[1])
        if name == "counter":
            return counter()
        return cls(name, tuple(sorted(each_attribute(found.get(2, b"")))))


def _expression(name: str, **values: int) -> Expression:
    """Attributes given as `_3=value`: all of them are big-endian 32-bit numbers."""
    found = [(int(kind[1:]), struct.pack("!I", value)) for kind, value in values.items()]
    return Expression(name, tuple(sorted(found)))


def _with_data(expression: Expression, kind: int, value: bytes) -> Expression:
    data = (kind, attribute(1, value))
    return Expression(expression.name, tuple(sorted((*expression.attributes, data))))


def _compare(operator: int, value: bytes) -> Expression:
    return _with_data(_expression("cmp", _1=_REGISTER, _2=operator), 3, value)


def _mask(mask: bytes, xor: bytes) -> Expression:
    size = len(mask)
    plain = _expression("bitwise", _1=_REGISTER, _2=_REGISTER, _3=size, _6=0)
    return _with_data(_with_data(plain, 4, mask), 5, xor)


def _payload(base: int, offset: int, length: int) -> Expression:
    return _expression("payload", _1=_REGISTER, _2=base, _3=offset, _4=length)


def _word(value: int) -> bytes:
    return struct.pack("=I", value)  # marks live in registers in the machine's own byte order


def _operator(negated: bool) -> int:
    return _NEQ if negated else _EQ


# --- matches -------------------------------------------------------------------------------------


def protocol(number: int) -> tuple[Expression, ...]:
    """`meta l4proto`: socket.IPPROTO_TCP or socket.IPPROTO_UDP."""
    return (
        _expression("meta", _1=_REGISTER, _2=_META_L4PROTO),
        _compare(_EQ, bytes((number,))),
    )


def family(number: int) -> tuple[Expression, ...]:
    """`meta nfproto`: socket.AF_INET or socket.AF_INET6."""
    return (
        _expression("meta", _1=_REGISTER, _2=_META_NFPROTO),
        _compare(_EQ, bytes((_NFPROTO[number],))),
    )


def _address(address: str, offsets: tuple[int, int], negated: bool) -> tuple[Expression, ...]:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(kind, address)
    offset = offsets[0] if kind == socket.AF_INET else offsets[1]
    return (
        *family(kind),
        _payload(_NETWORK, offset, len(packed)),
        _compare(_operator(negated), packed),
    )


def source(address: str, *, negated: bool = False) -> tuple[Expression, ...]:
    """`ip saddr` or `ip6 saddr`; the rule is for that family alone, negated or not."""
    return _address(address, (12, 8), negated)


def destination(address: str, *, negated: bool = False) -> tuple[Expression, ...]:
    """`ip daddr` or `ip6 daddr`; the rule is for that family alone, negated or not."""
    return _address(address, (16, 24), negated)


def source_port(port: int) -> tuple[Expression, ...]:
    """`th sport`: the protocol must have been matched before."""
    return (_payload(_TRANSPORT, 0, 2), _compare(_EQ, struct.pack("!H", port)))


def destination_port(port: int, *, negated: bool = False) -> tuple[Expression, ...]:
    """`th dport`: the protocol must have been matched before."""
    return (_payload(_TRANSPORT, 2, 2), _compare(_operator(negated), struct.pack("!H", port)))


def begins_connection() -> tuple[Expression, ...]:
    """`tcp flags & (fin | syn | rst | ack) == syn`: TCP must have been matched before."""
    return (_payload(_TRANSPORT, 13, 1), _mask(b"\x17", b"\0"), _compare(_EQ, b"\x02"))


def _interface(key: int, name: str, negated: bool) -> tuple[Expression, ...]:
    padded = name.encode().ljust(16, b"\0")
    return (_expression("meta", _1=_REGISTER, _2=key), _compare(_operator(negated), padded))


def input_interface(name: str, *, negated: bool = False) -> tuple[Expression, ...]:
    """`iifname`."""
    return _interface(_META_IIFNAME, name, negated)


def output_interface(name: str, *, negated: bool = False) -> tuple[Expression, ...]:
    """`oifname`."""
    return _interface(_META_OIFNAME, name, negated)


def _masked(load: Expression, value: int, mask: int, negated: bool) -> tuple[Expression, ...]:
    compare = _compare(_operator(negated), _word(value & mask))
    if mask == 0xFFFFFFFF:
        return (load, compare)
    return (load, _mask(_word(mask), _word(0)), compare)


def mark(value: int, mask: int, *, negated: bool = False) -> tuple[Expression, ...]:
    """`meta mark & mask == value`."""
    return _masked(_expression("meta", _1=_REGISTER, _2=_META_MARK), value, mask, negated)


def connection_mark(value: int, mask: int, *, negated: bool = False) -> tuple[Expression, ...]:
    """`ct mark & mask == value`."""
    return _masked(_expression("ct", _1=_REGISTER, _2=_CT_MARK), value, mask, negated)


def connection_direction(*, reply: bool) -> tuple[Expression, ...]:
    """`ct direction original` or `reply`: from or to the end that opened the connection."""
    return (
        _expression("ct", _1=_REGISTER, _2=_CT_DIRECTION),
        _compare(_EQ, bytes((int(reply),))),
    )


def sent_by_a_process() -> tuple[Expression, ...]:
    """The packet belongs to a socket of this very namespace; what is forwarded never does.

    `meta skuid >= 0`: the load itself fails, and with it the rule, when there is no such socket.
    """
    return (_expression("meta", _1=_REGISTER, _2=_META_SKUID), _compare(_GTE, _word(0)))


def frame_family(number: int) -> tuple[Expression, ...]:
    """`meta protocol`: what `family` is to the `inet` family, for tables of the `bridge` one."""
    return (
        _expression("meta", _1=_REGISTER, _2=_META_PROTOCOL),
        _compare(_EQ, struct.pack("!H", _ETHERTYPE[number])),
    )


def in_set(name: str, kind: int, *, bridged: bool = False) -> tuple[Expression, ...]:
    """`ip daddr @name` (`kind` socket.AF_INET) or `ip6 daddr @name` (socket.AF_INET6); `bridged`
    in a table of the `bridge` family."""
    offset, length = (16, 4) if kind == socket.AF_INET else (24, 16)
    match = frame_family(kind) if bridged else family(kind)
    return (*match, _payload(_NETWORK, offset, length), _lookup(name))


def source_in_set(name: str, kind: int, *, bridged: bool = False) -> tuple[Expression, ...]:
    """`ip saddr @name` (`kind` socket.AF_INET) or `ip6 saddr @name` (socket.AF_INET6); `bridged`
    in a table of the `bridge` family."""
    offset, length = (12, 4) if kind == socket.AF_INET else (8, 16)
    match = frame_family(kind) if bridged else family(kind)
    return (*match, _payload(_NETWORK, offset, length), _lookup(name))


def _lookup(name: str, register: int | None = None) -> Expression:
    values = {"_2": _REGISTER, "_5": 0}
    if register is not None:
        values["_3"] = register
    plain = _expression("lookup", **values)
    return Expression("lookup", ((1, name.encode() + b"\0"), *plain.attributes))


# --- statements ----------------------------------------------------------------------------------


def counter() -> Expression:
    """Count what gets this far. Counts are left out when a rule is read back."""
    return Expression("counter", ((1, bytes(8)), (2, bytes(8))))


def _verdict(code: int, chain: str = "") -> Expression:
    verdict = attribute(1, struct.pack("!i", code))
    if chain:
        verdict += text(2, chain)
    register = (1, struct.pack("!I", 0))
    return Expression("immediate", (register, (2, attribute(2, verdict))))


def accept() -> Expression:
    return _verdict(_ACCEPT)


def queue(number: int, *, native: bool = True) -> Expression:
    """`queue to number`: user space decides. While nobody listens, the packet is dropped.

    Without `native` it is the NFQUEUE target of xtables, for kernels that were built without
    nftables' own (NFT_QUEUE).
    """
    if not native:
        info = struct.pack("=H6x", number)  # struct xt_NFQ_info, aligned
        return Expression("target", ((1, b"NFQUEUE\0"), (2, struct.pack("!I", 0)), (3, info)))
    values = ((1, number), (2, 1), (3, 0))  # the first queue, how many, flags (no bypass)
    return Expression("queue", tuple((kind, struct.pack("!H", value)) for kind, value in values))


def drop() -> Expression:
    return _verdict(_DROP)


def leave() -> Expression:
    """`return`: back to the calling chain, or to a base chain's policy."""
    return _verdict(_RETURN)


def jump(chain: str) -> Expression:
    return _verdict(_JUMP, chain)


def goto(chain: str) -> Expression:
    return _verdict(_GOTO, chain)


def _immediate(register: int, value: bytes) -> Expression:
    return _with_data(_expression("immediate", _1=register), 2, value)


def set_mark(value: int) -> tuple[Expression, ...]:
    """`meta mark set value`."""
    return (_immediate(_REGISTER, _word(value)), _expression("meta", _2=_META_MARK, _3=_REGISTER))


def mark_from_connection() -> tuple[Expression, ...]:
    """`meta mark set ct mark`."""
    return (
        _expression("ct", _1=_REGISTER, _2=_CT_MARK),
        _expression("meta", _2=_META_MARK, _3=_REGISTER),
    )


def set_connection_mark(value: int, mask: int) -> tuple[Expression, ...]:
    """`ct mark set ct mark & ~mask | value`: bits outside the mask belong to somebody else."""
    return (
        _expression("ct", _1=_REGISTER, _2=_CT_MARK),
        _mask(_word(~mask & 0xFFFFFFFF), _word(value & mask)),
        _expression("ct", _2=_CT_MARK, _4=_REGISTER),
    )


def set_connection_zone(zone: int, *, original_only: bool = False) -> tuple[Expression, ...]:
    """`ct zone set zone`, in a chain before connection tracking (priority below -200).

    `original_only` (`ct original zone set`): the answers stay in the zone that they would be in
    without this rule, and are found there.
    """
    assign = _expression("ct", _2=_CT_ZONE, _4=_REGISTER)
    if original_only:
        assign = Expression("ct", tuple(sorted((*assign.attributes, (3, bytes((_ORIGINAL,)))))))
    return (_immediate(_REGISTER, struct.pack("=H", zone)), assign)


def connection_mark_from_packet() -> tuple[Expression, ...]:
    """`ct mark set meta mark`, by a register that nothing else uses."""
    return (
        _expression("meta", _1=_LAST_REGISTER, _2=_META_MARK),
        _expression("ct", _2=_CT_MARK, _4=_LAST_REGISTER),
    )


def redirect(port: int) -> tuple[Expression, ...]:
    """`redirect to :port`: this machine (loopback for what it sends itself), another port."""
    return (
        _immediate(_REGISTER, struct.pack("!H", port)),
        _expression("redir", _1=_REGISTER, _2=_REGISTER, _3=_PROTO_SPECIFIED),
    )


def _nat(kind: int, address_family: int, port_register: int = 0) -> Expression:
    values = {"_1": kind, "_2": _NFPROTO[address_family], "_3": _REGISTER, "_4": _REGISTER}
    flags = _MAP_ADDRESSES
    if port_register:
        values["_5"] = values["_6"] = port_register
        flags |= _PROTO_SPECIFIED
    values["_7"] = flags
    return _expression("nat", **values)


def source_nat(address: str) -> tuple[Expression, ...]:
    """`snat to address`; the family must have been matched before."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(kind, address)
    return (_immediate(_REGISTER, packed), _nat(0, kind))


def destination_nat(address: str, port: int | None = None) -> tuple[Expression, ...]:
    """`dnat to address` or `dnat to address:port`; family (and protocol) matched before."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(kind, address)
    statement = (_immediate(_REGISTER, packed),)
    if port is None:
        return (*statement, _nat(1, kind))
    port_value = _immediate(_PORT_REGISTER, struct.pack("!H", port))
    return (*statement, port_value, _nat(1, kind, _PORT_REGISTER))


def destination_nat_by_mark(
    name: str, kind: int, found: tuple[Expression, ...] = ()
) -> tuple[Expression, ...]:
    """`dnat to meta mark map @name`: the packet's mark says where it goes.

    The map goes from "mark" to ("ipv4_addr", "inet_service"), or "ipv6_addr" for socket.AF_INET6; a
    mark that is not in it is left alone. The protocol must have been matched before. `found` are
    statements for packets whose mark is in the map.
    """
    behind = _FIRST_SMALL_REGISTER + 1 if kind == socket.AF_INET else _PORT_REGISTER
    return (
        *family(kind),
        _expression("meta", _1=_REGISTER, _2=_META_MARK),
        _lookup(name, _REGISTER),
        *found,
        _nat(1, kind, behind),
    )


def masquerade() -> Expression:
    """`masquerade`: the address of the interface that the packet leaves by."""
    return Expression("masq")


def random_choice(among: int, choice: int) -> tuple[Expression, ...]:
    """`numgen random mod among == choice`: true once in `among` times."""
    return (
        Expression(
            "numgen",
            (
                (1, struct.pack("!I", _REGISTER)),
                (2, struct.pack("!I", among)),
                (3, struct.pack("!I", 1)),
                (4, struct.pack("!I", 0)),
            ),
        ),
        _compare(_EQ, _word(choice)),
    )
