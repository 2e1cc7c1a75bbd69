"""Each node: whether it can carry the mesh, and whether it does. Pure."""

from __future__ import annotations

import re

from daemonset.agent.cni_chain import PLUGIN
from daemonset.agent.status import PodState
from daemonset.cluster.installation import Installation
from daemonset.cluster.members import NodeView, image_version, is_ready, last_words, node_views
from daemonset.cluster.names import AGENT, ZTUNNEL
from daemonset.cluster.survey import Survey
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.translation.finding import Findings, Severity

OLDEST_KERNEL = (5, 4)
"""The oldest long-term kernel with address translation in nftables' inet family (5.2)."""
_ARCHITECTURES = ("amd64", "arm64")
_OTHER_MESHES = ("istio-cni", "linkerd-cni", "kuma-cni", "consul-cni")
_USUAL_CNI = "/etc/cni/net.d"
_MICROK8S, _OPENSHIFT = "microk8s.io/cluster", "node.openshift.io/os_id"


def check_nodes(survey: Survey, findings: Findings) -> None:
    """All of them."""
    installation = survey.installation
    for view in node_views(survey):
        if not _is_linux(view):
            findings.add(
                Severity.INFO,
                ObjectKey("Node", "", view.name),
                "status.nodeInfo.operatingSystem",
                "NotLinux",
                "does not run Linux: its pods stay outside the mesh.",
            )
            continue
        _machine(view, findings)
        _platform(view, installation, findings)
        if installation.agent is not None:
            _agent(view, installation, findings)
        if installation.ztunnel is not None:
            _ztunnel(view, installation, findings)


def _is_linux(view: NodeView) -> bool:
    info = (view.item.get("status") or {}).get("nodeInfo") or {}
    return str(info.get("operatingSystem") or "linux") == "linux"


def _machine(view: NodeView, findings: Findings) -> None:
    key = ObjectKey("Node", "", view.name)
    info = (view.item.get("status") or {}).get("nodeInfo") or {}
    architecture = str(info.get("architecture") or "")
    if architecture and architecture not in _ARCHITECTURES:
        findings.error(
            key,
            "status.nodeInfo.architecture",
            "Architecture",
            f"is {architecture}: there is no image for it.",
            "Keep the mesh to nodes of amd64 and arm64.",
        )
    kernel = str(info.get("kernelVersion") or "")
    numbers = re.match(r"(\d+)\.(\d+)", kernel)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_KERNEL and view.report is None:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        findings.error(
            key,
            "status.nodeInfo.kernelVersion",
            "KernelTooOld",
            f"is {kernel}: pods are captured with address translation in nftables' inet family, "
            "which came with Linux 5.2.",
            f"Use Linux {oldest} or later; `ambient check --this-node` on the node tries it.",
        )


def _platform(view: NodeView, installation: Installation, findings: Findings) -> None:
    """Distributions that keep CNI files elsewhere: the agent would chain into nothing."""
    folder = _cni_folder(installation)
    if folder not in ("", _USUAL_CNI):
        return
    info = (view.item.get("status") or {}).get("nodeInfo") or {}
    labels = view.item["metadata"].get("labels") or {}
    is_k3s = "+k3s" in str(info.get("kubeletVersion"))
    for name, there, where in (
        ("k3s", is_k3s, "/var/lib/rancher/k3s/agent/etc/cni/net.d"),
        ("MicroK8s", _MICROK8S in labels, "/var/snap/microk8s/current/args/cni-network"),
        ("OpenShift", _OPENSHIFT in labels, "/etc/cni/multus/net.d"),
    ):
        if there:
            findings.warning(
                ObjectKey("Node", "", view.name),
                "",
                "OtherFolders",
                f"runs {name}, which keeps its CNI configuration in {where}: the agent of the "
                f"usual manifests looks in {_USUAL_CNI}.",
                f"Use the overlay for {name}, or set --cni-conf and --cni-bin and their volumes.",
            )


def _cni_folder(installation: Installation) -> str:
    if installation.agent is None:
        return ""
    volumes = installation.agent["spec"]["template"]["spec"].get("volumes") or ()
    return next(
        (
            str((volume.get("hostPath") or {}).get("path", ""))
            for volume in volumes
            if volume.get("name") == "cni-conf"
        ),
        "",
    )


