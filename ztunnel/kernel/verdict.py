"""The program that moves bytes between two joined sockets.

It runs for every packet that arrives at a socket of the map, and either
redirects it to the other socket, or passes it to the reader in user space:

- A FIN without bytes is dropped: redirected, it would make the other socket
  fail with EPIPE. User space sees the end of the stream by itself.
- Each packet is taken off a *credit*; when that is spent, packets pass. Without
  it nothing held a sender up whose reader stops: the packets would wait in
  the kernel, without bound. A packet of one byte costs the kernel about a
  kilobyte, so packets are charged, not bytes alone.
- Once one packet has passed, all that follow do, until user space has read
  exactly those: `expected` says how many bytes have passed by its count, and
  while `passed` differs nothing is redirected. So no byte overtakes another.
- The first packet to pass puts the number of its leg into a ring, because a
  socket whose packets are redirected must not wake its reader.
"""

import struct
from typing import Final

from ztunnel.kernel.assembler import FP, R0, R1, R2, R3, R4, R6, R7, R8, WORD, Assembler

# Fields of a leg, 8 bytes each, in an array that both sides map. The program writes the first
# three, user space the others.
PASSED: Final = 0  # bytes handed to user space
REDIRECTED: Final = 1  # bytes handed to the other socket
CHARGED: Final = 2  # what has been taken off credits
EXPECTED: Final = 3  # bytes that user space knows to have passed
LIMIT: Final = 4  # redirect while less than this is charged
FIELDS: Final = 8  # a cache line
LEG: Final = struct.Struct(f"={FIELDS}Q")

PACKET: Final = 1024  # bytes charged for a packet whatever its length

_DROP: Final = 0  # SK_DROP
_PASS: Final = 1  # SK_PASS

# Helpers, in the order of linux/bpf.h.
_MAP_LOOKUP: Final = 1
_SOCKET_COOKIE: Final = 46
_REDIRECT_HASH: Final = 72
_RING_OUTPUT: Final = 130

_LENGTH: Final = 0  # offset in struct __sk_buff
_COOKIE: Final = -8  # on the stack
_NUMBER: Final = -12


def verdict(peers: int, numbers: int, legs: int, ring: int) -> bytes:
    """The program.

    Args: descriptors of maps.
        peers: cookie of a socket to the socket that it is joined with.
        numbers: cookie of a socket to the number of its leg.
        legs: the array of legs.
        ring: gets the number of a leg when its packets begin to pass.
    """
    code = Assembler()
    code.copy(R6, R1)
    code.load(R7, R6, _LENGTH, WORD)
    code.jump_if_value(R7, "==", 0, "drop")
    code.call(_SOCKET_COOKIE)
    code.store(FP, _COOKIE, R0)
    code.load_map(R1, numbers)
    code.copy(R2, FP)
    code.add_value(R2, _COOKIE)
    code.call(_MAP_LOOKUP)
    code.jump_if_value(R0, "==", 0, "pass")
    code.load(R1, R0, 0, WORD)
    code.store(FP, _NUMBER, R1, WORD)
    code.load_map(R1, legs)
    code.copy(R2, FP)
    code.add_value(R2, _NUMBER)
    code.call(_MAP_LOOKUP)
    code.jump_if_value(R0, "==", 0, "pass")
    code.copy(R8, R0)
    code.load(R1, R8, PASSED * 8)
    code.load(R2, R8, EXPECTED * 8)
    code.jump_if(R1, "!=", R2, "count")
    code.load(R3, R8, CHARGED * 8)
    code.load(R4, R8, LIMIT * 8)
    code.jump_if(R3, ">=", R4, "first")
    code.add(R3, R7)
    code.add_value(R3, PACKET)
    code.store(R8, CHARGED * 8, R3)
    code.load(R1, R8, REDIRECTED * 8)
    code.add(R1, R7)
    code.store(R8, REDIRECTED * 8, R1)
    code.copy(R1, R6)
    code.load_map(R2, peers)
    code.copy(R3, FP)
    code.add_value(R3, _COOKIE)
    code.set(R4, 0)
    code.call(_REDIRECT_HASH)
    code.exit()
    code.label("first")
    code.load_map(R1, ring)
    code.copy(R2, FP)
    code.add_value(R2, _NUMBER)
    code.set(R3, 4)
    code.set(R4, 0)
    code.call(_RING_OUTPUT)
    code.label("count")
    code.load(R1, R8, PASSED * 8)
    code.add(R1, R7)
    code.store(R8, PASSED * 8, R1)
    code.label("pass")
    code.set(R0, _PASS)
    code.exit()
    code.label("drop")
    code.set(R0, _DROP)
    code.exit()
    return code.assemble()
