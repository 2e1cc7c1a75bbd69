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
    "https": AppProtocol.TLS,
    "tls": AppProtocol.TLS,
    "tcp": AppProtocol.TCP,
    # Known to Istio, with no value of their own in the workload API.
    **dict.fromkeys(
        ("grpc-web", "http_proxy", "mongo", "mysql", "redis", "udp"), AppProtocol.UNKNOWN
    ),
}
_BY_KUBERNETES_NAME = {
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "kubernetes.io/wss": AppProtocol.TLS,
}
_SPEAKS_FIRST = (25, 53, 3306, 27017)
"""Ports of protocols in which nobody should look for HTTP: SMTP, DNS, MySQL, MongoDB."""


def service_protocol(name: str, declared: str, number: int) -> AppProtocol:
    """The protocol of a Service's port: what ``appProtocol`` begins with, else its name."""
    if declared in _BY_KUBERNETES_NAME:
        return _BY_KUBERNETES_NAME[declared]
    text = (declared or name).lower()
    known = "grpc-web" if text.startswith("grpc-web") else text.partition("-")[0]
    otherwise = AppProtocol.TCP if number in _SPEAKS_FIRST else AppProtocol.UNKNOWN
    return _BY_NAME.get(known, otherwise)


def entry_protocol(declared: str) -> AppProtocol:
    """The protocol of a ServiceEntry's port, which says it in ``protocol`` and nowhere else."""
    return _BY_NAME.get(declared.lower(), AppProtocol.UNKNOWN)


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
