"""TCP and UDP sockets as a node proxy needs them: marked, transparent, redirected.

Every function may be given a `namespace`: only the `socket()` call itself happens in there, since a
socket stays in the namespace that it was created in, and the caller's thread is back at once.
Addresses come back as canonical text: a v4-mapped IPv6 address is the IPv4 address it stands for.
"""

import errno
import socket
import struct
from dataclasses import dataclass

from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.socket_stock import SocketStock

SocketAddress = tuple[str, int]

# linux/in.h, linux/in6.h, linux/netfilter_ipv4.h; Python does not name them all.
IP_TRANSPARENT = 19
IP_BIND_ADDRESS_NO_PORT = 24
IPV6_TRANSPARENT = 75
SO_ORIGINAL_DST = 80  # IP6T_SO_ORIGINAL_DST is the same number
SO_MARK = 36
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

BACKLOG = 4096
"""Connections that may wait to be accepted (the kernel caps it at `net.core.somaxconn`). A thousand
clients at once must not lose SYNs: each lost one costs its client a second."""

_MAPPED = "::ffff:"
_MARK = struct.Struct("=I")
_V4_PEER = struct.Struct("!2xH4s8x")  # sockaddr_in
_V6_PEER = struct.Struct("!2xH4x16s4x")  # sockaddr_in6


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keepalive, in whole seconds, with Istio's defaults. `user_timeout`: give a connection up
    when sent data stays unacknowledged for as long as the probes would have taken."""

    time: int = 180
    interval: int = 180
    retries: int = 9
    user_timeout: bool = False


def canonical(address: str) -> str:
    """`::ffff:192.0.2.1` is `192.0.2.1`, a zone is cut off, everything else stays."""
    if address.startswith(_MAPPED) and "." in address:
        return address[len(_MAPPED) :]
    return address.partition("%")[0]


def peer_of(sock: socket.socket) -> SocketAddress:
    """The far end, canonical. Raises OSError (ENOTCONN when it is already gone)."""
    name = sock.getpeername()
    return canonical(name[0]), name[1]


def local_of(sock: socket.socket) -> SocketAddress:
    """The near end, canonical. Raises OSError."""
    name = sock.getsockname()
    return canonical(name[0]), name[1]


def original_destination(sock: socket.socket) -> SocketAddress:
    """Where the client of this accepted connection wanted to go, before capture redirected it.

    Asks connection tracking (IPv4, then IPv6). A connection that nobody translated was for its own
    local address, which is also the answer for sockets delivered by TPROXY. Raises OSError when the
    socket is no longer connected.
    """
    try:
        raw = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, packed = _V4_PEER.unpack(raw)
        return socket.inet_ntop(socket.AF_INET, packed), port
    except OSError:
        pass  # not IPv4, or not tracked: ask further
    if sock.family == socket.AF_INET6:
        try:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, packed = _V6_PEER.unpack(raw)
            return canonical(socket.inet_ntop(socket.AF_INET6, packed)), port
        except OSError:
            pass  # not tracked either
    return local_of(sock)


def set_mark(sock: socket.socket, mark: int) -> None:
    """Packets of this socket carry `mark`. Raises OSError (EPERM without NET_ADMIN or NET_RAW)."""
    # Packed, because a mark with its highest bit set does not fit the signed int Python passes.
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, _MARK.pack(mark))


def set_transparent(sock: socket.socket) -> None:
    """Let the socket use addresses that are not this host's. Raises OSError (EPERM)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)


