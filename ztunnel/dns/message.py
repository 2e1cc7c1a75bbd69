"""DNS messages (RFC 1035, RFC 6891): strict reading of questions, and writing of answers.

Reading never raises: what cannot be read is answered with FORMERR where there is a header to
answer to, and with silence where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ztunnel.dns.lookup import Family
from ztunnel.dns.names import Labels

HEADER_BYTES = 12
MAX_MESSAGE_BYTES = 65535
MIN_UDP_BYTES = 512  # RFC 1035 section 4.2.1: what a client without EDNS can take
MAX_UDP_BYTES = 4096  # we never send more in one datagram, whatever the client says
TTL_SECONDS = 30
RECORD_BYTES = 12  # pointer to the owner's name, type, class, TTL and length

_QR = 0x8000
_ADDRESS_BYTES = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 16}
_FAMILIES = {dns.rdatatype.A: Family.IPV4, dns.rdatatype.AAAA: Family.IPV6}


@dataclass(frozen=True, slots=True)
class Question:
    """A query that can be answered: one question, in the class IN or another."""

    message: dns.message.Message
    name: Labels | None
    family: Family | None

    @property
    def type_name(self) -> str:
        """The record type in lower case, as the metrics have it."""
        return dns.rdatatype.to_text(self.message.question[0].rdtype).lower()

    @property
    def name_text(self) -> str:
        return self.message.question[0].name.to_text()

    @property
    def udp_bytes(self) -> int:
        """The longest answer that the client takes in a datagram (RFC 6891 section 6.2.3)."""
        if self.message.edns < 0:
            return MIN_UDP_BYTES
        return min(max(self.message.payload, MIN_UDP_BYTES), MAX_UDP_BYTES)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is no question: what to send back (None: nothing), and why."""

    response: bytes | None
    reason: str


def read_question(wire: bytes) -> Question | Rejected:
    """Read a client's message.

    Returns:
        The question, or how to turn the message down: a message shorter than a header is dropped,
        an opcode other than QUERY gets NOTIMP, all else that is not one well-formed question gets
        FORMERR, an EDNS version that is not 0 gets BADVERS.
    """
    if len(wire) < HEADER_BYTES:
        return Rejected(None, "shorter than a DNS header")
    flags = int.from_bytes(wire[2:4], "big")
    if flags & _QR:
        return Rejected(_bare(wire, dns.rcode.FORMERR), "a response where a query was expected")
    opcode = dns.opcode.from_flags(flags)
    if opcode != dns.opcode.QUERY:
        return Rejected(_bare(wire, dns.rcode.NOTIMP), f"opcode {int(opcode)}, only QUERY is known")
    try:
        message = dns.message.from_wire(wire, keyring=False)  # signatures are upstream's
    except (dns.exception.DNSException, ValueError, IndexError, KeyError) as error:
        reason = f"malformed: {error or type(error).__name__}"
        return Rejected(_bare(wire, dns.rcode.FORMERR), reason)
    if len(message.question) != 1 or int.from_bytes(wire[4:6], "big") != 1:
        return Rejected(_bare(wire, dns.rcode.FORMERR), "not exactly one question")
    if message.edns > 0:
        response = _response_to(message)
        response.set_rcode(dns.rcode.BADVERS)
        return Rejected(response.to_wire(), f"EDNS version {message.edns}, only 0 is known")
    question = message.question[0]
    family = None
    if question.rdclass == dns.rdataclass.IN:
        family = {dns.rdatatype.A: Family.IPV4, dns.rdatatype.AAAA: Family.IPV6}.get(
            question.rdtype
        )
    return Question(message, _plain_labels(question.name), family)


