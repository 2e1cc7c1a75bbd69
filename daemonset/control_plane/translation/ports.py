"""What a port's declaration says about its protocol."""

from __future__ import annotations

from collections.abc import Iterable

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Findings
from ztunnel.proto.workload_pb2 import AppProtocol

_BY_NAME: dict[str, AppProtocol] = {
    "http": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "grpc-web": AppProtocol.GRPC,
    "https": AppProtocol.TLS,
    "tls": AppProtocol.TLS,
    "tcp": AppProtocol.TCP,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "kubernetes.io/wss": AppProtocol.TLS,
}


def app_protocol(name: str, declared: str) -> AppProtocol:
    """The protocol of a port: ``appProtocol`` or ``protocol`` if known, else the name's prefix."""
    if declared:
        return _BY_NAME.get(declared.lower(), AppProtocol.UNKNOWN)
    lowered = name.lower()
    if lowered.startswith("grpc-web"):
        return AppProtocol.GRPC
    return _BY_NAME.get(lowered.partition("-")[0], AppProtocol.UNKNOWN)


def report_nameless(
    ports: Iterable[tuple[int, str, str]], field: str, key: ObjectKey, findings: Findings
) -> None:
    """A finding for each port (place in the list, name, declared protocol) of a service behind a
    waypoint, to which the protocol matters, that has neither name nor protocol."""
    for number, name, declared in ports:
        if not name and not declared:
            findings.warning(
                key,
                f"spec.ports[{number}].name",
                "PortWithoutName",
                "a port without a name does not say its protocol: the waypoint takes it for TCP, "
                "and rules about requests do not apply.",
                f"Name it http-…, grpc-… or the like, or give {field}.",
            )
