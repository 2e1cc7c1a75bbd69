"""What a control plane serves, and in what two of them differ, resource by resource."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION
from tests.support.delta_stream import delta_stream
from ztunnel.proto.authorization_pb2 import Authorization
from ztunnel.proto.workload_pb2 import Address

_TYPES: dict[str, type[Address] | type[Authorization]] = {
    ADDRESS: Address,
    AUTHORIZATION: Authorization,
}
_KEYED = {"ports": "service_port"}
_UNORDERED = {"addresses", "authorization_policies", "groups", "rules", "matches"}


@dataclass(frozen=True)
class Served:
    """Plain values of all resources, by "type/name": each a map of paths to values. Without
    aliases, which istiod leaves out for those who take everything."""

    resources: Mapping[str, Mapping[str, Any]]

    def __or__(self, other: Served) -> Served:
        """What two nodes are told, together."""
        return Served({**self.resources, **other.resources})


def ask(target: str, roots_pem: str, token: str, node: str) -> Served:
    """All of both types, as a node proxy with that token gets them. Blocks.

    Raises:
        grpc.RpcError: the control plane refuses.
    """
    credentials = grpc.ssl_channel_credentials(roots_pem.encode())
    found: dict[str, Mapping[str, Any]] = {}
    waiting = dict(_TYPES)
    metadata = [("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")]
    with delta_stream(target, credentials, metadata, "istiod.istio-system.svc") as stream:
        stream.send(ADDRESS, node=node)
        stream.send(AUTHORIZATION)
        while waiting:
            response = stream.receive()
            kind = waiting.pop(response.type_url, None)
            if kind is None:
                continue
            for resource in response.resources:
                message = kind.FromString(resource.resource.value)
                value = MessageToDict(message, preserving_proto_field_name=True)
                name = f"{kind.__name__}/{resource.name}"
                found[name] = dict(_flatten(value, ""))
    return Served(found)


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Leaves with their paths; the order of what has none is taken away."""
    field = path.rpartition(".")[2]
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
        if not value:
            yield path, {}
    elif isinstance(value, list) and field in _KEYED:
        for item in value:
            key = item.get(_KEYED[field], 0)
            yield from _flatten(item, f"{path}[{key}]")
    else:
        yield path, _settled(value, field)


def _settled(value: Any, field: str) -> Any:
    """Without the order of what has none."""
    if isinstance(value, dict):
        return {key: _settled(inner, key) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        items = [_settled(item, "") for item in value]
        return sorted(items, key=repr) if field in _UNORDERED else items
    return value


def differences(theirs: Served, ours: Served) -> dict[str, tuple[Any, Any]]:
    """ "type/name path" -> (their value, ours); None where there is none. A resource that one of
    them does not have stands there as a whole, with the path missing."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(theirs.resources.keys() | ours.resources.keys()):
        their, our = theirs.resources.get(name), ours.resources.get(name)
        if their is None or our is None:
            found[name] = ("there" if their is not None else None, "there" if our else None)
            continue
        for path in sorted(their.keys() | our.keys()):
            values = (their.get(path), our.get(path))
            if values[0] != values[1]:
                found[f"{name} {path}"] = values
    return found