def set_connection_options(sock: socket.socket, keepalive: Keepalive | None) -> None:
    """What every relayed connection gets: no Nagle, and keepalive unless it is None.

    Raises OSError when the connection is gone already.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.time)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.retries)
    if keepalive.user_timeout:
        total = keepalive.time + keepalive.interval * keepalive.retries
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, total * 1000)


def limit_receive_buffer(sock: socket.socket, size: int) -> None:
    """Let the kernel hold at most `size` bytes of memory for what has come and is not read. As
    much less as `net.core.rmem_max` says, where the process has no CAP_NET_ADMIN."""
    _limit(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)


def limit_send_buffer(sock: socket.socket, size: int) -> None:
    """The same for what is to be sent and is not acknowledged."""
    _limit(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, size)


def _limit(sock: socket.socket, forced: int, asked: int, size: int) -> None:
    half = size // 2  # the kernel doubles what it is told, for its own needs
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, half)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, asked, half)


def _new(family: int, kind: int, namespace: NetworkNamespace | None) -> socket.socket:
    if namespace is None:
        sock = socket.socket(family, kind)
    else:
        sock = namespace.socket(family, kind)
    sock.setblocking(False)
    return sock


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen_tcp(
    address: str,
    port: int,
    *,
    mark: int | None = None,
    reuse_port: bool = True,
    transparent: bool = False,
    backlog: int = BACKLOG,
    namespace: NetworkNamespace | None = None,
) -> socket.socket:
    """A listening, non-blocking TCP socket.

    `"::"` takes IPv4 too; any other IPv6 address takes IPv6 alone. Accepted sockets inherit `mark`,
    and the TCP options are set here so that they inherit those as well. `transparent` also accepts
    connections to addresses that are not the host's (for TPROXY, and for answering from any).
    `reuse_port` lets several workers, and an old and a new proxy, listen side by side.
    Raises OSError (EADDRINUSE, EPERM, EAFNOSUPPORT where IPv6 is off).
    """
    sock = _new(_family(address), socket.SOCK_STREAM, namespace)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if mark is not None:
            set_mark(sock, mark)
        if transparent:
            set_transparent(sock)
        set_connection_options(sock, None)
        sock.bind((address, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def start_connect(
    destination: SocketAddress,
    *,
    mark: int | None = None,
    source: str | None = None,
    keepalive: Keepalive | None = None,
    namespace: NetworkNamespace | None = None,
    stock: SocketStock | None = None,
) -> socket.socket:
    """Begin a TCP connection and return its non-blocking socket at once.

    The socket is taken from `stock` where one is given, and belongs to its namespace.

    When the socket becomes writable, SO_ERROR says what became of it. With `source` the
    connection comes from that address, which need not be this host's (IP_TRANSPARENT, which
    allows what IP_FREEBIND does; the port is the kernel's choice, made at connect time so that
    ports are shared between destinations). Raises OSError when the kernel refuses at once
    (ENETUNREACH, EPERM, EADDRNOTAVAIL); a refusal by the other end comes from SO_ERROR,
    on loopback too.
    """
    family = _family(destination[0])
    if stock is None:
        sock = _new(family, socket.SOCK_STREAM, namespace)
    else:
        sock = stock.take(family)
    try:
        if mark is not None:
            set_mark(sock, mark)
        set_connection_options(sock, keepalive)
        if source is not None:
            set_transparent(sock)
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        number = sock.connect_ex(destination)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, f"connect to {destination[0]} port {destination[1]}")
    except BaseException:
        sock.close()
        raise
    return sock


def is_connected(sock: socket.socket) -> bool:
    """Whether a `start_connect` has succeeded already: one to this machine mostly has when it
    returns. False says nothing; wait for it to become writable then."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def udp(
    address: str,
    port: int,
    *,
    mark: int | None = None,
    reuse_port: bool = True,
    namespace: NetworkNamespace | None = None,
) -> socket.socket:
    """A bound, non-blocking UDP socket (`"::"` takes IPv4 too). Raises OSError as `listen_tcp`."""
    sock = _new(_family(address), socket.SOCK_DGRAM, namespace)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if mark is not None:
            set_mark(sock, mark)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def missing_capabilities(mark: int | None, *, transparent: bool = True) -> list[str]:
    """What this process may not do but must, in words; an empty list means all is well.

    Worth asking at start: without these every single pod would fail later, one by one.

    Args:
        mark: the mark that sockets in pods get; None needs no permission.
        transparent: connections must be made from their clients' addresses.
    """
    missing = []
    try:
        with NetworkNamespace.current() as own, own.enter():
            pass
    except OSError as error:
        missing.append(f"enter a network namespace (CAP_SYS_ADMIN): {error}")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            if mark is not None:
                set_mark(probe, mark)
        except OSError as error:
            missing.append(f"mark a socket (CAP_NET_ADMIN or CAP_NET_RAW): {error}")
        try:
            if transparent:
                set_transparent(probe)
        except OSError as error:
            missing.append(f"use the address of a client (CAP_NET_RAW or CAP_NET_ADMIN): {error}")
    return missing
