"""What a port's declaration says about its protocol."""

from __future__ import annotations

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
