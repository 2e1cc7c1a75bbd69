"""The variables that say how bytes move and what is told about it."""

from __future__ import annotations

from typing import Final

from ztunnel.config import values
from ztunnel.config.mesh_file import ProxyConfig
from ztunnel.config.model import (
    DnsConfig,
    KeepaliveConfig,
    KernelConfig,
    LogFormat,
    OriginalSource,
    ProxyMode,
    SocketConfig,
    TelemetryConfig,
    TlsRecords,
    TunnelConfig,
)
from ztunnel.config.reader import Reader
from ztunnel.telemetry.log_filter import LogFilter

DEFAULT_MARK: Final = 1337


def read_sockets(reader: Reader, mode: ProxyMode) -> SocketConfig:
    keepalive_time = reader.duration("KEEPALIVE_TIME", "180s", "Idle time before TCP probes.", True)
    interval = reader.duration("KEEPALIVE_INTERVAL", "180s", "Time between TCP probes.", True)
    retries = reader.integer("KEEPALIVE_RETRIES", 9, "TCP probes before giving up.", 1, 127)
    user_timeout = reader.boolean(
        "USER_TIMEOUT_ENABLED", False, "Set TCP_USER_TIMEOUT to time + interval x retries."
    )
    # A dedicated proxy may lack the capability that setting a mark needs.
    default_mark = DEFAULT_MARK if mode is ProxyMode.SHARED else None
    return SocketConfig(
        packet_mark=reader.read(
            "PACKET_MARK",
            default_mark,
            values.packet_mark,
            "Mark on every socket in a pod; the capture rules let it through. 0: none.",
            "0 to 4294967295, or the path of the node agent's packet-mark",
            "1337 in shared mode",
        ),
        port_reuse=reader.boolean(
            "INPOD_PORT_REUSE", True, "SO_REUSEPORT on listeners; several workers need it."
        ),
        original_source=reader.choice(
            "ENABLE_ORIG_SRC",
            OriginalSource.AUTO,
            "Whether applications see the client's own address: always, never, or where possible.",
        ),
        ipv6=reader.boolean("IPV6_ENABLED", True, "Listen on IPv6 and answer AAAA."),
        listen_backlog=reader.integer(
            "ZTUNNEL_LISTEN_BACKLOG", 4096, "Connections that may wait in a listener.", 1, 65535
        ),
        connect_timeout=reader.duration(
            "ZTUNNEL_CONNECT_TIMEOUT", "10s", "How long a TCP connect may take.", True
        ),
        keepalive=KeepaliveConfig(
            enabled=reader.boolean("KEEPALIVE_ENABLED", True, "TCP keep-alive on all sockets."),
            time=keepalive_time,
            interval=interval,
            retries=retries,
            user_timeout=keepalive_time + interval * retries if user_timeout else None,
        ),
    )


def read_tunnel(reader: Reader) -> TunnelConfig:
    largest_window = 2**31 - 1  # RFC 9113 section 6.9.1
    return TunnelConfig(
        max_streams_per_connection=reader.integer(
            "POOL_MAX_STREAMS_PER_CONNECTION", 100, "Streams in one tunnel.", 1, 2**31 - 1
        ),
        unused_release_timeout=reader.duration(
            "POOL_UNUSED_RELEASE_TIMEOUT", "5m", "When an unused tunnel is closed."
        ),
        stream_window=reader.integer(
            "HTTP2_STREAM_WINDOW_SIZE",
            4194304,
            "Largest window of a stream; a quarter of it for one that shares its tunnel.",
            1,
            largest_window,
        ),
        connection_window=reader.integer(
            "HTTP2_CONNECTION_WINDOW_SIZE", 16777216, "Window of a tunnel.", 65535, largest_window
        ),
        window_budget=reader.integer(
            "ZTUNNEL_WINDOW_BUDGET",
            268435456,
            "Bytes that all streams of one worker together may be given beyond the window of 256 "
            "KiB that each begins with: what readers who stop may cost.",
            0,
            2**40,
        ),
        frame_size=reader.integer(
            "HTTP2_FRAME_SIZE", 1048576, "Largest frame accepted.", 16384, 2**24 - 1
        ),
        handshake_timeout=reader.duration(
            "ZTUNNEL_HANDSHAKE_TIMEOUT",
            "10s",
            "How long a TLS handshake, an HTTP/2 handshake or the answer to CONNECT may take.",
            True,
        ),
        ping_interval=reader.duration(
            "ZTUNNEL_PING_INTERVAL", "10s", "Time between two PINGs on a tunnel.", True
        ),
        ping_timeout=reader.duration(
            "ZTUNNEL_PING_TIMEOUT",
            "20s",
            "A tunnel whose peer leaves a PING unanswered for so long is given up.",
            True,
        ),
        tls_records=reader.choice(
            "ZTUNNEL_TLS_RECORDS",
            TlsRecords.OWN,
            "Who seals TLS records after the handshake: our own layer (faster) or OpenSSL.",
        ),
        response_baggage=reader.boolean(
            "ENABLE_RESPONSE_BAGGAGE", True, "Describe workloads in answers, and read that."
        ),
        localhost_app_tunnel=reader.boolean(
            "LOCALHOST_APP_TUNNEL", True, "Reach PROXY-protocol applications on loopback."
        ),
    )


