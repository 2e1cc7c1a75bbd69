"""What a flow of plain sockets holds while its reader has stopped: bounded, on every path."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.requirements import without_sockmap
from tests.support.sockets import receive_exactly, tcp_pair
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux import netns
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import ClosedBy, Outcome
from ztunnel.relay.pair import FAR_BUFFER, JOIN_AFTER, NEAR_BUFFER, PairFlow

pytestmark = pytest.mark.root

MIB = 1 << 20
SO_MEMINFO = 55
WHOLE = 8 * MIB  # with the buffers of both applications
BULK = 8 * MIB  # read before the reader stops
STOPPED = 60.0  # seconds


class Flow:
    """A client that sends as fast as it may, a server that reads for a moment, and then stops."""

    def __init__(self, engine: Engine, path: str, remote: ClosedBy | None) -> None:
        self.path = path
        self.client, near = tcp_pair()
        self.server, far = tcp_pair()
        self.sockets = (self.client.socket, near, far, self.server.socket)
        self.flow = PairFlow(engine, near, far, self, remote)
        self.sent = 0
        self.stopped = trio.Event()
        for end in (self.client, self.server):
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The application's own, which Linux would let grow to 32 MiB, with a proxy or without.
        self.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)

    def flow_ended(self, outcome: Outcome) -> None:
        """See `Owner`."""

    async def run(self) -> None:
        """Until the sender is held up, or cancelled."""
        for _ in range(JOIN_AFTER + 4 if self.path == "sockmap" else 0):
            await self.client.send_all(b"x")
            await receive_exactly(self.server, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            data = bytes(1 << 18)
            while True:
                self.sent += await self.client.socket.send(data)

    async def _read(self) -> None:
        await receive_exactly(self.server, BULK)
        self.stopped.set()

    def held(self, sockets: tuple[object, ...]) -> int:
        """Bytes of memory in the buffers of some of the flow's sockets."""
        total = 0
        for sock in sockets:
            found = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)  # type: ignore[attr-defined]
            received, _, _, _, _, queued, _, backlog, _ = struct.unpack("=9I", found)
            total += received + queued + backlog
        return total

    def close(self) -> None:
        self.flow.abort("test over")
        self.client.socket.close()
        self.server.socket.close()


@asynccontextmanager
async def engine(paths: KernelPaths) -> AsyncIterator[Engine]:
    made = Engine()
    made.use_paths(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


def paths_for(path: str) -> KernelPaths:
    if path == "copy":
        return KernelPaths()
    return KernelPaths(Sockmap(8) if path == "sockmap" else None, Pipes())


@pytest.mark.slow
async def test_a_reader_that_stops_for_a_minute_costs_little() -> None:
    kinds = ["copy", "splice", *(["sockmap"] if without_sockmap() is None else [])]
    with netns.create() as namespace:
        async with (
            engine(paths_for("copy")) as copying,
            engine(paths_for("splice")) as splicing,
            engine(paths_for(kinds[-1])) as joining,
            trio.open_nursery() as nursery,
        ):
            engines = {"copy": copying, "splice": splicing, "sockmap": joining}
            with namespace.enter():
                netns.bring_up("lo")
                flows = [
                    Flow(engines[kind], kind, remote)
                    for kind in kinds
                    for remote in (None, ClosedBy.CLIENT, ClosedBy.SERVER)
                ]
            for flow in flows:
                nursery.start_soon(flow.run)
            with trio.fail_after(120):
                for flow in flows:
                    await flow.stopped.wait()
            await trio.sleep(STOPPED - 5)
            before = [flow.sent for flow in flows]
            await trio.sleep(5)
            assert [flow.sent for flow in flows] == before, "nothing more goes"
            for flow in flows:
                held = flow.held(flow.sockets)
                pipe = flow.flow.server.in_pipe
                own = flow.held(flow.sockets[1:3]) + pipe
                assert held + pipe <= WHOLE or flow.flow.remote is not None, (flow.path, held)
                # One buffer for what comes, one for what goes; what is far away may take more.
                limit = {None: 2 * NEAR_BUFFER, ClosedBy.CLIENT: FAR_BUFFER + NEAR_BUFFER}.get(
                    flow.flow.remote, NEAR_BUFFER + FAR_BUFFER
                )
                assert own <= limit + 2 * MIB, (flow.path, flow.flow.remote, own)
            nursery.cancel_scope.cancel()
            for flow in flows:
                flow.close()


async def test_small_messages_leave_the_kernel_its_way() -> None:
    """Buffers are bounded once bulk comes, and not before: that costs system calls."""
    with netns.create() as namespace:
        async with engine(KernelPaths()) as one:
            with namespace.enter():
                netns.bring_up("lo")
                flow = Flow(one, "copy", None)
            for _ in range(100):
                await flow.client.send_all(b"x" * 100)
                await receive_exactly(flow.server, 100)
            assert not flow.flow.client.bounded
            flow.close()
