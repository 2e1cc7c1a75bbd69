"""The gRPC service of delta ADS, on asyncio: one stream per client, all in one thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.xds.access import EVERYTHING, Access, ForbiddenError
from daemonset.control_plane.xds.budget import SendBudget
from daemonset.control_plane.xds.snapshot import Differences, Snapshot
from daemonset.control_plane.xds.subscription import Client

_log = logging.getLogger("daemonset.control_plane.xds")

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_FIRST_REQUESTS = 0.5  # seconds

Metadata = Sequence[tuple[str, str | bytes]]
Authenticate = Callable[[Metadata], Access]
"""Request metadata -> what it may see. Raises PermissionError or ForbiddenError, whose text the
client is shown. Called in a thread, and may block."""


class DiscoveryService:
    """Serves the current snapshot to any number of streams. All methods: event loop thread.

    Args:
        budget: for what is on its way to all clients together.
    """

    def __init__(
        self, first: Snapshot, on_rejection: Callable[[], None], budget: SendBudget | None = None
    ) -> None:
        self._budget = budget or SendBudget()
        self._snapshot = first
        self._on_rejection = on_rejection
        self._differences = Differences()
        self._streams: dict[Client, asyncio.Event] = {}

    def publish(self, snapshot: Snapshot) -> None:
        """Serve this from now on."""
        self._snapshot = snapshot
        for wake in self._streams.values():
            wake.set()

    @property
    def clients(self) -> list[Client]:
        return list(self._streams)

    def handler(self, authenticate: Authenticate | None) -> grpc.GenericRpcHandler:
        """The handler for one server; without ``authenticate`` everybody is served."""

        async def delta(
            requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
            context: grpc.aio.ServicerContext,
        ) -> None:
            access = EVERYTHING
            try:
                if authenticate is not None:
                    metadata = context.invocation_metadata() or ()
                    access = await asyncio.to_thread(authenticate, metadata)
                client = Client(context.peer(), self._differences, self._on_rejection, access)
                await self._serve(client, requests, context)
            except PermissionError as error:
                _log.warning("xDS stream of %s refused: %s", context.peer(), error)
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            except ForbiddenError as error:
                _log.warning("xDS stream of %s refused: %s", context.peer(), error)
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                    delta,
                    request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                    response_serializer=_encoded_already,
                )
            },
        )

    async def _serve(
        self,
        client: Client,
        requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        wake = asyncio.Event()
        self._streams[client] = wake
        reader = asyncio.create_task(self._read(client, requests, wake))
        reader.add_done_callback(lambda _: wake.set())
        try:
            await wake.wait()
            _log.info("%s connects", client)
            # Its next request, for policies, is on its way: those go out first.
            patience = asyncio.get_running_loop().time() + _FIRST_REQUESTS
            while client.waits_for_policies and not reader.done():
                wake.clear()
                try:
                    async with asyncio.timeout_at(patience):
                        await wake.wait()
                except TimeoutError:
                    break
            while not reader.done():
                client.access.check()
                response = client.next_response(self._snapshot)
                if response is not None:
                    await self._budget.send(context.write, response)
                    continue
                wake.clear()
                await wake.wait()
            reader.result()
        finally:
            del self._streams[client]
            reader.cancel()
            _log.info("%s is gone", client)

    async def _read(
        self,
        client: Client,
        requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        wake: asyncio.Event,
    ) -> None:
        async for request in requests:
            client.receive(request, self._snapshot)
            wake.set()


def _encoded_already(data: bytes) -> bytes:
    return data
