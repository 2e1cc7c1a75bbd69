"""Configurations that make Envoy an HBONE peer, as the JSON that it reads.

`server` terminates tunnels on a port and dials what `:authority` names. `client` opens one tunnel
stream for each TCP connection: to a fixed authority per listening port, or, with `capture_port`, to
wherever a redirected connection was going.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HBONE_PORT = 15008
Json = dict[str, Any]

_TYPE = "type.googleapis.com/envoy.extensions"
_UNLIMITED: Json = {
    "thresholds": [
        {
            "max_connections": 1_000_000,
            "max_pending_requests": 1_000_000,
            "max_requests": 1_000_000,
        }
    ]
}

_ORIGINAL_DESTINATION: Json = {
    "name": "original_dst",
    "typed_config": {"@type": f"{_TYPE}.filters.listener.original_dst.v3.OriginalDst"},
}


@dataclass(frozen=True, slots=True)
class Http2Options:
    """How Envoy speaks HTTP/2; None leaves Envoy's own value."""

    max_concurrent_streams: int | None = None
    initial_stream_window: int | None = None
    initial_connection_window: int | None = None
    keepalive_interval: float | None = None
    keepalive_timeout: float = 20.0

    def json(self) -> Json:
        found: Json = {"allow_connect": True}
        if self.max_concurrent_streams is not None:
            found["max_concurrent_streams"] = self.max_concurrent_streams
        if self.initial_stream_window is not None:
            found["initial_stream_window_size"] = self.initial_stream_window
        if self.initial_connection_window is not None:
            found["initial_connection_window_size"] = self.initial_connection_window
        if self.keepalive_interval is not None:
            found["connection_keepalive"] = {
                "interval": f"{self.keepalive_interval}s",
                "timeout": f"{self.keepalive_timeout}s",
            }
        return found


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """An HBONE server. `client_prefix` is what a client's SPIFFE URI has to begin with."""

    address: str = "0.0.0.0"
    port: int = HBONE_PORT
    client_prefix: str = "spiffe://cluster.local/"
    http2: Http2Options = field(default_factory=lambda: Http2Options(max_concurrent_streams=4096))
    access_log: bool = False


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """An HBONE client.

    `tunnels` maps a listening port to the authority that its connections are tunnelled to, all of
    them through `peer`. `capture_port` takes connections that were redirected there and tunnels
    each to the HBONE port of where it was going; its own sockets carry `mark`.
    """

    server_prefix: str = "spiffe://cluster.local/"
    address: str = "127.0.0.1"
    peer: tuple[str, int] | None = None
    tunnels: Mapping[int, str] = field(default_factory=dict)
    capture_port: int | None = None
    mark: int = 1337
    http2: Http2Options = field(default_factory=Http2Options)
    access_log: bool = False


def server(options: ServerOptions) -> Json:
    """An HBONE server's whole configuration, but for the admin socket."""
    manager: Json = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "stream_idle_timeout": "0s",
        "generate_request_id": False,
        "http2_protocol_options": options.http2.json(),
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"connect_matcher": {}},
                            "route": {
                                "cluster": "authority",
                                "timeout": "0s",
                                "upgrade_configs": [
                                    {"upgrade_type": "CONNECT", "connect_config": {}}
                                ],
                            },
                        }
                    ],
                }
            ]
        },
        "access_log": _access_log(options.access_log),
    }
    listener = {
        "name": "hbone",
        "address": _address(options.address, options.port),
        "filter_chains": [
            {
                "transport_socket": _tls("DownstreamTlsContext", options.client_prefix),
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    authority = {
        "name": "authority",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
        "circuit_breakers": _UNLIMITED,
    }
    return {"static_resources": {"listeners": [listener], "clusters": [authority]}}


def client(options: ClientOptions) -> Json:
    """An HBONE client's whole configuration, but for the admin socket."""
    listeners = [
        {
            "name": f"tunnel-{port}",
            "address": _address(options.address, port),
            "filter_chains": [_tcp_proxy("hbone", authority, options.access_log)],
        }
        for port, authority in options.tunnels.items()
    ]
    clusters = []
    if options.peer is not None:
        clusters.append(
            {
                "name": "hbone",
                "type": "STATIC",
                **_tunnel_cluster(options),
                "load_assignment": {
                    "cluster_name": "hbone",
                    "endpoints": [
                        {"lb_endpoints": [{"endpoint": {"address": _address(*options.peer)}}]}
                    ],
                },
            }
        )
    if options.capture_port is not None:
        authority = "%DOWNSTREAM_LOCAL_ADDRESS%"
        listeners.append(
            {
                "name": "capture",
                "address": _address("0.0.0.0", options.capture_port),
                "listener_filters": [_ORIGINAL_DESTINATION],
                "filter_chains": [_tcp_proxy("captured", authority, options.access_log)],
            }
        )
        clusters.append(
            {
                "name": "captured",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "original_dst_lb_config": {"upstream_port_override": HBONE_PORT},
                "upstream_bind_config": _bound_with(options.mark),
                **_tunnel_cluster(options),
            }
        )
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def plain(capture_port: int, mark: int, *, access_log: bool = False) -> Json:
    """A TCP proxy and no more: connections that were redirected to `capture_port` go on to where
    they were going."""
    listener = {
        "name": "capture",
        "address": _address("0.0.0.0", capture_port),
        "listener_filters": [_ORIGINAL_DESTINATION],
        "filter_chains": [_tcp_proxy("captured", "", access_log)],
    }
    cluster = {
        "name": "captured",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": _UNLIMITED,
        "upstream_bind_config": _bound_with(mark),
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _bound_with(mark: int) -> Json:
    return {
        "source_address": {"address": "0.0.0.0", "port_value": 0},
        "socket_options": [
            {
                "description": "SO_MARK",
                "level": 1,
                "name": 36,
                "int_value": mark,
                "state": "STATE_PREBIND",
            }
        ],
    }


def _address(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _access_log(wanted: bool) -> list[Json]:
    if not wanted:
        return []
    log = f"{_TYPE}.access_loggers.file.v3.FileAccessLog"
    return [{"name": "file", "typed_config": {"@type": log, "path": "access.log"}}]


def _tcp_proxy(cluster: str, authority: str, access_log: bool) -> Json:
    proxy: Json = {
        "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
        "access_log": _access_log(access_log),
    }
    if authority:
        proxy["tunneling_config"] = {"hostname": authority}
    return {"filters": [{"name": "tcp", "typed_config": proxy}]}


def _tunnel_cluster(options: ClientOptions) -> Json:
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "connect_timeout": "5s",
        "circuit_breakers": _UNLIMITED,
        "typed_extension_protocol_options": {
            protocol: {
                "@type": f"type.googleapis.com/{protocol}",
                "common_http_protocol_options": {"idle_timeout": "3600s"},
                "explicit_http_config": {"http2_protocol_options": options.http2.json()},
            }
        },
        "transport_socket": _tls("UpstreamTlsContext", options.server_prefix),
    }


def _tls(context: str, peer_prefix: str) -> Json:
    """TLS 1.3 with the certificate in the working folder; the peer's SPIFFE URI must match."""
    found: Json = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.{context}",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": "chain.pem"},
                    "private_key": {"filename": "key.pem"},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": "roots.pem"},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"prefix": peer_prefix}}
                ],
            },
        },
    }
    if context == "DownstreamTlsContext":
        found["require_client_certificate"] = True
    return {"name": "tls", "typed_config": found}