def _agent(view: NodeView, installation: Installation, findings: Findings) -> None:
    key = ObjectKey("Node", "", view.name)
    if view.agent is None:
        findings.error(
            key,
            "",
            "NoAgent",
            "has no node agent: pods that start there are not captured, and nobody repairs the "
            "capture of those that are.",
            f"See kubectl -n {installation.namespace} describe daemonset {AGENT}: taints, node "
            "selector, quota?",
        )
        return
    pod = ObjectKey("Pod", installation.namespace, str(view.agent["metadata"]["name"]))
    if not is_ready(view.agent):
        words = last_words(view.agent)
        findings.error(
            pod,
            "status.conditions",
            "AgentNotReady",
            f"the agent of node {view.name} is not ready: pods of the mesh wait before they start "
            f"there{': ' + words if words else '.'}",
            f"kubectl -n {installation.namespace} logs {pod.name} says why.",
        )
    report = view.report
    if report is None:
        findings.warning(
            pod,
            "metadata.annotations",
            "NoReport",
            f"has not said yet how node {view.name} is: kernel and CNI there are not known.",
            "Look again in a moment; an agent of another version says nothing.",
        )
        return
    for feature in report.features:
        if not feature.works:
            findings.add(
                Severity.ERROR if feature.needed else Severity.INFO,
                key,
                "",
                "KernelFeature",
                f"tried on the node: no {feature.name}: {feature.detail}."
                + (" Pods cannot be captured there." if feature.needed else ""),
                "A newer kernel, or its modules (nf_tables, nft_redir, nft_nat, nf_conntrack)."
                if feature.needed
                else "",
            )
    if report.host_rules:
        findings.error(
            key, "", "NodeRules", f"the node's own rules are wrong: {report.host_rules}.",
            "Probes of captured pods fail until they are right: see the agent's log.",
        )  # fmt: skip
    _chain(view, findings)
    for trouble in report.troubles:
        if trouble.state == PodState.LEAVING.value:
            continue  # as it should
        namespace, _, name = trouble.pod.partition("/")
        findings.error(
            ObjectKey("Pod", namespace, name),
            "",
            "PodInTrouble",
            f"is {trouble.state} on node {view.name}: {trouble.reason}.",
            "Its connections are refused until that is over; in state failed it may talk in the "
            "clear.",
        )


def _chain(view: NodeView, findings: Findings) -> None:
    assert view.report is not None
    chain = view.report.chain
    key = ObjectKey("Node", "", view.name)
    if chain is None:
        findings.warning(
            key, "", "NoPlugin", "the agent installs no CNI plugin: pods start before they are"
            " captured.", "Give the agent --cni-plugin, as the manifests do.",
        )  # fmt: skip
        return
    if chain.complaint:
        findings.error(
            key,
            "",
            "NotChained",
            f"the CNI plugin is not in the node's chain: {chain.complaint}. Pods that start are "
            "captured only afterwards.",
            "See that --cni-conf and --cni-bin are the container runtime's folders.",
        )
    elif PLUGIN not in chain.plugins:
        findings.error(
            key,
            "",
            "NotChained",
            f"{chain.file} has the plugins {', '.join(chain.plugins)}, and ours is not among them.",
            "Does another CNI rewrite the file (Cilium: cni.exclusive=false)?",
        )
    for name in _OTHER_MESHES:
        if name in chain.plugins:
            findings.error(
                key,
                "",
                "AnotherMesh",
                f"{chain.file} also has the plugin {name}: two meshes capture the same pods.",
                "Uninstall one of the two.",
            )


def _ztunnel(view: NodeView, installation: Installation, findings: Findings) -> None:
    key = ObjectKey("Node", "", view.name)
    if view.ztunnel is None or not is_ready(view.ztunnel):
        words = "" if view.ztunnel is None else last_words(view.ztunnel)
        findings.error(
            key,
            "",
            "NoZtunnel",
            "has no ztunnel that is ready: connections of its captured pods are refused"
            f"{': ' + words if words else '.'}",
            f"kubectl -n {installation.namespace} get pods -l app={ZTUNNEL} -o wide",
        )
    elif view.report is not None and not view.report.ztunnels:
        findings.error(
            key,
            "",
            "NotConnected",
            "its ztunnel is not connected to its agent: it knows no pods.",
            "Both must mount the same /var/run/ztunnel; see the logs of both.",
        )
    versions = {image_version(view.agent), image_version(view.ztunnel)} - {""}
    if len(versions) > 1:
        findings.add(
            Severity.INFO,
            key,
            "",
            "TwoVersions",
            f"runs {' and '.join(sorted(versions))} of agent and ztunnel: fine while an update "
            "goes on, and not tried for longer.",
        )
