"""The paths between two plain sockets, on a kernel that is not this machine's: sockmap, splice."""

from __future__ import annotations

import random
from unittest import mock

import trio

from tests.support.sockets import receive_slowly, send_in_pieces, tcp_pair
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.relay import pair
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import Outcome
from ztunnel.relay.pair import PairFlow


class _Ends:
    """A client and a server with a relay between them."""

    def __init__(self, engine: Engine) -> None:
        self.client, near = tcp_pair()
        self.server, far = tcp_pair()
        self.outcome: Outcome | None = None
        self.ended = trio.Event()
        self.flow = PairFlow(engine, near, far, self)

    def flow_ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended.set()


async def random_chunks() -> dict[str, int]:
    """Small messages and bulk mixed, both ways at once; either side ends first; all is compared."""
    engine = Engine()
    engine.use_paths(KernelPaths(Sockmap(64), Pipes(4)))
    paths: dict[str, int] = {}
    with mock.patch.object(pair, "CROWD", 1 << 30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            for seed in range(6):
                path = await _one(engine, random.Random(seed))
                paths[path] = paths.get(path, 0) + 1
            nursery.cancel_scope.cancel()
    assert engine.errors == 0
    engine.close()
    assert "sockmap" in paths, paths
    return paths


async def _one(engine: Engine, rng: random.Random) -> str:
    ends = _Ends(engine)
    for number in range(60):  # until it has shown that its messages are small
        for one, other in ((ends.client, ends.server), (ends.server, ends.client)):
            await one.send_all(b"%02d" % number)
            assert await other.receive_some(2) == b"%02d" % number
    up, down = rng.randbytes(rng.randrange(400_000)), rng.randbytes(rng.randrange(400_000))
    got: dict[str, bytes] = {}

    async def receive(name: str, end: trio.SocketStream) -> None:
        got[name] = await receive_slowly(end, random.Random(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_pieces, ends.client, up, random.Random(2))
        nursery.start_soon(send_in_pieces, ends.server, down, random.Random(3))
        nursery.start_soon(receive, "up", ends.server)
        nursery.start_soon(receive, "down", ends.client)
    assert got == {"up": up, "down": down}
    await ends.ended.wait()
    outcome = ends.outcome
    assert outcome is not None
    assert outcome.error is None, outcome.error
    assert (outcome.from_client, outcome.from_server) == (len(up) + 120, len(down) + 120)
    ends.client.socket.close()
    ends.server.socket.close()
    return ends.flow.path
