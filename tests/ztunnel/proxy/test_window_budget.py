"""What all streams of a worker together may be given: as much as is configured, and no more."""

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import Pair
from tests.support.proxies import proxies
from tests.support.sockets import receive_exactly

pytestmark = pytest.mark.root

SIZE = 4 << 20
STREAMS = 3


@pytest.mark.parametrize("budget", [0, 300_000])
async def test_windows_grow_within_the_budget_and_give_it_back(budget: int) -> None:
    """The second stream to ask for more finds next to nothing left, and the bytes arrive anyway."""
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, ZTUNNEL_WINDOW_BUDGET=str(budget)) as mesh,
            trio.open_nursery() as nursery,
        ):
            pair = Pair(room, mesh, mesh.enroll("client"), mesh.enroll("server"))
            windows = mesh.engine.buffers.windows
            assert windows.left == budget
            listener = pair.listen(7001)
            lowest = budget

            async def receive(stream: trio.SocketStream) -> None:
                nonlocal lowest
                left = SIZE
                while left:
                    left -= len(await receive_exactly(stream, min(left, 1 << 16)))
                    lowest = min(lowest, windows.left)

            with trio.fail_after(60):
                async with trio.open_nursery() as transfers:
                    ends = []
                    for _ in range(STREAMS):
                        sender = await pair.dial(7001)
                        receiver = await pair.accept(listener)
                        ends += [sender, receiver]
                        transfers.start_soon(sender.send_all, bytes(SIZE))
                        transfers.start_soon(receive, receiver)
            assert lowest == 0, "all of it is used, and never more"
            for end in ends:
                await end.aclose()
            with trio.fail_after(30):
                while windows.left != budget:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
            pair.close()
