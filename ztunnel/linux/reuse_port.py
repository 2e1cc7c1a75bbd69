"""Which of the sockets that listen on one port gets a new connection.

Sockets that share a port with SO_REUSEPORT form a group, and Linux picks one of them for each new
connection by a hash of its addresses. A program in front of the group (socket(7),
SO_ATTACH_REUSEPORT_CBPF) picks instead; ours is one instruction of classic BPF, which needs no
privilege. Either setting belongs to the group, whichever of its sockets it is made on.
"""

import ctypes
import errno
import socket
import struct
from typing import Final

_ATTACH: Final = 51  # SO_ATTACH_REUSEPORT_CBPF of <asm-generic/socket.h>
_DETACH: Final = 68  # SO_DETACH_REUSEPORT_BPF
_RETURN: Final = 0x06  # BPF_RET | BPF_K of <linux/bpf_common.h>


def gather(sock: socket.socket) -> None:
    """New connections go to the first socket of the group.

    The first is the one that has listened longest; when it is closed, the last takes its place.
    Raises OSError.
    """
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, 0))
    # struct sock_fprog, aligned as the machine aligns a pointer.
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH, program)


def spread(sock: socket.socket) -> None:
    """New connections are spread over the group by their addresses. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # there was no program
            raise
