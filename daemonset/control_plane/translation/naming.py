"""Names that a workload is known by in telemetry: workload name, canonical name, revision."""

from __future__ import annotations

import re
from collections.abc import Mapping

from daemonset.control_plane.objects.meta import ObjectMeta

WORKLOAD_NAME = "service.istio.io/workload-name"

_CRON_JOB = re.compile(r"(.+)-\d{8,10}")


def workload_name(meta: ObjectMeta) -> str:
    """What the pod belongs to, by Istio's heuristics: a label, else its controller."""
    label = meta.labels.get(WORKLOAD_NAME)
    if label:
        return label
    owner = meta.controller
    # A pod without generateName was named by hand: its owner is no template of it.
    if owner is None or not meta.generate_name:
        return meta.name
    name = owner.name
    if owner.kind == "ReplicaSet":
        for key in ("pod-template-hash", "rollouts-pod-template-hash"):
            suffix = f"-{meta.labels.get(key, '')}"
            if len(suffix) > 1 and name.endswith(suffix):
                return name.removesuffix(suffix)
        return name
    if owner.kind == "ReplicationController":
        return meta.labels.get("deploymentconfig") or name
    if owner.kind == "Job":
        cron_job = _CRON_JOB.fullmatch(name)
        return cron_job[1] if cron_job else name
    return name


def canonical_name(labels: Mapping[str, str], fallback: str) -> str:
    return (
        labels.get("service.istio.io/canonical-name")
        or labels.get("app.kubernetes.io/name")
        or labels.get("app")
        or fallback
    )


def canonical_revision(labels: Mapping[str, str]) -> str:
    return (
        labels.get("service.istio.io/canonical-revision")
        or labels.get("app.kubernetes.io/version")
        or labels.get("version")
        or "latest"
    )
