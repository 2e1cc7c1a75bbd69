"""This proxy's own ports, reached by a pod of the mesh: by a tunnel, and under policies."""

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import Pair
from tests.support.proxies import NAMESPACE, proxies, workload
from tests.support.sockets import receive_all, receive_exactly
from ztunnel.mesh.policy import Authorization, Match, PolicyAction, PolicyScope
from ztunnel.proxy.local_pod import PodInfo
from ztunnel.proxy.pod import PodProxy

pytestmark = pytest.mark.root

STATS = 15020


async def test_a_scraper_in_the_mesh_reaches_the_metrics_port() -> None:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, ISTIO_META_DNS_CAPTURE="true", UNSTABLE_ENABLE_SOCKS5="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            described = workload(room, "server")
            pair = Pair(room, mesh, mesh.enroll("client"), described)
            mesh.certificates.received(mesh.authority.workload(described.identity))
            mesh.apply(described)
            own = PodProxy(
                mesh.context,
                mesh.neighbours,
                PodInfo("own", "server", NAMESPACE, "server"),
                room.pod("server").network.duplicate(),
                {},
                only_tunnels=True,
            )
            mesh.pods["server"] = own
            nursery.start_soon(own.run)
            assert set(own.sockets()) == {"hbone"}
            listener = pair.listen(STATS)
            stream = await pair.dial(STATS)
            accepted = await pair.accept(listener)
            # Nothing there would bring answers back to another address than its own.
            assert accepted.socket.getpeername()[0] == room.ip("server")
            await stream.send_all(b"GET")
            with trio.fail_after(30):
                assert await receive_exactly(accepted, 3) == b"GET"
            await stream.aclose()
            await accepted.aclose()
            line = await mesh.line('direction="inbound"', "bytes_recv=3")
            assert f'src.identity="{pair.client.identity.uri}"' in line
            rules = (((Match(destination_ports=(STATS,)),),),)
            mesh.apply(
                Authorization(
                    "no-stats", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=rules
                )
            )
            refused = await pair.dial(STATS)
            with trio.fail_after(30):
                assert await receive_all(refused) == b""
            assert "shop/no-stats (rule 1)" in await mesh.line('direction="inbound"', "DENY")
            pair.close()
            nursery.cancel_scope.cancel()
