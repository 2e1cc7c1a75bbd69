"""The protocol's values as Envoy's protobuf messages, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import code_pb2, status_pb2

from ztunnel.config import NodeConfig
from ztunnel.xds.protocol import Request, Resource, Response

# The generated modules come without types.
DeltaRequest = Any
DeltaResponse = Any
Node = Any


def node(config: NodeConfig, metadata: Mapping[str, object]) -> Node:
    """Who this proxy is, as istiod reads it: the kind, the address and the pod in the id.

    Raises:
        ValueError: the metadata holds what JSON cannot express.
    """
    name, namespace = config.pod_name, config.pod_namespace
    message = base_pb2.Node(
        id=f"ztunnel~{config.instance_ip}~{name}.{namespace}~{namespace}.svc.{config.cluster_domain}"
    )
    message.metadata.update(
        {
            "NAME": name,
            "NAMESPACE": namespace,
            "INSTANCE_IPS": config.instance_ip,
            "NODE_NAME": config.node_name,
            **metadata,
        }
    )
    return message


def encode_request(request: Request, sender: Node | None) -> DeltaRequest:
    """``sender`` goes into the first request of a stream only."""
    message = discovery_pb2.DeltaDiscoveryRequest(
        node=sender,
        type_url=request.type_url,
        resource_names_subscribe=request.subscribe,
        resource_names_unsubscribe=request.unsubscribe,
        initial_resource_versions=request.initial_versions,
        response_nonce=request.nonce,
    )
    if request.error:
        status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=request.error)
        message.error_detail.CopyFrom(status)
    return message


def decode_response(message: DeltaResponse) -> Response:
    """A response as plain values."""
    return Response(
        type_url=message.type_url,
        nonce=message.nonce,
        resources=tuple(
            Resource(
                name=one.name,
                version=one.version,
                aliases=tuple(one.aliases),
                type_url=one.resource.type_url,
                body=one.resource.value,
            )
            for one in message.resources
        ),
        removed=tuple(message.removed_resources),
    )
