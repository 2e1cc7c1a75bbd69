"""The environment, read once at start into frozen, typed values.

The names, defaults and meanings are those that Istio's node proxy reads, so that one manifest
starts either. Variables of our own begin with ``ZTUNNEL_``; :func:`help_text` lists them all.
"""

from ztunnel.config.load import load
from ztunnel.config.model import (
    CaConfig,
    Config,
    DnsConfig,
    KeepaliveConfig,
    LogFormat,
    NodeConfig,
    OriginalSource,
    ProxyMode,
    SocketConfig,
    TelemetryConfig,
    TlsRecords,
    TunnelConfig,
    UnknownPolicy,
    WorkloadName,
    XdsConfig,
)
from ztunnel.config.reader import ConfigError, Variable
from ztunnel.config.secrets import RootCertificates, Token
from ztunnel.config.table import help_text, variables

__all__ = [
    "CaConfig",
    "Config",
    "ConfigError",
    "DnsConfig",
    "KeepaliveConfig",
    "LogFormat",
    "NodeConfig",
    "OriginalSource",
    "ProxyMode",
    "RootCertificates",
    "SocketConfig",
    "TelemetryConfig",
    "TlsRecords",
    "Token",
    "TunnelConfig",
    "UnknownPolicy",
    "Variable",
    "WorkloadName",
    "XdsConfig",
    "help_text",
    "load",
    "variables",
]
