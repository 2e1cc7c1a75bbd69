"""Policy routing that brings an application's answers back to the proxy.

The proxy connects to the application from the client's own address, so the application answers to
an address that is somewhere else. Capture marks those answers, and packets with that mark look into
a table in which every address is local: `ip rule fwmark 0x111/0xfff pref 32764 lookup 100` and
`ip route local default dev lo table 100` (linux/rtnetlink.h, linux/fib_rules.h).
"""

import errno
import socket
import struct
from dataclasses import dataclass

from ztunnel.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
)
from ztunnel.linux.netns import NetworkNamespace

NETLINK_ROUTE = 0

_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_GETADDR = 22
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_RTN_LOCAL = 2
_RTPROT_STATIC = 4
_RT_SCOPE_HOST = 254
_FR_ACT_TO_TBL, _FR_ACT_PROHIBIT = 1, 8
_LOOPBACK_INDEX = 1

_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_RULE = struct.Struct("=8BI")  # struct fib_rule_hdr
_ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg


@dataclass(frozen=True, slots=True)
class MarkedIsLocal:
    """Packets whose mark is `mark` under `mask` are delivered here, whatever their destination."""

    mark: int = 0x111
    mask: int = 0xFFF
    table: int = 100
    priority: int = 32764


STOP_PRIORITY = 1
"""Where `stop` puts its rule: behind the local table, before everything else."""


class Routing:
    """Policy routing of one namespace. Synchronous; every method raises NetlinkError."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE, namespace)

    def add(self, routing: MarkedIsLocal, family: int) -> None:
        """Make it so; what is already there is left as it is."""
        self._ignore(errno.EEXIST, _RTM_NEWROUTE, _CREATE, _local_route(routing, family))
        self._ignore(errno.EEXIST, _RTM_NEWRULE, _CREATE, _mark_rule(routing, family))

    def remove(self, routing: MarkedIsLocal, family: int) -> None:
        """Undo `add`; what is not there is no error."""
        self._remove_all(_RTM_DELRULE, _mark_rule(routing, family))
        self._remove_all(_RTM_DELROUTE, _local_route(routing, family))

    def missing(self, routing: MarkedIsLocal, family: int) -> list[str]:
        """What `add` made and somebody took away, in words."""
        wrong = []
        version = "IPv6" if family == socket.AF_INET6 else "IPv4"
        wanted = (routing.mark, routing.mask, routing.table, routing.priority)
        if wanted not in self._rules(family):
            wrong.append(f"the {version} rule for mark {routing.mark:#x} is gone")
        if not self._has_local_route(routing, family):
            wrong.append(f"the {version} local route of table {routing.table} is gone")
        return wrong

    def stop(self, family: int) -> None:
        """Nothing leaves this namespace any more (EACCES for its processes); loopback stays."""
        self._ignore(errno.EEXIST, _RTM_NEWRULE, _CREATE, _stop_rule(family))

    def resume(self, family: int) -> None:
        """Undo `stop`; no error when nothing was stopped."""
        self._remove_all(_RTM_DELRULE, _stop_rule(family))

    def addresses(self) -> set[str]:
        """Every address of every interface, as canonical text."""
        found = set()
        for message in self._netlink.dump(_RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            values = attributes(message.body[_ADDRESS.size :])
            # IFA_LOCAL is the own end on a point-to-point link; IPv6 has IFA_ADDRESS alone.
            packed = values.get(2) or values.get(1)
            if packed is not None:
                kind = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(kind, packed))
        return found

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> "Routing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ignore(self, number: int, kind: int, flags: int, body: bytes) -> None:
        try:
            self._netlink.request(kind, flags, body)
        except NetlinkError as error:
            if error.errno != number:
                raise

    def _remove_all(self, kind: int, body: bytes) -> None:
        while True:
            try:
                self._netlink.request(kind, 0, body)
            except NetlinkError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    return
                raise

    def _rules(self, family: int) -> set[tuple[int, int, int, int]]:
        found = set()
        for message in self._netlink.dump(_RTM_GETRULE, _RULE.pack(family, *[0] * 8)):
            values = attributes(message.body[_RULE.size :])
            mark, mask = _word(values.get(10)), _word(values.get(16))
            table, priority = _word(values.get(15)), _word(values.get(6))
            found.add((mark, mask, table, priority))
        return found

    def _has_local_route(self, routing: MarkedIsLocal, family: int) -> bool:
        body = _ROUTE.pack(family, *[0] * 8)
        for message in self._netlink.dump(_RTM_GETROUTE, body):
            header = _ROUTE.unpack_from(message.body)
            values = attributes(message.body[_ROUTE.size :])
            table = _word(values.get(15)) or header[4]
            length, kind = header[1], header[7]
            if table == routing.table and length == 0 and kind == _RTN_LOCAL:
                return True
        return False


_CREATE = NLM_F_CREATE | NLM_F_EXCL


def _word(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw)[0]) if raw is not None else 0


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _local_route(routing: MarkedIsLocal, family: int) -> bytes:
    table = routing.table if routing.table < 256 else 0
    header = _ROUTE.pack(family, 0, 0, 0, table, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    return header + _number(15, routing.table) + _number(4, _LOOPBACK_INDEX)  # RTA_TABLE, RTA_OIF


def _mark_rule(routing: MarkedIsLocal, family: int) -> bytes:
    table = routing.table if routing.table < 256 else 0
    header = _RULE.pack(family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    return (
        header
        + _number(6, routing.priority)
        + _number(10, routing.mark)
        + _number(15, routing.table)
        + _number(16, routing.mask)
    )


def _stop_rule(family: int) -> bytes:
    header = _RULE.pack(family, 0, 0, 0, 0, 0, 0, _FR_ACT_PROHIBIT, 0)
    return header + _number(6, STOP_PRIORITY)
