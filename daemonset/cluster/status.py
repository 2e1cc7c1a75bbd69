"""``ambient status`` of a cluster: its nodes, the control plane, certificates, and pods. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from daemonset.agent.enrolment import MODE_LABEL
from daemonset.cluster.checks.system import roots
from daemonset.cluster.members import (
    Member,
    NodeView,
    image_version,
    is_ready,
    last_words,
    members,
    namespace_labels,
    node_views,
    pods_of,
)
from daemonset.cluster.names import CONTROL_PLANE
from daemonset.cluster.survey import Survey
from daemonset.control_plane.ca.root_maps import MANAGED_BY, OWNER
from daemonset.control_plane.kubernetes_backend import LEASE
from daemonset.kube.client import Json


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """``agent`` and ``ztunnel`` are in words; ``pods`` counts those of the mesh that are
    captured."""

    name: str
    agent: str
    agent_version: str
    ztunnel: str
    ztunnel_version: str
    cni: str
    pods: int


@dataclass(frozen=True, slots=True)
class Replica:
    """Of the control plane."""

    name: str
    node: str
    state: str
    version: str
    leads: bool


@dataclass(frozen=True, slots=True)
class Root:
    """A root certificate that workloads are to trust, and for how many days it holds."""

    name: str
    expires: str
    days: int
    namespaces: int


@dataclass(frozen=True, slots=True)
class PodLine:
    """``state``: in, pending, out, or what the node agent calls its trouble."""

    namespace: str
    name: str
    node: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything; ``elsewhere`` counts the pods of namespaces that have nothing to do with the
    mesh, which are not listed."""

    nodes: tuple[NodeStatus, ...]
    control_plane: tuple[Replica, ...]
    roots: tuple[Root, ...]
    pods: tuple[PodLine, ...]
    elsewhere: int
    unseen: tuple[str, ...]


def overview(survey: Survey, namespace: str = "", *, everybody: bool = False) -> Overview:
    """How things are.

    Args:
        namespace: list only its pods.
        everybody: list pods of namespaces that have nothing to do with the mesh as well.
    """
    everyone = [one for one in members(survey) if not one.pod.finished]
    if namespace:
        shown = [one for one in everyone if one.pod.meta.namespace == namespace]
    elif everybody:
        shown = everyone
    else:
        concerned = _concerned(survey, everyone)
        shown = [one for one in everyone if one.pod.meta.namespace in concerned]
    captured = Counter(one.pod.node for one in everyone if one.captured)
    return Overview(
        tuple(_node(view, captured[view.name]) for view in node_views(survey)),
        tuple(_replicas(survey)),
        tuple(_roots(survey)),
        tuple(map(_pod, shown)),
        0 if namespace else len(everyone) - len(shown),
        tuple(f"{name}: {reason}" for name, reason in sorted(survey.unseen.items())),
    )


def as_data(found: Overview) -> dict[str, object]:
    """For programs."""
    return asdict(found)


Table = tuple[Sequence[str], list[Sequence[str]]]


def as_tables(found: Overview) -> list[Table]:
    """For people: a header and rows each."""
    replicas = [
        (one.name, one.node, one.state, one.version, "leads" if one.leads else "")
        for one in found.control_plane
    ]
    certificates = [
        (one.name, one.expires, f"{one.days} days", f"{one.namespaces}") for one in found.roots
    ]
    nodes = [
        (
            one.name,
            _versioned(one.agent, one.agent_version),
            _versioned(one.ztunnel, one.ztunnel_version),
            one.cni,
            f"{one.pods}",
        )
        for one in found.nodes
    ]
    pods = [
        (f"{one.namespace}/{one.name}", one.node or "-", one.state, one.reason)
        for one in found.pods
    ]
    return [
        (("NODE", "AGENT", "ZTUNNEL", "CNI", "PODS"), list(nodes)),
        (("CONTROL PLANE", "NODE", "STATE", "VERSION", ""), list(replicas)),
        (("ROOT CERTIFICATE", "EXPIRES", "IN", "NAMESPACES"), list(certificates)),
        (("POD", "NODE", "MESH", "WHY"), list(pods)),
    ]


