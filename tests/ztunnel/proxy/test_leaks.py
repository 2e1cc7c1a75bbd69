"""Whatever way a connection fails, it leaves no descriptor, no deadline and no record behind."""

import gc
import os
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.support.hand_made import HandMade, hand_made, server_of
from tests.support.pair import ECHO, VIP, Pair
from tests.support.proxies import NAMESPACE, service
from tests.support.sockets import abort, connect, receive_all
from tests.support.tunnel import Flow
from ztunnel.http2.errors import ErrorCode
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import Authorization, Match, PolicyAction, PolicyScope

pytestmark = pytest.mark.root

TIMES = 40


def held(pair: Pair) -> tuple[int, int, int]:
    """Descriptors, deadlines and records of this process, less what is kept ahead of need."""
    ahead = sum(
        len(stock) for pod in pair.mesh.pods.values() for stock in pod.sockets_ahead._stock.values()
    )
    gc.collect()
    engine = pair.mesh.engine
    return (
        len(os.listdir("/proc/self/fd")) - ahead,
        len(engine._deadlines),
        len(pair.mesh.context.registry),
    )


async def fails(stream: trio.SocketStream) -> None:
    """Waits for its end, and closes it."""
    async with stream:
        try:
            with trio.fail_after(30):
                await stream.send_all(b"x")
                await receive_all(stream)
        except trio.BrokenResourceError:
            pass  # an end as well


Failure = Callable[[Pair, HandMade], Awaitable[None]]


async def nobody_listens(pair: Pair, peer: HandMade) -> None:
    await fails(await pair.dial(7999))


async def denied(pair: Pair, peer: HandMade) -> None:
    rules = (((Match(destination_ports=(ECHO,)),),),)
    pair.mesh.apply(
        Authorization("deny", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=rules)
    )
    await fails(await pair.dial())


async def denied_in_plaintext(pair: Pair, peer: HandMade) -> None:
    rules = (((Match(destination_ports=(ECHO,)),),),)
    pair.mesh.apply(
        Authorization("deny", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=rules)
    )
    await fails(await connect(pair.room.node(1).network, pair.room.ip("server"), ECHO))


async def no_endpoint(pair: Pair, peer: HandMade) -> None:
    pair.mesh.apply(service("echo", VIP, {80: ECHO}))
    await fails(await pair.dial(80, VIP))


async def nobody_at_the_tunnels_port(pair: Pair, peer: HandMade) -> None:
    """Plain refusal of the TCP connection."""
    await fails(await pair.dial(80, str(pair.room.topology.nodes["node-1"].addresses[0])))


async def no_certificate(pair: Pair, peer: HandMade) -> None:
    uri = pair.client.identity.uri
    pair.mesh.certificates.withdrawn(uri, "the CA says no")
    await fails(await pair.dial())


async def wrong_identity(pair: Pair, peer: HandMade) -> None:
    other = Identity("cluster.local", NAMESPACE, "other")
    pair.mesh.apply(peer.renamed(other.service_account))
    await fails(await peer.dial())


async def tcp_only(pair: Pair, peer: HandMade) -> None:
    """A client of the tunnel's port that leaves in the handshake."""
    stream = await connect(pair.room.node(1).network, pair.room.ip("server"), 15008)
    await stream.send_all(b"\x16\x03\x01\x02\x00")
    abort(stream)


async def refused_by_the_peer(pair: Pair, peer: HandMade) -> None:
    await fails(await peer.dial(403))


async def reset_by_the_peer(pair: Pair, peer: HandMade) -> None:
    await fails(await peer.dial(500))


async def cut_by_the_peer(pair: Pair, peer: HandMade) -> None:
    await fails(await peer.dial(600))


async def aborted_by_the_client(pair: Pair, peer: HandMade) -> None:
    stream = await pair.dial()
    await stream.send_all(b"half a mess")
    abort(stream)


async def serve(flow: Flow) -> None:
    assert flow.request is not None
    match flow.request.authority.port:
        case 403:
            await server_of(flow).refuse(flow, 403, "no")
        case 500:
            await flow.cancel(ErrorCode.INTERNAL_ERROR)
        case _ if flow.tunnel.transport.socket.fileno() >= 0:  # not yet by another request
            abort(flow.tunnel.transport)


@pytest.mark.parametrize(
    "failure",
    [
        nobody_listens, denied, denied_in_plaintext, no_endpoint, nobody_at_the_tunnels_port,
        no_certificate, wrong_identity, tcp_only, refused_by_the_peer, reset_by_the_peer,
        cut_by_the_peer, aborted_by_the_client,
    ],
)  # fmt: skip
async def test_nothing_is_left_behind(pair: Pair, failure: Failure) -> None:
    async with hand_made(pair, serve) as peer:
        await failure(pair, peer)  # tunnels that stay, modules that are imported when needed
        await trio.sleep(0.1)
        peer.server.failures.clear()  # they hold their TLS contexts, with descriptors
        before = held(pair)
        async with trio.open_nursery() as nursery:
            for _ in range(TIMES):
                nursery.start_soon(failure, pair, peer)
        with trio.fail_after(30):
            while any(now > then for now, then in zip(held(pair), before, strict=True)):
                await trio.sleep(0.05)
                peer.server.failures.clear()
        for pool in pair.mesh.pods["client"]._pools.values():
            assert not pool._waiting
            assert not pool._opening
        assert pair.mesh.engine.errors == 0
