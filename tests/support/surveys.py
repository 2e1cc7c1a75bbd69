"""Surveys of clusters that exist only on paper."""

from __future__ import annotations

import copy
import datetime
import functools
from typing import Any

import yaml

from daemonset.agent.report import REPORT, NodeReport, report_text
from daemonset.cluster.check import check_survey
from daemonset.cluster.installation import find_installation
from daemonset.cluster.names import SYSTEM
from daemonset.cluster.survey import Survey
from daemonset.control_plane.translation.finding import Finding
from tests.support.kube.manifests import MANIFESTS, read_base

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
_PLACES = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "Pod": "pods",
    "DaemonSet": "daemonsets",
    "Deployment": "deployments",
    "NetworkPolicy": "networkpolicies",
    "CustomResourceDefinition": "definitions",
    "MutatingWebhookConfiguration": "webhooks",
    "ResourceQuota": "quotas",
    "Lease": "leases",
    "FelixConfiguration": "felix",
    "CiliumClusterwideNetworkPolicy": "cluster cilium policies",
    "PeerAuthentication": "peer authentications",
}


@functools.cache
def _manifests() -> tuple[Any, ...]:
    return tuple(read_base(MANIFESTS / "lasting") + read_base(MANIFESTS / "base"))


def survey(text: str = "", *, installed: bool = False, **changes: Any) -> Survey:
    """A cluster of these objects (YAML), with our manifests applied where it is ``installed``."""
    items = [item for item in yaml.safe_load_all(text) if item]
    if installed:
        items += copy.deepcopy(_manifests())
    objects: dict[str, list[Any]] = {}
    for item in items:
        name = item["metadata"]["name"]
        place = _PLACES.get(item["kind"])
        if item["kind"] == "ConfigMap":
            place = "cilium" if name == "cilium-config" else "roots"
        if place:
            objects.setdefault(place, []).append(item)
    values: dict[str, Any] = {
        "version": {"major": "1", "minor": "36", "gitVersion": "v1.36.3"},
        "objects": objects,
        "installation": find_installation(
            SYSTEM, objects.get("daemonsets", []), objects.get("deployments", [])
        ),
        "now": NOW,
    }
    return Survey(**{**values, **changes})


def reasons(of: Survey) -> set[str]:
    """Of all findings."""
    return {finding.reason for finding in check_survey(of)}


def finding(of: Survey, reason: str) -> Finding:
    """The one finding of a reason."""
    [found] = [one for one in check_survey(of) if one.reason == reason]
    return found


def node(name: str, **info: str) -> str:
    """A node's YAML."""
    known = {"operatingSystem": "linux", "architecture": "amd64", "kernelVersion": "6.1.0", **info}
    return yaml.safe_dump(
        {"kind": "Node", "metadata": {"name": name}, "status": {"nodeInfo": known}}
    ) + "---\n"  # fmt: skip


def our_pod(app: str, node_name: str, report: NodeReport | None = None, **status: Any) -> str:
    """A pod of one of our parts that is ready, unless ``status`` says otherwise."""
    annotations = {REPORT: report_text(report)} if report is not None else {}
    [containers] = [
        item["spec"]["template"]["spec"]["containers"]
        for item in _manifests()
        if item["kind"] in ("DaemonSet", "Deployment") and item["metadata"]["name"] == app
    ]
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return yaml.safe_dump(
        {
            "kind": "Pod",
            "metadata": {
                "name": f"{app}-{node_name}",
                "namespace": SYSTEM,
                "labels": {"app": app, "istio.io/dataplane-mode": "none"},
                "annotations": annotations,
            },
            "spec": {"nodeName": node_name, "containers": containers},
            "status": {**ready, **status},
        }
    ) + "---\n"  # fmt: skip
