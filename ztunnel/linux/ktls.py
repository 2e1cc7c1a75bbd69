"""TLS 1.3 records by the kernel (kTLS): Documentation/networking/tls.rst, linux/tls.h.

A socket is made ready by `attach`, which changes nothing yet; each direction is handed over by
`set_keys`, from a record boundary on. What is written then is plain and what is read is plain.
Records that are not data (alerts, handshake messages) have a control message that names their
type, and reading one without room for it fails with EIO.
"""

import socket
import struct
from typing import Final, NamedTuple

ALERT: Final = 21
HANDSHAKE: Final = 22
DATA: Final = 23

_TCP_ULP: Final = 31
_SOL_TLS: Final = 282
_TX, _RX = 1, 2
_SET_RECORD_TYPE: Final = 1
_GET_RECORD_TYPE: Final = 2
_TLS_1_3: Final = 0x0304
_SALT: Final = 4

_SPACE: Final = socket.CMSG_SPACE(1)


class _Cipher(NamedTuple):
    number: int
    key: int  # bytes
    salt: int  # bytes of the IV that come behind the key

    @property
    def layout(self) -> struct.Struct:
        return struct.Struct(f"=HH{12 - self.salt}s{self.key}s{self.salt}s8s")


_CIPHERS: Final = {
    "TLS_AES_128_GCM_SHA256": _Cipher(51, 16, _SALT),
    "TLS_AES_256_GCM_SHA384": _Cipher(52, 32, _SALT),
    "TLS_CHACHA20_POLY1305_SHA256": _Cipher(54, 32, 0),
}


def attach(sock: socket.socket) -> None:
    """Puts the TLS layer on a connected TCP socket; bytes pass through it as before.

    Raises OSError: ENOENT where the kernel has no `tls` module, EEXIST when it is there already.
    """
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")


def set_keys(
    sock: socket.socket, suite: str, key: bytes, iv: bytes, sequence: int, *, sending: bool
) -> None:
    """Hands one direction over, or goes on under its next key (Linux 6.14).

    Args:
        suite: name of the cipher suite.
        iv: 12 bytes.
        sequence: number of the next record under this key.
        sending: which direction.

    Raises:
        OSError: EINVAL, ENOENT for a cipher that the kernel does not have; EBUSY where it cannot
            change a key.
    """
    cipher = _CIPHERS.get(suite)
    if cipher is None:
        raise OSError(95, f"the kernel does not know {suite}")
    salt = cipher.salt
    info = cipher.layout.pack(
        _TLS_1_3, cipher.number, iv[salt:], key, iv[:salt], sequence.to_bytes(8, "big")
    )
    sock.setsockopt(_SOL_TLS, _TX if sending else _RX, info)


def records_used(sock: socket.socket, suite: str, *, sending: bool) -> int:
    """The number of the next record of a direction. Raises OSError (EBUSY: not handed over)."""
    layout = _CIPHERS[suite].layout
    info = sock.getsockopt(_SOL_TLS, _TX if sending else _RX, layout.size)
    return int.from_bytes(layout.unpack(info)[5], "big")


def send_control(sock: socket.socket, kind: int, content: bytes) -> None:
    """Sends one record that is not data. Raises OSError; BlockingIOError when it must wait."""
    sock.sendmsg([content], [(_SOL_TLS, _SET_RECORD_TYPE, bytes((kind,)))])


def receive(sock: socket.socket, buffer: memoryview) -> tuple[int, int]:
    """Reads data, or one record of another kind: (its type, bytes). Raises OSError.

    (DATA, 0) is the end of the stream. A record longer than the buffer is given in parts.
    """
    count, ancillary, _, _ = sock.recvmsg_into([buffer], _SPACE)
    for level, name, value in ancillary:
        if level == _SOL_TLS and name == _GET_RECORD_TYPE:
            return value[0], count
    return DATA, count
