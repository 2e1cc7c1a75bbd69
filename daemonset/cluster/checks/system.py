"""Our own namespace, the control plane, certificates, and what namespaces ask for. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from cryptography import x509

from daemonset.cluster.members import (
    image_version,
    is_ready,
    last_words,
    members,
    namespace_labels,
    pods_of,
)
from daemonset.cluster.names import CONTROL_PLANE
from daemonset.cluster.survey import Survey
from daemonset.control_plane.ca.root_maps import KEY, MANAGED_BY, OWNER
from daemonset.control_plane.ca.secret_authority import ROOT_MAP
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Findings, Severity
from daemonset.control_plane.translation.settings import DATAPLANE_MODE

_ENFORCE = "pod-security.kubernetes.io/enforce"
_PRIORITY = "system-node-critical"
_SOON_DAYS = 30
_MODES = ("ambient", "none")


def check_system(survey: Survey, findings: Findings) -> None:
    """Everything that concerns our own parts, and who is to be in the mesh."""
    _pod_security(survey, findings)
    _quota(survey, findings)
    if survey.installation.is_there:
        _control_plane(survey, findings)
        _roots(survey, findings)
    _modes(survey, findings)
    _not_captured(survey, findings)


def _pod_security(survey: Survey, findings: Findings) -> None:
    namespace = survey.installation.namespace
    labels = namespace_labels(survey).get(namespace)
    if labels is None:
        return
    level = labels.get(_ENFORCE, "")
    key = ObjectKey("Namespace", "", namespace)
    if level in ("baseline", "restricted"):
        findings.error(
            key,
            f"metadata.labels[{_ENFORCE}]",
            "PodSecurity",
            f"is {level}: the API server refuses the pods of node agent and ztunnel, which enter "
            "the network namespaces of pods.",
            f"Set {_ENFORCE}: privileged, as in daemonset/manifests/base/namespace.yaml.",
        )
    elif not level:
        findings.warning(
            key,
            f"metadata.labels[{_ENFORCE}]",
            "PodSecurity",
            "is not there: where the cluster's own default is baseline or restricted, node agent "
            "and ztunnel are refused.",
            f"Set {_ENFORCE}: privileged.",
        )


def _quota(survey: Survey, findings: Findings) -> None:
    """GKE lets critical pods only into namespaces with a quota for them."""
    namespace = survey.installation.namespace
    if "-gke." not in survey.version.get("gitVersion", "") or "quotas" in survey.unseen:
        return
    for item in survey.all("quotas"):
        spec = item.get("spec") or {}
        scopes = (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
        if item["metadata"].get("namespace") == namespace and any(
            _PRIORITY in (scope.get("values") or ()) for scope in scopes
        ):
            return
    findings.error(
        ObjectKey("ResourceQuota", namespace, "critical-pods"),
        "",
        "NoQuota",
        f"is missing: GKE admits pods of priority {_PRIORITY} only where a quota allows them, so "
        "that neither node agent nor ztunnel starts.",
        "Use the overlay for GKE, which has one.",
    )


def _control_plane(survey: Survey, findings: Findings) -> None:
    installation = survey.installation
    if installation.control_plane is None:
        return
    pods = pods_of(survey.all("pods"), installation.namespace, CONTROL_PLANE)
    ready = [pod for pod in pods if is_ready(pod)]
    key = ObjectKey("Deployment", installation.namespace, CONTROL_PLANE)
    if not ready:
        words = next((words for words in map(last_words, pods) if words), "")
        findings.error(
            key,
            "status.readyReplicas",
            "NoControlPlane",
            "no replica is ready: new pods get no certificate, and nothing that changes reaches "
            f"the proxies{': ' + words if words else '.'}",
            f"kubectl -n {installation.namespace} logs deployment/{CONTROL_PLANE}",
        )
    elif len({image_version(pod) for pod in ready}) > 1:
        findings.add(
            Severity.INFO, key, "", "TwoVersions", "replicas of two versions serve: an update "
            "goes on, or is stuck.",
        )  # fmt: skip


def roots(survey: Survey) -> Mapping[str, list[x509.Certificate]]:
    """The roots that are handed out, by namespace; those that cannot be read are left out."""
    found: dict[str, list[x509.Certificate]] = {}
    for item in survey.all("roots"):
        pem = str((item.get("data") or {}).get(KEY, ""))
        try:
            found[str(item["metadata"].get("namespace", ""))] = x509.load_pem_x509_certificates(
                pem.encode()
            )
        except ValueError:
            continue
    return found


def _roots(survey: Survey, findings: Findings) -> None:
    said: set[bytes] = set()
    managed = {
        str(item["metadata"].get("namespace", ""))
        for item in survey.all("roots")
        if (item["metadata"].get("labels") or {}).get(MANAGED_BY) == OWNER
    }
    for namespace, certificates in sorted(roots(survey).items()):
        if namespace not in managed:
            continue
        for certificate in certificates:
            left = certificate.not_valid_after_utc - survey.now
            identity = certificate.fingerprint(certificate.signature_hash_algorithm)  # type: ignore[arg-type]
            if left.days >= _SOON_DAYS or identity in said:
                continue
            said.add(identity)
            over = left.total_seconds() < 0
            findings.add(
                Severity.ERROR if over else Severity.WARNING,
                ObjectKey("ConfigMap", namespace, ROOT_MAP),
                f"data[{KEY}]",
                "RootExpires",
                f"root {certificate.subject.rfc4514_string()} "
                f"{'expired' if over else 'expires'} on {certificate.not_valid_after_utc:%Y-%m-%d}"
                ": after that nobody trusts anybody.",
                "Put a new authority into Secret cacerts, with both roots in its root-cert.pem.",
            )


def _modes(survey: Survey, findings: Findings) -> None:
    """Labels that mean nothing, and were meant to."""
    for name, labels in sorted(namespace_labels(survey).items()):
        mode = labels.get(DATAPLANE_MODE)
        if mode is not None and mode not in _MODES:
            findings.warning(
                ObjectKey("Namespace", "", name),
                f"metadata.labels[{DATAPLANE_MODE}]",
                "UnknownMode",
                f"is {mode!r}, which means nothing: its pods are not in the mesh.",
                f"{DATAPLANE_MODE}: ambient puts them into it.",
            )
        for label in labels:
            close = difflib.get_close_matches(label, [DATAPLANE_MODE], cutoff=0.9)
            if close and label != DATAPLANE_MODE:
                findings.warning(
                    ObjectKey("Namespace", "", name),
                    f"metadata.labels[{label}]",
                    "UnknownMode",
                    f"looks like {DATAPLANE_MODE} and is not: it means nothing.",
                    f"{DATAPLANE_MODE}: ambient puts its pods into the mesh.",
                )


def _not_captured(survey: Survey, findings: Findings) -> None:
    """Pods that their namespace puts into the mesh and that are not in it."""
    labels = namespace_labels(survey)
    for member in members(survey):
        meta = member.pod.meta
        if not member.running:
            continue
        key = meta.key
        if member.enrolment.enrolled:
            if (
                survey.installation.agent is not None
                and not member.captured
                and member.trouble is None
            ):
                findings.warning(
                    key,
                    "metadata.annotations",
                    "NotCaptured",
                    f"is to be in the mesh ({member.enrolment.reason}) and no node agent has "
                    "captured it (yet).",
                    f"See the log of the agent on {member.pod.node or 'its node'}.",
                )
        elif (
            labels.get(meta.namespace, {}).get(DATAPLANE_MODE) == "ambient"
            and meta.labels.get(DATAPLANE_MODE) != "none"
        ):
            findings.add(
                Severity.INFO,
                key,
                "",
                "LeftOut",
                f"is not in the mesh although its namespace is: {member.enrolment.reason}.",
            )
