"""Our own namespace, the control plane, certificates, and what namespaces ask for. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from cryptography import x509

from daemonset.agent.report import WITHDRAW
from daemonset.cluster.members import (
    Member,
    image_version,
    is_ready,
    last_words,
    members,
    namespace_labels,
    pods_of,
)
from daemonset.cluster.names import AGENT, CONTROL_PLANE
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
_SOME = 5


def check_system(survey: Survey, findings: Findings) -> None:
    """Everything that concerns our own parts, and who is to be in the mesh."""
    _pod_security(survey, findings)
    _quota(survey, findings)
    if survey.installation.is_there:
        _withdrawal(survey, findings)
        _revisions(survey, findings)
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


def _withdrawal(survey: Survey, findings: Findings) -> None:
    """An uninstallation that has begun and is not over."""
    namespace = survey.installation.namespace
    if namespace_labels(survey).get(namespace, {}).get(WITHDRAW):
        findings.error(
            ObjectKey("Namespace", "", namespace),
            f"metadata.labels[{WITHDRAW}]",
            "Withdrawn",
            "has the node agents leave their nodes: no pod is in the mesh, or will be.",
            "`ambient uninstall` goes on with it, `ambient uninstall --cancel` takes it back.",
        )


def _revisions(survey: Survey, findings: Findings) -> None:
    """Agents and control plane must agree on whose a pod is."""
    installation = survey.installation
    agents, plane = installation.enrolment.revision, installation.settings.revision
    if installation.agent is None or installation.control_plane is None or agents == plane:
        return
    findings.error(
        ObjectKey("DaemonSet", installation.namespace, AGENT),
        "spec.template.spec.containers[0].args",
        "TwoRevisions",
        f"is of revision {agents}, and the control plane of {plane}: agents capture pods that the "
        "control plane leaves to somebody else, and the other way round.",
        "Give both the same --revision.",
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
    """Pods that their namespace puts into the mesh and that are not in it: one finding for all
    of a namespace with one reason."""
    labels = namespace_labels(survey)
    waiting: dict[tuple[str, str], list[Member]] = {}
    out: dict[tuple[str, str], list[Member]] = {}
    for member in members(survey):
        meta = member.pod.meta
        group = (meta.namespace, member.enrolment.reason)
        if not member.running:
            continue
        if member.enrolment.enrolled:
            known = member.captured or member.trouble is not None
            if survey.installation.agent is not None and not known:
                waiting.setdefault(group, []).append(member)
        elif (
            labels.get(meta.namespace, {}).get(DATAPLANE_MODE) == "ambient"
            and meta.labels.get(DATAPLANE_MODE) != "none"
        ):
            out.setdefault(group, []).append(member)
    for (_, reason), some in waiting.items():
        findings.warning(
            some[0].pod.meta.key,
            "metadata.annotations",
            "NotCaptured",
            f"{_and_others(some)}is to be in the mesh ({reason}) and no node agent has captured it"
            " (yet).",
            f"See the log of the agent on {some[0].pod.node or 'its node'}.",
        )
    for (_, reason), some in out.items():
        findings.add(
            Severity.INFO,
            some[0].pod.meta.key,
            "",
            "LeftOut",
            f"{_and_others(some)}is not in the mesh although its namespace is: {reason}.",
        )


def _and_others(some: list[Member]) -> str:
    if len(some) == 1:
        return ""
    names = ", ".join(one.pod.meta.name for one in some[1:_SOME])
    return f"(like {len(some) - 1} more: {names}{', …' if len(some) > _SOME else ''}) "
