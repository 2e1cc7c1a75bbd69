"""Where the control process has the mesh from: a file, the environment, a control plane."""

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from ztunnel.config import Config
from ztunnel.mesh.errors import ResourceError
from ztunnel.process.ahead import GRACE
from ztunnel.process.cannot_start import CannotStart
from ztunnel.process.local_mesh import LocalMesh
from ztunnel.process.mesh_feed import ADDRESS_TYPE, AUTHORIZATION_TYPE, MeshFeed
from ztunnel.telemetry.counters import Counters
from ztunnel.xds.channel import ControlPlane
from ztunnel.xds.client import LookupTimeout, XdsClient
from ztunnel.xds.messages import node
from ztunnel.xds.protocol import Rejection, Resource

log = logging.getLogger("ztunnel.control")

_LOOKUPS_AT_ONCE: Final = 64


class MeshSource:
    """Fills a feed.

    Attributes:
        local: what does not come from a control plane.
    """

    def __init__(self, config: Config, feed: MeshFeed, counters: Counters) -> None:
        self.local = LocalMesh(feed, config.xds.local_path, config.xds.local_text)
        self._config = config
        self._feed = feed
        self._counters = counters
        self._xds: XdsClient | None = None
        self._known = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def load(self, nursery: trio.Nursery) -> None:
        """Returns once the mesh is known; then follows its changes.

        Raises:
            CannotStart: what the file or the environment says cannot be used.
        """
        xds = self._config.xds
        self._nursery = nursery
        if xds.local_path is not None or xds.local_text is not None:
            try:
                await self.local.load()
            except (OSError, ValueError, ResourceError) as error:
                raise CannotStart(str(error)) from error
            nursery.start_soon(self.local.watch)
        if xds.address is not None:
            self._xds = self._client(xds.address)
            nursery.start_soon(self._xds.run)
            await self._xds.warm.wait()
        self._known.set()

    async def wait_until_known(self) -> None:
        """Returns once it has been loaded."""
        await self._known.wait()

    def _client(self, address: str) -> XdsClient:
        config = self._config
        return XdsClient(
            ControlPlane(
                address,
                config.xds.roots,
                config.token,
                config.node.cluster_id,
                config.xds.headers,
                config.xds.alternative_hostname,
            ),
            node(config.node, config.xds.metadata),
            {ADDRESS_TYPE: not config.xds.on_demand, AUTHORIZATION_TYPE: True},
            self,
            self._counters,
            config.xds.lookup_timeout,
        )

    async def apply(
        self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]
    ) -> list[Rejection]:
        """One xDS response; see `ztunnel.xds.client.Handler`."""
        refused = await self._feed.apply_encoded(
            type_url, [(resource.name, resource.body) for resource in resources], removed
        )
        if self._feed.waits_for_policies and self._nursery is not None:
            self._nursery.start_soon(self._settle)
        return [Rejection(name, reason) for name, reason in refused]

    async def _settle(self) -> None:
        await trio.sleep(GRACE)
        await self._feed.settle()

    # ---- on demand

    async def look_up(self, key: str) -> bool:
        """Whether the control plane answered for `key`; the state then holds what there is."""
        if self._xds is None:
            return False
        try:
            await self._xds.lookup(ADDRESS_TYPE, key)
        except (LookupTimeout, ValueError) as error:
            log.warning("%s", error)
            return False
        return True

    async def look_up_all(self, keys: Iterable[str]) -> None:
        """The same for keys whose answers nobody waits for."""
        limit = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)

        async def look_up(key: str) -> None:
            async with limit:
                await self.look_up(key)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(look_up, key)
