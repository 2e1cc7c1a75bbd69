"""Connects and shakes hands, as a trio task in the engine's epoll."""

import os
import select
import socket

import trio

from ztunnel.relay.engine import Engine
from ztunnel.tls.errors import TlsError
from ztunnel.tls.handshake import Handshake, HandshakeResult

_READ = 65536


async def connected(engine: Engine, sock: socket.socket) -> None:
    """Waits until a non-blocking connect has ended. Raises OSError as it failed."""
    await engine.wait(sock.fileno(), select.EPOLLOUT)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def send_all(engine: Engine, sock: socket.socket, data: bytes) -> None:
    """Sends everything. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await engine.wait(sock.fileno(), select.EPOLLOUT)


async def shake_hands(engine: Engine, sock: socket.socket, handshake: Handshake) -> HandshakeResult:
    """Drives a TLS handshake to its end. No time limit: the caller sets one.

    Raises:
        TlsError: it failed; the peer was told why.
        OSError: the connection broke.
    """
    handshake.start()
    while True:
        data = handshake.outgoing()
        if data:
            await send_all(engine, sock, data)
        if handshake.done:
            return handshake.result
        await engine.wait(sock.fileno(), select.EPOLLIN)
        try:
            received = sock.recv(_READ)
        except BlockingIOError:
            continue
        try:
            if received:
                handshake.feed(received)
            else:
                handshake.feed_eof()
        except TlsError as error:
            if error.reply:
                with trio.move_on_after(1), trio.CancelScope(shield=True):
                    try:
                        await send_all(engine, sock, error.reply)
                    except OSError:
                        pass  # it is gone; the failure itself is what counts
            raise