def _versioned(state: str, version: str) -> str:
    return f"{state} ({version})" if version else state


def _concerned(survey: Survey, everyone: Sequence[Member]) -> set[str]:
    """Namespaces that ask for the mesh, or where somebody is in it, or ought to be."""
    found = {name for name, labels in namespace_labels(survey).items() if MODE_LABEL in labels}
    return found | {
        one.pod.meta.namespace
        for one in everyone
        if one.enrolment.enrolled or one.redirection or one.trouble is not None
    }


def _node(view: NodeView, captured: int) -> NodeStatus:
    report = view.report
    cni = "-"
    if report is not None and report.chain is not None:
        cni = report.chain.complaint or report.chain.file or "-"
    elif report is not None:
        cni = "no plugin"
    ztunnel = _state(view.ztunnel)
    if ztunnel == "ready" and report is not None:
        if not report.ztunnels:
            ztunnel = "not connected to the agent"
        elif not report.synchronised:
            ztunnel = "is being told its pods"
    if report is not None and report.withdrawn:
        cni = "withdrawn"
    return NodeStatus(
        view.name,
        _state(view.agent),
        image_version(view.agent),
        ztunnel,
        image_version(view.ztunnel),
        cni,
        captured,
    )


def _state(pod: Json | None) -> str:
    if pod is None:
        return "none"
    if "deletionTimestamp" in pod["metadata"]:
        return "ends"
    if is_ready(pod):
        return "ready"
    words = last_words(pod)
    return f"not ready: {words}" if words else "not ready"


def _replicas(survey: Survey) -> list[Replica]:
    namespace = survey.installation.namespace
    leader = ""
    for item in survey.all("leases"):
        meta = item["metadata"]
        if (meta.get("namespace"), meta["name"]) == (namespace, LEASE):
            leader = str((item.get("spec") or {}).get("holderIdentity") or "")
    return [
        Replica(
            str(pod["metadata"]["name"]),
            str((pod.get("spec") or {}).get("nodeName", "")),
            _state(pod),
            image_version(pod),
            str(pod["metadata"]["name"]) == leader,
        )
        for pod in pods_of(survey.all("pods"), namespace, CONTROL_PLANE)
    ]


def _roots(survey: Survey) -> list[Root]:
    ours = {
        str(item["metadata"].get("namespace", ""))
        for item in survey.all("roots")
        if (item["metadata"].get("labels") or {}).get(MANAGED_BY) == OWNER
    }
    found: dict[bytes, Root] = {}
    for namespace, certificates in sorted(roots(survey).items()):
        for certificate in certificates:
            if namespace not in ours:
                continue
            identity = certificate.tbs_certificate_bytes
            before = found.get(identity)
            end = certificate.not_valid_after_utc
            found[identity] = Root(
                certificate.subject.rfc4514_string(),
                f"{end:%Y-%m-%d}",
                (end - survey.now).days,
                1 if before is None else before.namespaces + 1,
            )
    return list(found.values())


def _pod(member: Member) -> PodLine:
    meta = member.pod.meta
    state, reason = _membership(member)
    return PodLine(meta.namespace, meta.name, member.pod.node, state, reason)


def _membership(member: Member) -> tuple[str, str]:
    if member.trouble is not None:
        return member.trouble.state, member.trouble.reason
    enrolled, why = member.enrolment.enrolled, member.enrolment.reason
    if member.captured:
        return ("in", "" if enrolled else f"not for long: {why}")
    if member.redirection:
        return member.redirection, "captured; no ztunnel serves it yet"
    if enrolled:
        waiting = "it has no node yet" if not member.pod.node else "no node agent has captured it"
        return "not captured", f"{why}; {waiting}"
    return "out", why
