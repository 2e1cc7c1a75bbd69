"""The traffic secrets of our own handshakes, by way of memory.

Python's `ssl` gives secrets only as lines appended to a key log file (the format is that of
draft-ietf-tls-keylogfile). The file here is a memfd without a name, and lines stay in it only as
long as one `do_handshake` call takes. They must be taken after every such call, not when
the handshake completes: a server's first application secret is written a round trip before
that, and whoever wipes the file in between takes it away from the other handshakes.
"""

import functools
import os
import threading


class KeyLog:
    """One memfd for all contexts of a process.

    Attributes:
        path: what `SSLContext.keylog_filename` is to be set to.
        lock: to be held from before `do_handshake` until `take` has returned, so that lines of
            two threads never mix.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("tls-secrets", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"
        self.lock = threading.Lock()

    def take(self, client_random: str, secrets: dict[str, bytes]) -> None:
        """File the lines written so far under their labels, and wipe them from the memfd.

        Args:
            client_random: whose lines to take, 64 hexadecimal digits. Others cannot be there
                as long as everybody keeps to the lock; if they are, they are dropped.
            secrets: label (`CLIENT_TRAFFIC_SECRET_0`, …) to secret; added to.
        """
        offset = 0
        text = b""
        while chunk := os.pread(self._fd, 65536, offset):
            text += chunk
            offset += len(chunk)
        if not text:
            return
        # OpenSSL appends, so that after this it writes at offset 0 again.
        os.ftruncate(self._fd, 0)
        for line in text.decode("ascii").splitlines():
            fields = line.split(" ")
            if len(fields) == 3 and fields[1] == client_random:
                secrets[fields[0]] = bytes.fromhex(fields[2])


@functools.cache
def shared_key_log() -> KeyLog:
    """The process's key log, made when first needed."""
    return KeyLog()


def client_random(wire: bytes) -> str | None:
    """The random of the ClientHello at the start of a connection, in hexadecimal.

    Args:
        wire: the connection's first bytes as sent by the client (RFC 8446 sections 4.1.2, 5.1).

    Returns:
        None if it is not all there yet, or is no ClientHello: OpenSSL will tell.
    """
    message = b""
    position = 0
    # Type 1, length 3, legacy_version 2, random 32; the message may come in several records.
    while len(message) < 38 and len(wire) - position >= 5 and wire[position] == 22:
        size = int.from_bytes(wire[position + 3 : position + 5], "big")
        message += wire[position + 5 : position + 5 + size]
        position += 5 + size
    if len(message) < 38 or message[0] != 1:
        return None
    return message[6:38].hex()
