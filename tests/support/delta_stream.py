"""A client of delta ADS for tests: blocking, so that it can be used from a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.translation.resource import ADDRESS

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


class DeltaStream:
    """One stream of delta ADS; blocking, for threads."""

    def __init__(self, channel: grpc.Channel, metadata: list[tuple[str, str]] | None) -> None:
        self._requests: Queue[discovery_pb2.DeltaDiscoveryRequest | None] = Queue()
        call = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.call = call(iter(self._requests.get, None), metadata=metadata)

    def send(self, type_url: str = ADDRESS, **fields: Any) -> None:
        """Send a request; ``node`` gives NODE_NAME, ``error`` makes it a rejection."""
        node, error = fields.pop("node", None), fields.pop("error", None)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)
        if node is not None:
            request.node.id = f"ztunnel~10.0.0.9~ztunnel.istio-system~{node}"
            request.node.metadata["NODE_NAME"] = node
        if error is not None:
            request.error_detail.message = error
        self._requests.put(request)

    def receive(self, *, ack: bool = True) -> discovery_pb2.DeltaDiscoveryResponse:
        response = next(self.call)
        if ack:
            self.send(response.type_url, response_nonce=response.nonce)
        return response

    def close(self) -> None:
        self.call.cancel()
        self._requests.put(None)


@contextmanager
def delta_stream(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: list[tuple[str, str]] | None = None,
    server_name: str = "",
) -> Iterator[DeltaStream]:
    options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", -1)]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    channel = (
        grpc.insecure_channel(target, options)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )
    with channel:
        stream = DeltaStream(channel, metadata)
        try:
            yield stream
        finally:
            stream.close()
