"""Applications of a test: trio sockets inside the network namespaces of pods."""

import errno
import random
import socket
import struct
from collections.abc import Callable

import trio

from ztunnel.linux.netns import NetworkNamespace, sysctl

Stream = trio.SocketStream


def buffers_of_a_pair() -> int:
    """Bytes that the two sockets of one direction may hold at most, as the kernel adapts them."""
    return sum(int(sysctl(f"net.ipv4.tcp_{way}mem").split()[2]) for way in "rw")


async def connect(
    network: NetworkNamespace, host: str, port: int, *, seconds: float = 60
) -> trio.SocketStream:
    """A connection from inside the namespace. Raises OSError as the application would see it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.from_stdlib_socket(network.socket(family, socket.SOCK_STREAM))
    try:
        with trio.fail_after(seconds):
            await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def listen(network: NetworkNamespace, port: int, host: str = "0.0.0.0") -> trio.SocketListener:
    """A listener inside the namespace."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = network.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(2048)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    """`count` bytes. Raises EOFError when the stream ends before."""
    data = bytearray()
    while len(data) < count:
        some = await stream.receive_some(count - len(data))
        if not some:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += some
    return bytes(data)


async def ask(stream: trio.SocketStream, text: bytes = b"hello") -> bytes:
    """What an echo gives back. Raises trio.BrokenResourceError, EOFError."""
    with trio.fail_after(30):
        await stream.send_all(text)
        return await receive_exactly(stream, len(text))


async def ends(stream: trio.SocketStream) -> bool:
    """Whether the connection ends without a byte, though it was spoken to."""
    try:
        with trio.fail_after(30):
            await stream.send_all(b"x")
            return await receive_all(stream) == b""
    except trio.BrokenResourceError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what is seen from outside. Raises trio.TooSlowError."""
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def receive_all(stream: trio.SocketStream) -> bytes:
    """Everything up to the end of the stream."""
    data = bytearray()
    while some := await stream.receive_some(65536):
        data += some
    return bytes(data)


def abort(stream: trio.SocketStream) -> None:
    """Closes with RST."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def echo(stream: trio.SocketStream) -> None:
    """An application that sends everything back, and ends when its client does."""
    async with stream:
        try:
            while some := await stream.receive_some(65536):
                await stream.send_all(some)
            await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def serve_echo(listener: trio.SocketListener) -> None:
    """Echoes every connection until cancelled."""
    await trio.serve_listeners(echo, [listener])


def connect_result(sock: socket.socket) -> None:
    """Raises what became of a connect that has ended, if it failed."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, f"connect: {errno.errorcode[number]}")


def loopback() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def tcp_pair() -> tuple[trio.SocketStream, socket.socket]:
    """Both ends of a TCP connection: an application's, and ours."""
    app, ours = loopback()
    return trio.SocketStream(trio.socket.from_stdlib_socket(app)), ours


async def send_in_pieces(stream: trio.SocketStream, data: bytes, rng: random.Random) -> None:
    """Sends everything in pieces of very different sizes, then ends its half."""
    position = 0
    while position < len(data):
        size = rng.choice((1, 100, 5000, 100_000))
        await stream.send_all(data[position : position + size])
        position += size
        if rng.random() < 0.05:
            await trio.sleep(0.001)
    await stream.send_eof()


async def receive_slowly(stream: trio.SocketStream, rng: random.Random) -> bytes:
    """Receives everything, in no hurry."""
    data = bytearray()
    while some := await stream.receive_some(rng.choice((10, 3000, 200_000))):
        data += some
        if rng.random() < 0.02:
            await trio.sleep(0.002)
    return bytes(data)
