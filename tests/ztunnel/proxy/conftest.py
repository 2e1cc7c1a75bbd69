"""Two pods in the mesh, and an echo application on one of them."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import ECHO, Pair
from tests.support.proxies import proxies
from tests.support.sockets import listen, serve_echo


@pytest.fixture
def handshake_timeout() -> str:
    """Plenty for a machine that is busy; tests of peers that stay silent have their own."""
    return "20s"


@pytest.fixture
async def pair(handshake_timeout: str) -> AsyncIterator[Pair]:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, ZTUNNEL_HANDSHAKE_TIMEOUT=handshake_timeout) as mesh,
            trio.open_nursery() as nursery,
        ):
            client, server = mesh.enroll("client"), mesh.enroll("server")
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            made = Pair(room, mesh, client, server)
            yield made
            made.close()
            nursery.cancel_scope.cancel()
