"""PeerAuthentication (security.istio.io/v1), read strictly: unknown fields are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.selector import LabelSelector


class MutualTLSMode(Enum):
    """Modes of the API."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """``selector`` is None for a policy of its whole namespace (or mesh)."""

    meta: ObjectMeta
    selector: LabelSelector | None
    mode: MutualTLSMode
    ports: Mapping[int, MutualTLSMode]


def read_peer_authentication(root: Section) -> PeerAuthentication:
    """Raises ObjectError."""
    meta = read_meta(root, "PeerAuthentication", namespaced=True)
    spec = root.section("spec").strictly()
    selector = read_workload_selector(spec)
    mode = _read_mode(spec.section("mtls"))
    ports: dict[int, MutualTLSMode] = {}
    levels = spec.section("portLevelMtls")
    for text in levels.names():
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
            raise levels.error(text, "is not a port number")
        ports[int(text)] = _read_mode(levels.section(text))
    if ports and selector is None:
        raise spec.error("portLevelMtls", "needs a selector: ports belong to workloads")
    spec.finish()
    return PeerAuthentication(meta, selector, mode, ports)


def _read_mode(section: Section) -> MutualTLSMode:
    mode = section.choice("mode", [mode.value for mode in MutualTLSMode], "UNSET")
    section.finish()
    return MutualTLSMode(mode)


def read_workload_selector(spec: Section) -> LabelSelector | None:
    """Istio's WorkloadSelector: matchLabels alone; absent or empty means no selector.

    Raises:
        ObjectError: another field, or a wildcard, which would never match a label.
    """
    if not spec.has("selector"):
        return None
    section = spec.section("selector")
    labels = section.text_map("matchLabels")
    section.finish()
    for key, value in labels.items():
        if not key or "*" in key or "*" in value:
            raise section.error("matchLabels", f"wildcards are not supported: {key}: {value}")
    return LabelSelector(labels) if labels else None
