"""The two YAML documents that Istio hands to a proxy: the mesh configuration file, whose
``defaultConfig`` holds for all proxies, and PROXY_CONFIG, which overrides it for this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztunnel.config import values

MESH_CONFIG_PATH = Path("./etc/istio/config/mesh")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The keys that concern a node proxy; others belong to sidecars and gateways and are
    ignored. None: not given."""

    discovery_address: str | None = None
    admin_port: int | None = None
    stats_port: int | None = None
    concurrency: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_proxy_config(
    inline: str | None, mesh_config: str | None, problems: list[str]
) -> ProxyConfig:
    """Merges ``inline`` (PROXY_CONFIG) over ``mesh_config`` (the file's text). What cannot be
    read is noted in ``problems``."""
    merged: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for source, text in ((str(MESH_CONFIG_PATH), mesh_config), ("PROXY_CONFIG", inline)):
        document = _mapping(source, text, problems)
        if source != "PROXY_CONFIG":
            document = _section(document, "defaultConfig", source, problems)
        metadata |= _section(document, "proxyMetadata", source, problems)
        merged |= {key: value for key, value in document.items() if value is not None}
    return ProxyConfig(
        discovery_address=_text(merged, "discoveryAddress", problems),
        admin_port=_number(merged, "proxyAdminPort", 1, 65535, problems),
        stats_port=_number(merged, "statsPort", 1, 65535, problems),
        concurrency=_number(merged, "concurrency", 0, 4096, problems),
        metadata={str(key): _scalar(value) for key, value in metadata.items()},
    )


def _mapping(source: str, text: str | None, problems: list[str]) -> dict[str, Any]:
    if not text or not text.strip():
        return {}
    # Workers load their configuration too, and must not pay for a YAML parser they do not use.
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{source}: not YAML: {' '.join(str(error).split())}")
        return {}
    if document is None:
        return {}
    if not isinstance(document, dict):
        problems.append(f"{source}: a mapping is needed, not {type(document).__name__}")
        return {}
    return document


def _section(
    document: dict[str, Any], key: str, source: str, problems: list[str]
) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{source}: {key}: a mapping is needed, not {type(value).__name__}")
        return {}
    return value


def _text(document: dict[str, Any], key: str, problems: list[str]) -> str | None:
    value = document.get(key)
    if value is None or isinstance(value, str):
        return value
    problems.append(f"proxy configuration: {key}: text is needed, not {value!r}")
    return None


def _number(
    document: dict[str, Any], key: str, minimum: int, maximum: int, problems: list[str]
) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    try:
        return values.integer(str(value), minimum, maximum)
    except ValueError as error:
        problems.append(f"proxy configuration: {key}: {value!r}: {error}")
        return None


def _scalar(value: Any) -> str:
    """Environment variables are text; YAML's ``true`` must not become ``True``."""
    return str(value).lower() if isinstance(value, bool) else str(value)
