"""What the environment says, as frozen values. Durations are seconds, sizes are bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ztunnel.config.secrets import RootCertificates, Token


class ProxyMode(Enum):
    """Whether this process serves the pods of a node or one workload."""

    SHARED = "shared"
    DEDICATED = "dedicated"


class LogFormat(Enum):
    PLAIN = "plain"
    JSON = "json"


class OriginalSource(Enum):
    """Whether applications see the client's own address."""

    AUTO = "auto"
    ALWAYS = "true"
    NEVER = "false"


class TlsRecords(Enum):
    """Who seals and opens TLS records once the handshake is done."""

    OWN = "own"
    OPENSSL = "openssl"


class UnknownPolicy(Enum):
    """What a workload gets that names a policy which is not known."""

    DENY = "deny"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class WorkloadName:
    """PROXY_WORKLOAD_INFO: the one workload of dedicated mode."""

    namespace: str
    name: str
    service_account: str


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Where and as whom this process runs."""

    node_name: str
    network: str
    cluster_id: str
    cluster_domain: str
    trust_domain: str
    pod_name: str
    pod_namespace: str
    service_account: str
    instance_ip: str
    istio_version: str

    @property
    def self_proxied(self) -> bool:
        """Whether enough is known to serve this process's own ports through the mesh."""
        return bool(self.pod_name and self.pod_namespace and self.service_account)


@dataclass(frozen=True, slots=True)
class XdsConfig:
    """The control plane. ``address`` is an http or https URL; None switches xDS off."""

    address: str | None
    roots: RootCertificates
    alternative_hostname: str | None
    on_demand: bool
    headers: Mapping[str, str]
    metadata: Mapping[str, object]
    local_path: Path | None
    local_text: str | None
    lookup_timeout: float


@dataclass(frozen=True, slots=True)
class CaConfig:
    """The certificate authority. ``address`` is a URL; None means that there is none."""

    address: str | None
    roots: RootCertificates
    alternative_hostname: str | None
    headers: Mapping[str, str]
    certificate_lifetime: float
    crl_path: Path | None


@dataclass(frozen=True, slots=True)
class KeepaliveConfig:
    """TCP keep-alive. ``user_timeout`` is None unless switched on."""

    enabled: bool
    time: float
    interval: float
    retries: int
    user_timeout: float | None


@dataclass(frozen=True, slots=True)
class SocketConfig:
    packet_mark: int | None
    port_reuse: bool
    original_source: OriginalSource
    ipv6: bool
    listen_backlog: int
    connect_timeout: float
    keepalive: KeepaliveConfig


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """HBONE. ``handshake_timeout`` bounds TLS, HTTP/2 and the answer to CONNECT, each."""

    max_streams_per_connection: int
    unused_release_timeout: float
    stream_window: int
    connection_window: int
    window_budget: int
    frame_size: int
    handshake_timeout: float
    ping_interval: float
    ping_timeout: float
    tls_records: TlsRecords
    response_baggage: bool
    localhost_app_tunnel: bool


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How bytes may stay in the kernel.

    `sockmap`, `splice` and `ktls` are used where a probe at start finds them to work; `join_pods`
    spares connections between two captured pods of this node the tunnel; with `direct` they do
    without a relay as well, where a probe finds that to work.
    """

    sockmap: bool
    splice: bool
    ktls: bool
    join_pods: bool
    direct: bool


@dataclass(frozen=True, slots=True)
class DnsConfig:
    enabled: bool
    host: str
    port: int
    preferred_service_namespace: str | None


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    admin_port: int
    stats_port: int
    readiness_port: int
    log_filter: str
    log_format: LogFormat
    log_queue: int
    policy_info_logging: bool


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. Made by :func:`ztunnel.config.load`."""

    proxy_enabled: bool
    mode: ProxyMode
    workload: WorkloadName | None
    workers: int
    inpod_socket: Path
    socks5: bool
    unknown_policy: UnknownPolicy
    termination_deadline: float
    token: Token
    node: NodeConfig
    xds: XdsConfig
    ca: CaConfig
    sockets: SocketConfig
    tunnel: TunnelConfig
    kernel: KernelConfig
    dns: DnsConfig
    telemetry: TelemetryConfig

    def to_json(self) -> dict[str, object]:
        """Plain values with camelCase keys for the configuration dump. Secrets are left out:
        literal tokens, and the values of headers, which often carry them."""
        dump = _plain(self)
        assert isinstance(dump, dict)
        dump["token"] = str(self.token.path) if self.token.path else bool(self.token.literal)
        for section, settings in (("xds", self.xds), ("ca", self.ca)):
            dump[section]["headers"] = sorted(settings.headers)
            dump[section]["roots"] = str(settings.roots.path or "inline or system")
        return dump


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            _camel(field.name): _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return dict(value) if isinstance(value, Mapping) else value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
