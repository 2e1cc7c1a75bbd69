"""Asking the nameservers of resolv.conf on behalf of a pod.

A query is passed on byte for byte but for its identifier, so that EDNS options and DNSSEC records
reach both ends untouched. Each try has a socket, a source port and an identifier of its own
(RFC 5452 section 9: what a blind forger has to guess).
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

import dns.rcode
import trio

from ztunnel.dns.message import MAX_MESSAGE_BYTES, answers, is_truncated
from ztunnel.dns.resolv_conf import ResolvConf

CONNECT_SECONDS = 5.0

SocketFactory = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]
"""Makes a socket of that family and kind where the query has to leave from: marked, and in the
pod's network namespace. Raises OSError."""

_TRY_ANOTHER = frozenset({dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED})


class UpstreamError(Exception):
    """No nameserver gave an answer; the text says what became of each try."""


class Upstream:
    """The nameservers behind the proxy.

    A nameserver that fails is not asked first again until another one fails: clients give up
    before a dead server has timed out twice.
    """

    def __init__(self, conf: ResolvConf, open_socket: SocketFactory) -> None:
        self._conf = conf
        self._open_socket = open_socket
        self._first = 0

    async def ask(self, query: bytes, over_tcp: bool, max_bytes: int) -> bytes:
        """The answer to `query`, under its identifier.

        Args:
            query: a well-formed query in wire form.
            over_tcp: ask by TCP only, as the client did.
            max_bytes: what the client can take: a whole answer that TCP brought after a truncated
                datagram is used when it fits, else the truncated one, for the client to retry.

        Raises:
            UpstreamError: nobody answered in time.
        """
        servers = self._conf.nameservers
        if not servers:
            raise UpstreamError("resolv.conf names no nameserver")
        first = self._first
        unwilling: bytes | None = None
        failures: list[str] = []
        for _ in range(self._conf.attempts):
            for offset in range(len(servers)):
                index = (first + offset) % len(servers)
                address, port = servers[index]
                try:
                    response = await self._exchange(servers[index], query, over_tcp, max_bytes)
                except trio.TooSlowError:
                    failures.append(f"{address}:{port} did not answer")
                except (OSError, EOFError) as error:
                    failures.append(f"{address}:{port}: {error}")
                else:
                    if response[3] & 0x0F not in _TRY_ANOTHER:
                        return response
                    unwilling = response
                if self._first == index:
                    self._first = (index + 1) % len(servers)
            if unwilling is not None:
                return unwilling
        raise UpstreamError("; ".join(failures))

    async def _exchange(
        self, server: tuple[str, int], query: bytes, over_tcp: bool, max_bytes: int
    ) -> bytes:
        if over_tcp:
            return await self._by_tcp(server, query)
        response = await self._by_udp(server, query)
        if is_truncated(response):
            try:
                whole = await self._by_tcp(server, query)
            except (OSError, EOFError, trio.TooSlowError):
                return response  # the client may retry by TCP itself
            if len(whole) <= max_bytes:
                return whole
        return response

    async def _by_udp(self, server: tuple[str, int], query: bytes) -> bytes:
        ours = secrets.token_bytes(2) + query[2:]
        with trio.fail_after(self._conf.timeout), self._socket(server, socket.SOCK_DGRAM) as sock:
            await sock.connect(server)
            await sock.send(ours)
            while True:
                response = await sock.recv(MAX_MESSAGE_BYTES)
                if answers(ours, response):
                    return query[:2] + response[2:]

    async def _by_tcp(self, server: tuple[str, int], query: bytes) -> bytes:
        ours = secrets.token_bytes(2) + query[2:]
        with self._socket(server, socket.SOCK_STREAM) as sock:
            with trio.fail_after(CONNECT_SECONDS):
                await sock.connect(server)
            stream = trio.SocketStream(sock)
            with trio.fail_after(self._conf.timeout):
                await stream.send_all(len(ours).to_bytes(2, "big") + ours)
                length = int.from_bytes(await read_exactly(stream, 2), "big")
                response = await read_exactly(stream, length)
            if not answers(ours, response):
                raise OSError("the answer is to another question")
            return query[:2] + response[2:]

    def _socket(self, server: tuple[str, int], kind: socket.SocketKind) -> trio.socket.SocketType:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        return trio.socket.from_stdlib_socket(self._open_socket(family, kind))


async def read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """Read `count` bytes. Raises EOFError when the stream ends before, OSError when it breaks."""
    found = bytearray()
    while len(found) < count:
        try:
            chunk = await stream.receive_some(count - len(found))
        except trio.BrokenResourceError as error:
            raise OSError(f"connection broken: {error.__cause__}") from error
        if not chunk:
            raise EOFError(f"connection closed after {len(found)} of {count} bytes")
        found += chunk
    return bytes(found)
