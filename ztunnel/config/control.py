"""The variables that say who this process is and whom it trusts: node, token, control plane, CA."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ztunnel.config.mesh_file import ProxyConfig
from ztunnel.config.model import CaConfig, DnsConfig, NodeConfig, XdsConfig
from ztunnel.config.reader import Reader
from ztunnel.config.secrets import RootCertificates, Token

DEFAULT_ROOTS: Final = "./var/run/secrets/istio/root-cert.pem"
DEFAULT_TOKEN: Final = Path("./var/run/secrets/tokens/istio-token")
_META: Final = "ISTIO_META_"
_META_JSON: Final = "ISTIO_METAJSON_"
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)


def read_token(reader: Reader) -> Token:
    default = Token(path=DEFAULT_TOKEN) if DEFAULT_TOKEN.exists() else Token()
    return reader.read(
        "AUTH_TOKEN",
        default,
        lambda text: Token.from_setting(text) if text else default,
        "Bearer token for the control plane and the CA: a file, read at each use, or the token.",
        "path or token",
        f"{DEFAULT_TOKEN} if it exists",
    )


def read_node(reader: Reader, proxy: ProxyConfig) -> NodeConfig:
    cluster = reader.text(
        "ISTIO_META_CLUSTER_ID",
        proxy.metadata.get("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        "The cluster, unless CLUSTER_ID names it.",
    )
    return NodeConfig(
        node_name=reader.text("NODE_NAME", "", "This node; empty: all workloads count as local."),
        network=reader.text("NETWORK", "", "The network that this node's addresses belong to."),
        cluster_id=reader.text("CLUSTER_ID", cluster, "The cluster."),
        cluster_domain=reader.text("CLUSTER_DOMAIN", "cluster.local", "DNS domain of Services."),
        trust_domain=reader.text("TRUST_DOMAIN", "cluster.local", "Trust domain of this process."),
        pod_name=reader.text("POD_NAME", "", "This pod."),
        pod_namespace=reader.text("POD_NAMESPACE", "", "The namespace of this pod."),
        service_account=reader.text("SERVICE_ACCOUNT", "", "The service account of this pod."),
        instance_ip=reader.text("INSTANCE_IP", "1.1.1.1", "The address of this pod."),
        istio_version=reader.text(
            "ISTIO_META_ISTIO_VERSION",
            proxy.metadata.get("ISTIO_META_ISTIO_VERSION", "unknown"),
            "Version reported in the istio_build metric.",
        ),
    )


def _address(reader: Reader, name: str, proxy: ProxyConfig, what: str) -> str | None:
    in_kubernetes = reader.environment.get("KUBERNETES_SERVICE_HOST")
    host = "istiod.istio-system.svc" if in_kubernetes else "localhost"
    default = proxy.discovery_address or f"https://{host}:15012"

    def parse(text: str) -> str | None:
        if not text:
            return None
        url = text if "://" in text else f"https://{text}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.port:
            raise ValueError("allowed is https://host:port, http://host:port, or empty for none")
        return f"{parts.scheme}://{parts.netloc}"

    try:
        parsed = parse(default)
    except ValueError as error:
        reader.problems.append(f"proxy configuration: discoveryAddress: {error}")
        parsed = None
    shown = "https://istiod.istio-system.svc:15012 in Kubernetes, else https://localhost:15012"
    return reader.read(name, parsed, parse, what, "URL", shown)


def _roots(reader: Reader, name: str, what: str) -> RootCertificates:
    text = reader.text(name, DEFAULT_ROOTS, what)
    return RootCertificates(text or DEFAULT_ROOTS)


def _headers(reader: Reader, prefix: str, what: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in reader.prefixed(prefix, what).items():
        header = name.lower()
        if not _HEADER_NAME.fullmatch(header):
            reader.problems.append(f"{prefix}{name}: {header!r} is not a header name")
        elif not (value.isascii() and value.isprintable()):
            reader.problems.append(f"{prefix}{name}: the value cannot be sent in a header")
        else:
            headers[header] = value
    return headers


def _metadata(reader: Reader, proxy: ProxyConfig) -> dict[str, object]:
    metadata: dict[str, object] = {
        key.removeprefix(_META): value
        for key, value in proxy.metadata.items()
        if key.startswith(_META)
    }
    metadata |= reader.prefixed(_META, "Metadata of this node for the control plane.")
    for name, text in reader.prefixed(_META_JSON, "The same, as JSON.").items():
        try:
            metadata[name] = json.loads(text)
        except (ValueError, RecursionError) as error:
            reader.problems.append(f"{_META_JSON}{name}: not JSON: {error}")
    return metadata


def read_xds(reader: Reader, proxy: ProxyConfig, dns: DnsConfig) -> XdsConfig:
    path = reader.optional_text("LOCAL_XDS_PATH", "File with workloads, services and policies.")
    text = reader.optional_text("LOCAL_XDS", "The same, as YAML text.")
    if path and text:
        reader.problems.append("LOCAL_XDS_PATH and LOCAL_XDS cannot both be set")
    reader.read(
        "KUBERNETES_SERVICE_HOST",
        "",
        str,
        "Set in Kubernetes; chooses the default control plane.",
        "text",
        "not set",
    )
    on_demand = reader.boolean(
        "XDS_ON_DEMAND", False, "Ask the control plane for an address when it is first needed."
    )
    if on_demand and dns.enabled:
        reader.problems.append(
            "XDS_ON_DEMAND=true cannot be combined with the DNS proxy, which needs to know all "
            "names; set ISTIO_META_DNS_CAPTURE=false"
        )
    return XdsConfig(
        address=_address(reader, "XDS_ADDRESS", proxy, "The control plane; empty: no xDS."),
        roots=_roots(reader, "XDS_ROOT_CA", "Roots for it: a path, PEM text, or SYSTEM."),
        alternative_hostname=reader.optional_text(
            "ALT_XDS_HOSTNAME", "Host name that its certificate may carry instead."
        ),
        on_demand=on_demand,
        headers=_headers(reader, "XDS_HEADER_", "Extra headers for the control plane."),
        metadata=_metadata(reader, proxy),
        local_path=Path(path) if path else None,
        local_text=text,
        lookup_timeout=reader.duration(
            "ZTUNNEL_LOOKUP_TIMEOUT", "5s", "How long an on-demand look-up may take.", True
        ),
    )


def read_ca(reader: Reader, proxy: ProxyConfig) -> CaConfig:
    crl = reader.optional_text("CRL_PATH", "Revoked certificates, PEM or DER, watched.")
    return CaConfig(
        address=_address(reader, "CA_ADDRESS", proxy, "The certificate authority."),
        roots=_roots(reader, "CA_ROOT_CA", "Roots for it: a path, PEM text, or SYSTEM."),
        alternative_hostname=reader.optional_text(
            "ALT_CA_HOSTNAME", "Host name that its certificate may carry instead."
        ),
        headers=_headers(reader, "CA_HEADER_", "Extra headers for the certificate authority."),
        certificate_lifetime=reader.duration(
            "SECRET_TTL", "24h", "Lifetime to ask for in certificates.", True
        ),
        crl_path=Path(crl) if crl else None,
    )
