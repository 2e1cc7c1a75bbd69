"""Is there another owner of the mesh, or something that one has left behind? Pure."""

from __future__ import annotations

from daemonset.agent.owners import mounts_of_an_agent
from daemonset.agent.pod_notes import REDIRECTION
from daemonset.cluster.members import members, namespace_labels, pods_of
from daemonset.cluster.names import AGENT, ZDS_FOLDER
from daemonset.cluster.survey import Survey
from daemonset.control_plane.ca.root_maps import KEY, MANAGED_BY, OWNER
from daemonset.control_plane.ca.secret_authority import ROOT_MAP
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Findings, Severity
from daemonset.control_plane.translation.settings import DATAPLANE_MODE

_SOME = 5


def check_owners(survey: Survey, findings: Findings) -> None:
    """Node agents, control planes, roots of trust, sidecars, and annotations without an agent."""
    _agents(survey, findings)
    _control_planes(survey, findings)
    _roots(survey, findings)
    _sidecars(survey, findings)
    _left_behind(survey, findings)


def _agents(survey: Survey, findings: Findings) -> None:
    installation = survey.installation
    for item in survey.all("daemonsets"):
        meta = item["metadata"]
        own = (meta.get("namespace"), meta["name"]) == (installation.namespace, AGENT)
        if not own and mounts_of_an_agent(item["spec"]["template"], ZDS_FOLDER):
            findings.error(
                ObjectKey("DaemonSet", str(meta.get("namespace", "")), str(meta["name"])),
                "spec.template.spec.volumes",
                "AnotherAgent",
                f"is the node agent of another mesh (it mounts {ZDS_FOLDER} and the node's CNI): "
                "two agents would write over each other's rules; ours does not start beside it.",
                "Uninstall one of the two, or keep them to different nodes.",
            )


def _control_planes(survey: Survey, findings: Findings) -> None:
    installation = survey.installation
    for item in survey.all("deployments"):
        meta = item["metadata"]
        labels = (item["spec"].get("template") or {}).get("metadata", {}).get("labels") or {}
        if labels.get("app") != "istiod":
            continue
        key = ObjectKey("Deployment", str(meta.get("namespace", "")), str(meta["name"]))
        revision = labels.get("istio.io/rev", "default")
        if installation.control_plane is None and installation.agent is not None:
            continue  # our data plane below Istio's control plane
        own = installation.settings.revision
        findings.add(
            Severity.ERROR if installation.is_there and revision == own else Severity.WARNING,
            key,
            "spec.template.metadata.labels",
            "AnotherControlPlane",
            f"is Istio's control plane, of revision {revision}: it hands out root certificates "
            f"in every namespace as ours does (ours is of revision {own}), and both read the same "
            "objects.",
            "Keep one of them; or our data plane below istiod, by the overlay for that.",
        )


def _roots(survey: Survey, findings: Findings) -> None:
    """Workloads of a namespace with other roots trust nobody in the mesh."""
    if survey.installation.control_plane is None:
        return
    ours: set[str] = set()
    foreign: list[tuple[str, str]] = []
    for item in survey.all("roots"):
        meta = item["metadata"]
        roots = str((item.get("data") or {}).get(KEY, ""))
        if (meta.get("labels") or {}).get(MANAGED_BY) == OWNER:
            ours.add(roots)
        else:
            foreign.append((str(meta.get("namespace", "")), roots))
    for namespace, roots in foreign:
        if roots not in ours:
            findings.error(
                ObjectKey("ConfigMap", namespace, ROOT_MAP),
                f"data[{KEY}]",
                "OtherRoots",
                "belongs to somebody else and holds other roots: workloads there do not trust this "
                "mesh.",
                "Delete it once its owner is gone; it is written anew at once.",
            )


def _sidecars(survey: Survey, findings: Findings) -> None:
    if not any("istio-sidecar-injector" in str(item["metadata"]["name"])
               for item in survey.all("webhooks")):  # fmt: skip
        return
    for name, labels in sorted(namespace_labels(survey).items()):
        injected = labels.get("istio-injection") == "enabled" or (
            "istio.io/rev" in labels and labels.get("istio-injection") != "disabled"
        )
        if injected and labels.get(DATAPLANE_MODE) == "ambient":
            findings.warning(
                ObjectKey("Namespace", "", name),
                "metadata.labels",
                "SidecarsToo",
                "asks for sidecars and for ambient: new pods get a sidecar, and a pod with one "
                "is left out of the mesh.",
                f"Take off one of the labels istio-injection, istio.io/rev and {DATAPLANE_MODE}.",
            )


def _left_behind(survey: Survey, findings: Findings) -> None:
    """Annotations of pods on nodes where nobody keeps them."""
    served = {
        str((item.get("spec") or {}).get("nodeName", ""))
        for item in survey.all("pods")
        if mounts_of_an_agent(item, ZDS_FOLDER)
    }
    served |= {
        str((item.get("spec") or {}).get("nodeName", ""))
        for item in pods_of(survey.all("pods"), survey.installation.namespace, AGENT)
    }
    left = [
        member
        for member in members(survey)
        if member.redirection and member.running and member.pod.node not in served
    ]
    if left:
        some = ", ".join(map(str, left[:_SOME])) + (", …" if len(left) > _SOME else "")
        first = left[0].pod.meta
        findings.error(
            ObjectKey("Pod", first.namespace, first.name),
            f"metadata.annotations[{REDIRECTION}]",
            "LeftBehind",
            f"says that the pod is captured, and no node agent runs on its node ({len(left)} pods: "
            f"{some}): a control plane would have others speak to it through a tunnel that nobody "
            "keeps.",
            "`ambient uninstall` takes it away, once nothing of the mesh is to stay.",
        )
