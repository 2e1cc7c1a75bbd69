"""The DNS listeners of one pod: UDP and TCP."""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence

import dns.rcode
import trio

from ztunnel.dns.forward import Upstream, UpstreamError, read_exactly
from ztunnel.dns.lookup import Client, Family
from ztunnel.dns.message import (
    MAX_MESSAGE_BYTES,
    Question,
    Rejected,
    answer,
    failure,
    read_question,
    truncated,
)
from ztunnel.dns.names import Labels
from ztunnel.dns.observe import DnsObserver
from ztunnel.dns.resolver import Resolver

MAX_FORWARDED = 256  # queries of one pod that wait for upstream at a time
MAX_TCP_CONNECTIONS = 64  # of one pod at a time
TCP_IDLE_SECONDS = 5.0  # between two queries, and for one to arrive or an answer to leave
DESCRIPTORS_EXHAUSTED_SECONDS = 0.1
COMPLAINT_SECONDS = 1.0  # between two warnings of one pod about questions without an answer

log = logging.getLogger("ztunnel.dns")


class DnsServer:
    """Serves one pod.

    Args:
        resolver: answers from the mesh.
        client: gives the pod as it is now, or None while the mesh does not know it.
        wait_for_client: gives it as well, a little later if need be; None then means SERVFAIL.
        upstream: for every name that is not the mesh's.
        observer: is told of each question.
    """

    def __init__(
        self,
        resolver: Resolver,
        client: Callable[[], Client | None],
        wait_for_client: Callable[[], Awaitable[Client | None]],
        upstream: Upstream,
        observer: DnsObserver,
    ) -> None:
        self._resolver = resolver
        self._client = client
        self._wait_for_client = wait_for_client
        self._waiting = 0
        self._upstream = upstream
        self._observer = observer
        self._forwarded = 0
        self._connections = 0
        self._complained_at = -math.inf
        self._silent = 0

    async def serve(
        self, datagrams: Sequence[socket.socket], listeners: Sequence[socket.socket]
    ) -> None:
        """Serve on bound UDP sockets and listening TCP sockets until cancelled; closes them."""
        async with trio.open_nursery() as nursery:
            for sock in datagrams:
                nursery.start_soon(self._serve_datagrams, trio.socket.from_stdlib_socket(sock))
            for sock in listeners:
                nursery.start_soon(self._accept, trio.socket.from_stdlib_socket(sock))

    async def _serve_datagrams(self, sock: trio.socket.SocketType) -> None:
        with sock:
            async with trio.open_nursery() as nursery:
                while True:
                    wire, sender = await sock.recvfrom(MAX_MESSAGE_BYTES)
                    question = self._read(wire, "udp")
                    if isinstance(question, Rejected):
                        if question.response is not None:
                            await _reply(sock, question.response, sender)
                        continue
                    client = self._client()
                    response = None
                    if client is not None:
                        response = self._from_mesh(client, question, question.udp_bytes)
                    if response is not None:
                        await _reply(sock, response, sender)
                    else:
                        nursery.start_soon(self._answer_datagram, sock, wire, question, sender)

    async def _answer_datagram(
        self,
        sock: trio.socket.SocketType,
        wire: bytes,
        question: Question,
        sender: tuple[object, ...],
    ) -> None:
        response = await self._answer(wire, question, "udp", question.udp_bytes)
        if len(response) > question.udp_bytes:
            response = truncated(question)
        await _reply(sock, response, sender)

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        sock, _ = await listener.accept()
                    except OSError as error:
                        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
                            log.error("DNS over TCP cannot accept: %s", error)
                            await trio.sleep(DESCRIPTORS_EXHAUSTED_SECONDS)
                            continue
                        if error.errno == errno.ECONNABORTED:
                            continue
                        raise
                    if self._connections >= MAX_TCP_CONNECTIONS:
                        log.warning(
                            "DNS over TCP: refused a connection, %d are open", self._connections
                        )
                        sock.close()
                        continue
                    self._connections += 1
                    nursery.start_soon(self._serve_connection, trio.SocketStream(sock))

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """Answer one query after the other (RFC 7766 section 6.2.1) until the client is done."""
        try:
            async with stream:
                while True:
                    with trio.fail_after(TCP_IDLE_SECONDS):
                        length = int.from_bytes(await read_exactly(stream, 2), "big")
                        wire = await read_exactly(stream, length)
                    response = await self._answer_stream(wire)
                    if response is None:
                        return
                    with trio.fail_after(TCP_IDLE_SECONDS):
                        await stream.send_all(len(response).to_bytes(2, "big") + response)
        except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("DNS over TCP: connection ended: %s", error or "idle for too long")
        finally:
            self._connections -= 1

    async def _answer_stream(self, wire: bytes) -> bytes | None:
        question = self._read(wire, "tcp")
        if isinstance(question, Rejected):
            return question.response
        return await self._answer(wire, question, "tcp", MAX_MESSAGE_BYTES)

    async def _answer(
        self, wire: bytes, question: Question, protocol: str, max_bytes: int
    ) -> bytes:
        client = self._client() or await self._later()
        if client is None:
            self._complain("DNS query for %s: the mesh does not know this pod", question.name_text)
            return failure(question, dns.rcode.SERVFAIL)
        response = self._from_mesh(client, question, max_bytes)
        if response is not None:
            return response
        return await self._from_upstream(wire, question, protocol, max_bytes)

    async def _later(self) -> Client | None:
        """A pod that has just started asks before the control plane has told of it."""
        if self._waiting >= MAX_FORWARDED:
            return None
        self._waiting += 1
        try:
            return await self._wait_for_client()
        finally:
            self._waiting -= 1

    def _read(self, wire: bytes, protocol: str) -> Question | Rejected:
        question = read_question(wire)
        if isinstance(question, Rejected):
            log.debug("DNS query turned down: %s", question.reason)
        else:
            self._observer.request(question.type_name, protocol)
        return question

    def _from_mesh(self, client: Client, question: Question, max_bytes: int) -> bytes | None:
        """The answer where the mesh has one, None to ask upstream."""
        if question.name is None or question.family is None:
            return None
        try:
            return self._mesh_answer(client, question, question.name, question.family, max_bytes)
        except Exception:  # one question must not cost the pod its DNS
            log.exception("DNS query for %s could not be answered", question.name_text)
            return failure(question, dns.rcode.SERVFAIL)

    def _mesh_answer(
        self, client: Client, question: Question, name: Labels, family: Family, max_bytes: int
    ) -> bytes | None:
        found = self._resolver.resolve(client, name, family)
        if found is None:
            return None
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "DNS query from %s for %s %s: service %s, %s",
                client.namespace,
                question.type_name,
                question.name_text,
                found.service,
                ", ".join(found.addresses) or "no address of this family",
            )
        return answer(question, found.addresses, found.alias, max_bytes)

    async def _from_upstream(
        self, wire: bytes, question: Question, protocol: str, max_bytes: int
    ) -> bytes:
        kind = question.type_name
        if self._forwarded >= MAX_FORWARDED:
            self._complain(
                "DNS query for %s refused: %d queries of this pod wait for upstream already",
                question.name_text,
                self._forwarded,
            )
            self._observer.upstream_failure(kind, protocol)
            return failure(question, dns.rcode.SERVFAIL)
        self._forwarded += 1
        self._observer.upstream_request(kind, protocol)
        started = trio.current_time()
        try:
            response = await self._upstream.ask(wire, protocol == "tcp", max_bytes)
        except UpstreamError as error:
            self._complain("DNS query for %s failed upstream: %s", question.name_text, error)
            self._observer.upstream_failure(kind, protocol)
            return failure(question, dns.rcode.SERVFAIL)
        finally:
            self._forwarded -= 1
        self._observer.upstream_answer(kind, protocol, trio.current_time() - started)
        return response

    def _complain(self, text: str, *values: object) -> None:
        """A warning, but not one for each question of a flood."""
        now = trio.current_time()
        if now - self._complained_at < COMPLAINT_SECONDS:
            self._silent += 1
            log.debug(text, *values)
            return
        unsaid = f" ({self._silent} more like this before)" if self._silent else ""
        self._complained_at, self._silent = now, 0
        log.warning(text + "%s", *values, unsaid)


async def _reply(sock: trio.socket.SocketType, response: bytes, sender: tuple[object, ...]) -> None:
    try:
        await sock.sendto(response, sender)
    except OSError as error:
        log.debug("DNS answer to %s not sent: %s", sender, error)
