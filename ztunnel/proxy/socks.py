"""The SOCKS5 entry (RFC 1928): connections that a pod asks for instead of being captured.

Off by default. Without authentication, CONNECT only, by address or by a name
that the mesh or DNS knows. The answer comes before the connection is made:
whether it could be made shows in what follows, as with a captured one.
"""

import ipaddress
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

from ztunnel.linux.sockets import SocketAddress
from ztunnel.proxy.handshake import send_all
from ztunnel.proxy.outbound import Outbound

if TYPE_CHECKING:
    from ztunnel.proxy.pod import PodProxy

_TIME: Final = 10.0  # seconds for the client to say what it wants
_VERSION: Final = 5
_CONNECT: Final = 1
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_SUCCEEDED: Final = 0
_UNREACHABLE: Final = 4
_NO_COMMAND: Final = 7
_NO_ADDRESS_TYPE: Final = 8


class SocksError(Exception):
    """The client broke the protocol; `reply` is the code to answer with, -1 for none."""

    def __init__(self, words: str, reply: int = -1) -> None:
        super().__init__(words)
        self.reply = reply


def parse_greeting(data: bytes) -> int | None:
    """Length of a complete greeting; None while it is incomplete.

    Raises:
        SocksError: another version, or no method without authentication.
    """
    if data and data[0] != _VERSION:
        raise SocksError(f"version {data[0]} is not SOCKS5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    if 0 not in data[2 : 2 + data[1]]:
        raise SocksError("the client offers no method without authentication")
    return 2 + data[1]


def parse_request(data: bytes) -> tuple[str, int, int] | None:
    """(host, port, length) of a complete CONNECT request; None while it is incomplete.

    Raises:
        SocksError: it cannot be served.
    """
    if len(data) < 5:
        return None
    version, command, _, kind, first = data[:5]
    if version != _VERSION:
        raise SocksError(f"version {version} is not SOCKS5")
    if command != _CONNECT:
        raise SocksError(f"command {command} is not CONNECT", _NO_COMMAND)
    size = {_IPV4: 4, _IPV6: 16, _NAME: 1 + first}.get(kind)
    if size is None:
        raise SocksError(f"address type {kind} is unknown", _NO_ADDRESS_TYPE)
    end = 4 + size
    if len(data) < end + 2:
        return None
    (port,) = struct.unpack_from("!H", data, end)
    if kind == _NAME:
        try:
            return data[5:end].decode("ascii"), port, end + 2
        except UnicodeDecodeError:
            raise SocksError("the host name is not ASCII", _UNREACHABLE) from None
    address = ipaddress.ip_address(data[4:end])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), port, end + 2


def reply(code: int) -> bytes:
    """An answer without a bound address."""
    return bytes((_VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))


def accept_socks(pod: "PodProxy", sock: socket.socket, client: SocketAddress) -> None:
    """A connection to the SOCKS5 port."""
    pod.context.spawn(_serve, pod, sock, client)


async def _serve(pod: "PodProxy", sock: socket.socket, client: SocketAddress) -> None:
    context = pod.context
    try:
        with trio.fail_after(_TIME):
            destination = await _negotiate(pod, sock)
    except trio.TooSlowError:
        _refuse(pod, sock, client, "the client did not finish the SOCKS5 handshake in time")
        return
    except (SocksError, OSError) as error:
        if isinstance(error, SocksError) and error.reply >= 0:
            try:
                sock.send(reply(error.reply))
            except OSError:
                pass  # the client is gone
        _refuse(pod, sock, client, f"SOCKS5: {error}")
        return
    except BaseException:
        context.engine.close_later(sock)
        raise
    Outbound(pod, sock, client, destination).start()


def _refuse(pod: "PodProxy", sock: socket.socket, client: SocketAddress, reason: str) -> None:
    pod.context.engine.close_later(sock)
    pod.context.access_log.refused(client, ("127.0.0.1", 15080), False, reason)


async def _negotiate(pod: "PodProxy", sock: socket.socket) -> SocketAddress:
    engine = pod.context.engine
    data = b""
    while (length := parse_greeting(data)) is None:
        data += await _more(pod, sock)
    data = data[length:]
    await send_all(engine, sock, bytes((_VERSION, 0)))
    while (request := parse_request(data)) is None:
        data += await _more(pod, sock)
    host, port, length = request
    if len(data) > length:
        raise SocksError("the client sent data before it was answered", 1)
    address = host if _is_address(host) else await _resolve(pod, host)
    await send_all(engine, sock, reply(_SUCCEEDED))
    return address, port


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _resolve(pod: "PodProxy", host: str) -> str:
    workload = await pod.wait_for_workload()
    if workload is not None:
        service = pod.context.state.find_service(host.lower().rstrip("."), workload.namespace)
        if service is not None:
            for vip in service.vips:
                if vip.network == workload.network:
                    return vip.address
    addresses = await pod.context.resolve(host)
    if not addresses:
        raise SocksError(f"the name {host!r} does not resolve", _UNREACHABLE)
    return addresses[0]


async def _more(pod: "PodProxy", sock: socket.socket) -> bytes:
    while True:
        await pod.context.engine.wait(sock.fileno(), select.EPOLLIN)
        try:
            data = sock.recv(1024)
        except BlockingIOError:
            continue
        if not data:
            raise SocksError("the client closed the connection")
        return data
