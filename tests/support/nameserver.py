"""A nameserver of the real DNS, inside a namespace, that a test tells what to say."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import trio

from tests.support.sockets import receive_exactly
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.sockets import listen_tcp, udp

SILENT = "silent"
REFUSED = "refused"
NODATA = "nodata"


class Nameserver:
    """Answers A questions over UDP and TCP.

    Attributes:
        zone: lower-case name without the last dot -> addresses, or one of the words above. What is
            not here is NXDOMAIN.
        asked: (name, type, "udp" or "tcp", address of who asked), in order.
    """

    def __init__(self, network: NetworkNamespace, address: str) -> None:
        self.zone: dict[str, list[str] | str] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self._udp = trio.socket.from_stdlib_socket(udp(address, 53, namespace=network))
        self._tcp = trio.SocketListener(
            trio.socket.from_stdlib_socket(listen_tcp(address, 53, namespace=network))
        )

    def close(self) -> None:
        """Idempotent."""
        self._udp.close()
        self._tcp.socket.close()

    async def run(self) -> None:
        """Serves until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._stream, [self._tcp])
            with self._udp:
                while True:
                    wire, sender = await self._udp.recvfrom(65535)
                    answer = self._answer(wire, "udp", sender[0])
                    if answer is not None:
                        await self._udp.sendto(answer, sender)

    async def _stream(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                while True:
                    length = int.from_bytes(await receive_exactly(stream, 2), "big")
                    wire = await receive_exactly(stream, length)
                    answer = self._answer(wire, "tcp", stream.socket.getpeername()[0])
                    if answer is not None:
                        await stream.send_all(len(answer).to_bytes(2, "big") + answer)
        except (EOFError, trio.BrokenResourceError):
            return

    def _answer(self, wire: bytes, protocol: str, sender: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, question.rdtype.name, protocol, sender))
        found = self.zone.get(name)
        if found == SILENT:
            return None
        response = dns.message.make_response(query)
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif found == REFUSED:
            response.set_rcode(dns.rcode.REFUSED)
        elif isinstance(found, list) and question.rdtype.name == "A":
            response.answer.append(dns.rrset.from_text_list(question.name, 7, "IN", "A", found))
        limit = 65535 if protocol == "tcp" else max(query.payload, 512)
        whole = response.to_wire()
        if len(whole) <= limit:
            return whole
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()