def answer(
    question: Question, addresses: tuple[str, ...], alias: Labels | None, max_bytes: int
) -> bytes:
    """An authoritative answer from the mesh.

    Addresses that do not fit into `max_bytes` are left out, and the TC bit says so: the client
    asks again over TCP.
    """
    response = _response_to(question.message)
    response.flags |= dns.flags.AA
    asked = question.message.question[0]
    if not addresses:
        return response.to_wire()
    owner = asked.name
    if alias is not None:
        owner = dns.name.Name([*(label.encode() for label in alias), b""])
        response.answer.append(
            dns.rrset.from_text(
                asked.name, TTL_SECONDS, dns.rdataclass.IN, dns.rdatatype.CNAME, owner.to_text()
            )
        )
    limit = min(max(max_bytes, MIN_UDP_BYTES), MAX_MESSAGE_BYTES)
    # The owner's name stands in the message already, so each record has a pointer to it.
    room = (limit - len(response.to_wire())) // (RECORD_BYTES + _ADDRESS_BYTES[asked.rdtype])
    if room < 1:
        return truncated(question)  # not even the names fit: they may have 255 bytes each
    if room < len(addresses):
        response.flags |= dns.flags.TC
        addresses = addresses[:room]
    records = dns.rrset.RRset(owner, dns.rdataclass.IN, asked.rdtype)
    for address in addresses:
        records.add(dns.rdata.from_text(dns.rdataclass.IN, asked.rdtype, address), TTL_SECONDS)
    response.answer.append(records)
    return response.to_wire(max_size=limit)


def failure(question: Question, rcode: dns.rcode.Rcode) -> bytes:
    """An answer that carries nothing but a response code."""
    response = _response_to(question.message)
    response.set_rcode(rcode)
    return response.to_wire()


def answers(query: bytes, response: bytes) -> bool:
    """Whether an upstream's message is the answer to `query`: same identifier, same question.

    Anything else is somebody's guess at the identifier, or an answer that came too late.
    """
    if len(response) < HEADER_BYTES or response[:2] != query[:2] or not response[2] & 0x80:
        return False
    questions = int.from_bytes(response[4:6], "big")
    if questions == 0:
        # A server that could not read the query, or will not answer it, may leave it out.
        return int(dns.rcode.from_flags(int.from_bytes(response[2:4], "big"), 0)) != 0
    end = _question_end(query)
    if questions != 1 or end is None or len(response) < end:
        return False
    return query[HEADER_BYTES:end].lower() == response[HEADER_BYTES:end].lower()


def is_truncated(response: bytes) -> bool:
    return bool(response[2] & 0x02)


def truncated(question: Question) -> bytes:
    """An empty answer with the TC bit: ask again over TCP."""
    response = _response_to(question.message)
    response.flags |= dns.flags.TC
    return response.to_wire()


def _bare(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header that turns `wire` down, with its identifier, opcode and RD and no section."""
    flags = int.from_bytes(wire[2:4], "big") & 0x7900
    return wire[:2] + (flags | _QR | int(rcode)).to_bytes(2, "big") + bytes(8)


def _response_to(query: dns.message.Message) -> dns.message.Message:
    response = dns.message.Message(query.id)
    response.flags = dns.flags.QR | dns.flags.RA | (query.flags & (dns.flags.RD | dns.flags.CD))
    response.question = list(query.question)
    if query.edns >= 0:
        payload = min(max(query.payload, MIN_UDP_BYTES), MAX_UDP_BYTES)
        response.use_edns(0, query.ednsflags & dns.flags.DO, payload)
    return response


def _plain_labels(name: dns.name.Name) -> Labels | None:
    """The labels in lower case, or None for the root and names that no service can have."""
    found = []
    for label in name.labels[:-1]:
        if not label.isascii() or b"." in label:
            return None
        found.append(label.decode("ascii").lower())
    return tuple(found) or None


def _question_end(wire: bytes) -> int | None:
    """Where the first question of a message ends; None where its name is compressed or broken."""
    position = HEADER_BYTES
    while position < len(wire):
        length = wire[position]
        if length == 0:
            return position + 5
        if length > 63:
            return None
        position += 1 + length
    return None