def read_kernel(reader: Reader) -> KernelConfig:
    return KernelConfig(
        sockmap=reader.boolean(
            "ZTUNNEL_SOCKMAP",
            True,
            "Join the two sockets of plain flows with small messages in the kernel (BPF), where a "
            "probe at start finds that to work.",
        ),
        splice=reader.boolean(
            "ZTUNNEL_SPLICE",
            True,
            "Move bulk between plain sockets through pipes, where a probe finds that to work.",
        ),
        ktls=reader.boolean(
            "ZTUNNEL_KTLS",
            False,
            "Have the kernel seal and open TLS records of tunnels that carry bulk, where a probe "
            "finds that to work (Linux 6.14 or newer, with the tls module).",
        ),
        join_pods=reader.boolean(
            "ZTUNNEL_JOIN_PODS",
            False,
            "Join two captured pods of this node without a tunnel: same identities and policies, "
            "no encryption. Links where a NetworkPolicy is enforced are passed by. The label "
            "ambientd.io/join of a namespace or pod says otherwise for some.",
        ),
        direct=reader.boolean(
            "ZTUNNEL_DIRECT",
            True,
            "Let connections between pods that are joined pass by the proxy once they are allowed: "
            "plain TCP from pod to pod, where a probe at start finds that to work.",
        ),
    )


def read_dns(reader: Reader, proxy: ProxyConfig) -> DnsConfig:
    capture_default = proxy.metadata.get("ISTIO_META_DNS_CAPTURE", "true").lower() == "true"
    host, port = reader.read(
        "ISTIO_META_DNS_PROXY_ADDR",
        ("localhost", 15053),
        values.host_and_port,
        "Where the DNS proxy listens in each pod.",
        "host:port",
        "localhost:15053",
    )
    return DnsConfig(
        enabled=reader.boolean(
            "ISTIO_META_DNS_CAPTURE", capture_default, "Serve DNS from what the mesh knows."
        ),
        host=host,
        port=port,
        preferred_service_namespace=reader.optional_text(
            "PREFERED_SERVICE_NAMESPACE",
            "Namespace whose Service wins when a name is in several. (Spelt so by Istio.)",
        ),
    )


def read_telemetry(reader: Reader, proxy: ProxyConfig) -> TelemetryConfig:
    def log_filter(text: str) -> str:
        LogFilter.parse(text)
        return text

    return TelemetryConfig(
        admin_port=proxy.admin_port or 15000,
        stats_port=proxy.stats_port or 15020,
        readiness_port=15021,
        log_filter=reader.read(
            "RUST_LOG",
            "info",
            log_filter,
            "What is logged: a level, or scope=level, comma separated. The access log is the "
            "scope access; ztunnel::proxy means the same as ztunnel.proxy.",
            "trace, debug, info, warn, error, off",
        ),
        log_format=reader.choice("LOG_FORMAT", LogFormat.PLAIN, "Text or JSON log lines."),
        log_queue=reader.integer(
            "ZTUNNEL_LOG_QUEUE",
            10000,
            "Log lines that may wait for a slow reader; more are dropped and counted.",
            100,
            10**7,
        ),
        policy_info_logging=reader.boolean(
            "AUTHZ_POLICY_INFO_LOGGING", False, "Log findings of dry-run policies at info."
        ),
    )
