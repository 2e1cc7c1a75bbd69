"""The SOCKS5 entry (RFC 1928): connections that a pod asks for instead of being captured.

Off by default. Without authentication, CONNECT only, by address or by a name
that the mesh or DNS knows. The answer comes when the connection has been made,
or could not be.
"""

import errno
import ipaddress
import select
import socket
import struct
from typing import Final

import trio

from ztunnel.dns.lookup import Family
from ztunnel.dns.names import labels
from ztunnel.hbone.events import TunnelRefused
from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.address import canonical_ip
from ztunnel.mesh.inbound import UNAUTHORIZED
from ztunnel.proxy.handshake import send_all
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.outbound import Outbound
from ztunnel.relay.flow import Flow
from ztunnel.telemetry.labels import CONNECT, DENY, NETWORK_POLICY

_TIME: Final = 10.0  # seconds for the client to say what it wants
_VERSION: Final = 5
_CONNECT: Final = 1
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_SUCCEEDED: Final = 0
_FAILED: Final = 1
_NOT_ALLOWED: Final = 2
_NETWORK_UNREACHABLE: Final = 3
_UNREACHABLE: Final = 4
_REFUSED: Final = 5
_NO_COMMAND: Final = 7
_NO_ADDRESS_TYPE: Final = 8
_NO_METHOD: Final = bytes((_VERSION, 0xFF))

_CODES: Final = {
    errno.ECONNREFUSED: _REFUSED,
    errno.ENETUNREACH: _NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: _UNREACHABLE,
    errno.ETIMEDOUT: _UNREACHABLE,
}


class SocksError(Exception):
    """The client cannot be served; `answer` is what to tell it, if anything."""

    def __init__(self, words: str, answer: bytes = b"") -> None:
        super().__init__(words)
        self.answer = answer


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
        raise SocksError("the client offers no method without authentication", _NO_METHOD)
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
        raise SocksError(f"command {command} is not CONNECT", reply(_NO_COMMAND))
    size = {_IPV4: 4, _IPV6: 16, _NAME: 1 + first}.get(kind)
    if size is None:
        raise SocksError(f"address type {kind} is unknown", reply(_NO_ADDRESS_TYPE))
    end = 4 + size
    if len(data) < end + 2:
        return None
    (port,) = struct.unpack_from("!H", data, end)
    if kind == _NAME:
        try:
            return data[5:end].decode("ascii"), port, end + 2
        except UnicodeDecodeError:
            raise SocksError("the host name is not ASCII", reply(_UNREACHABLE)) from None
    return canonical_ip(str(ipaddress.ip_address(data[4:end]))), port, end + 2


def reply(code: int) -> bytes:
    """An answer without a bound address."""
    return bytes((_VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))


class SocksOutbound(Outbound):
    """A connection whose client is told how it went."""

    __slots__ = ("_code",)

    def __init__(
        self,
        pod: LocalPod,
        sock: socket.socket,
        client: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        super().__init__(pod, sock, client, destination)
        self._code = 0

    def running(self, flow: Flow) -> None:
        """The answer goes out before the first byte from the other end does."""
        _answer(self._sock, reply(_SUCCEEDED))
        super().running(flow)

    def refused(self, event: TunnelRefused) -> None:
        """A policy said no, or the application could not be reached."""
        self._code = _NOT_ALLOWED if event.status == UNAUTHORIZED else _UNREACHABLE
        super().refused(event)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        if error is not None:
            self._code = _CODES.get(error.errno or 0, _FAILED)
        super()._connected(sock, error)

    def _refuse_early(self, reason: str) -> None:
        _answer(self._sock, reply(_FAILED))
        super()._refuse_early(reason)

    def _give_up(self, flags: str, reason: str) -> None:
        code = _NOT_ALLOWED if flags == DENY else self._code
        if not code:
            code = _UNREACHABLE if flags in (CONNECT, NETWORK_POLICY) else _FAILED
        _answer(self._sock, reply(code))
        super()._give_up(flags, reason)


def _answer(sock: socket.socket, data: bytes) -> None:
    """A few bytes, which always find room. A client that has gone already will not miss them."""
    try:
        sock.send(data)
    except OSError:
        pass


def accept_socks(pod: LocalPod, sock: socket.socket, client: SocketAddress) -> None:
    """A connection to the SOCKS5 port."""
    pod.context.spawn(_serve, pod, sock, client)


async def _serve(pod: LocalPod, sock: socket.socket, client: SocketAddress) -> None:
    try:
        with trio.fail_after(_TIME):
            destination = await _negotiate(pod, sock)
    except trio.TooSlowError:
        _refuse(pod, sock, client, "the client did not finish the SOCKS5 handshake in time")
        return
    except (SocksError, OSError) as error:
        if isinstance(error, SocksError):
            _answer(sock, error.answer)
        _refuse(pod, sock, client, f"SOCKS5: {error}")
        return
    except BaseException:
        pod.context.engine.close_later(sock)
        raise
    SocksOutbound(pod, sock, client, destination).start()


def _refuse(pod: LocalPod, sock: socket.socket, client: SocketAddress, reason: str) -> None:
    pod.context.engine.close_later(sock)
    pod.context.refused(client, ("127.0.0.1", 15080), False, "socks", reason)


async def _negotiate(pod: LocalPod, sock: socket.socket) -> SocketAddress:
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
        raise SocksError("the client sent data before it was answered", reply(_FAILED))
    return await _address(pod, host), port


async def _address(pod: LocalPod, host: str) -> str:
    """An address, an own name of the mesh, or one of the real DNS."""
    try:
        return canonical_ip(host)
    except ValueError:
        pass  # it is a name
    await pod.wait_for_workload()
    client = pod.dns_client()
    if client is not None and (name := labels(host)):
        known = False
        for family in (Family.IPV4, Family.IPV6):
            answer = pod.resolver.resolve(client, name, family)
            known = known or answer is not None
            if answer is not None and answer.addresses:
                return answer.addresses[0]
        if known:
            raise SocksError(f"{host!r} has no address in the mesh", reply(_UNREACHABLE))
    addresses = await pod.context.resolve(host)
    if not addresses:
        raise SocksError(f"the name {host!r} does not resolve", reply(_UNREACHABLE))
    return addresses[0]


async def _more(pod: LocalPod, sock: socket.socket) -> bytes:
    while True:
        await pod.context.engine.wait(sock.fileno(), select.EPOLLIN)
        try:
            data = sock.recv(1024)
        except BlockingIOError:
            continue
        if not data:
            raise SocksError("the client closed the connection")
        return data
