"""gRPC servers on an asyncio loop in a thread of their own, beside trio."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grpc

_log = logging.getLogger("daemonset.control_plane")

T = TypeVar("T")

_OPTIONS = [
    # Without this a second control plane would take half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    # initial_resource_versions of 100,000 resources are about 10 MB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # Node proxies ping every 30 s on idle connections; gRPC's default takes that for an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And a client that vanished is found out within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_PATIENCE = 10.0  # seconds to wait for an answer of the loop's thread
_THREADS = 32
_GRACE = 1.0  # seconds for streams to end when stopping


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to serve what. Port 0 takes a free one."""

    address: str
    port: int
    handlers: Sequence[grpc.GenericRpcHandler]
    credentials: grpc.ServerCredentials | None


class GrpcThread:
    """Runs listeners until ``stop``. ``start`` and ``stop`` block; call them from threads."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self, make: Callable[[], Sequence[Listener]]) -> list[int]:
        """Start serving; ``make`` is called in the loop's thread.

        Returns:
            The ports, in order.

        Raises:
            OSError: a port is taken.
        """
        started: Future[list[int]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make, started), name="grpc", daemon=True
        )
        self._thread.start()
        return started.result()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a function in the loop's thread."""
        assert self._loop is not None
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result

    def ask(self, function: Callable[[], T]) -> T:
        """Call a function in the loop's thread and wait for what it returns.

        Raises:
            TimeoutError: the loop has ended, or is stuck.
        """
        return self.call(function).result(_PATIENCE)

    def stop(self) -> None:
        """End all streams and the thread."""
        if self._loop is not None and self._stopping is not None:
            try:
                self._loop.call_soon_threadsafe(self._stopping.set)
            except RuntimeError:
                _log.debug("the gRPC servers had not started, or have ended already")
        if self._thread is not None:
            self._thread.join()

    def _run(self, make: Callable[[], Sequence[Listener]], started: Future[list[int]]) -> None:
        try:
            asyncio.run(self._serve(make, started))
        except BaseException as error:
            if started.done():
                _log.exception("the gRPC servers have ended")
                raise
            started.set_exception(error)

    async def _serve(
        self, make: Callable[[], Sequence[Listener]], started: Future[list[int]]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # Who asks elsewhere about tokens must not hold up those that are known.
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "grpc-call"))
        self._stopping = asyncio.Event()
        servers: list[grpc.aio.Server] = []
        ports: list[int] = []
        try:
            for listener in make():
                server = grpc.aio.server(options=_OPTIONS)
                servers.append(server)
                server.add_generic_rpc_handlers(tuple(listener.handlers))
                ports.append(_bind(server, listener))
            for server in servers:
                await server.start()
            started.set_result(ports)
            await self._stopping.wait()
        finally:
            await asyncio.gather(*(server.stop(_GRACE) for server in servers))


def _check_free(address: str, port: int, place: str) -> None:
    """gRPC's own error does not say why."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {place}: {error.strerror}") from None


def _bind(server: grpc.aio.Server, listener: Listener) -> int:
    address = listener.address
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and address == "::":
            address = "0.0.0.0"  # a kernel without IPv6
    place = f"[{address}]:{listener.port}" if ":" in address else f"{address}:{listener.port}"
    _check_free(address, listener.port, place)
    try:
        if listener.credentials is None:
            port: int = server.add_insecure_port(place)
        else:
            port = server.add_secure_port(place, listener.credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {place}: {error}") from None
    if port == 0:
        raise OSError(f"cannot listen on {place}")
    return port
