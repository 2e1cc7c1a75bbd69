"""A control plane that does what a test says: a real gRPC server, plaintext or with TLS."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import trio
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from ztunnel.xds.protocol import ADDRESS_TYPE


class Stream:
    """One stream as the server sees it."""

    def __init__(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context.add_callback(lambda: self.responses.put(None))

    async def request(self, seconds: float = 30) -> Any:
        """The next request; None at the end of the stream."""
        return await trio.to_thread.run_sync(lambda: self.requests.get(timeout=seconds))

    def silent(self) -> bool:
        """Whether no request waits."""
        return self.requests.empty()

    def send(
        self,
        *resources: tuple[str, ...],
        removed: tuple[str, ...] = (),
        nonce: str = "n",
        type_url: str = ADDRESS_TYPE,
        inner: str = "",
    ) -> None:
        """Sends a response; a resource is its name, version and aliases."""
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
        response.removed_resources.extend(removed)
        for name, version, *aliases in resources:
            one = response.resources.add(name=name, version=version, aliases=aliases)
            one.resource.type_url = inner or type_url
            one.resource.value = name.encode()
        self.responses.put(response)

    def end(self, code: grpc.StatusCode | None = None) -> None:
        """Ends the stream, well or with an error."""
        self.responses.put(code)


class AdsServer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Listens on ``port``; hands each stream to the test."""

    def __init__(self, credentials: grpc.ServerCredentials | None, port: int = 0) -> None:
        self.streams: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    async def stream(self) -> Stream:
        """The next stream that a client opens."""
        return await trio.to_thread.run_sync(lambda: self.streams.get(timeout=30))

    def stop(self) -> None:
        self._server.stop(None).wait()

    def DeltaAggregatedResources(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream = Stream(context)

        def pump() -> None:
            try:
                for request in requests:
                    stream.requests.put(request)
            except grpc.RpcError:
                # How grpcio says that the client has gone.
                pass
            finally:
                stream.requests.put(None)

        threading.Thread(target=pump, daemon=True).start()
        self.streams.put(stream)
        while (response := stream.responses.get()) is not None:
            if isinstance(response, grpc.StatusCode):
                context.abort(response, "as the test says")
            yield response
