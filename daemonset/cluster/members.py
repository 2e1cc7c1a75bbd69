"""Pods and nodes of a survey as the mesh sees them. Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemonset.agent.enrolment import Enrolment, decide_enrolment
from daemonset.agent.pod_notes import REDIRECTION
from daemonset.agent.pods import Pod as AgentPod
from daemonset.agent.report import REPORT, NodeReport, Trouble, read_report
from daemonset.cluster.installation import Installation
from daemonset.cluster.names import AGENT, ZTUNNEL
from daemonset.cluster.network_policy import End
from daemonset.cluster.survey import Survey
from daemonset.control_plane.objects.located import locate
from daemonset.control_plane.objects.pod import Pod, read_pod
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.kube.client import Json


@dataclass(frozen=True, slots=True)
class Member:
    """A pod, whether it is to be in the mesh, and what its node agent says of it.

    ``redirection`` is the agent's annotation; ``trouble`` comes from the report of its node.
    """

    pod: Pod
    enrolment: Enrolment
    redirection: str
    trouble: Trouble | None = None

    def __str__(self) -> str:
        return f"{self.pod.meta.namespace}/{self.pod.meta.name}"

    @property
    def captured(self) -> bool:
        return self.redirection == "enabled"

    @property
    def running(self) -> bool:
        return self.pod.phase == "Running" and not self.pod.meta.deleting

    def end(self, namespace_labels: Mapping[str, str]) -> End:
        """As NetworkPolicies see it."""
        meta = self.pod.meta
        ports = {port.name: port.number for port in self.pod.ports}
        return End(meta.namespace, meta.name, meta.labels, namespace_labels, self.pod.ips, ports)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node and our two pods on it.

    Attributes:
        report: what the agent there says, if it has said anything that can be read.
        agent, ztunnel: the pods, as the API has them.
    """

    name: str
    item: Json
    agent: Json | None
    ztunnel: Json | None
    report: NodeReport | None


def namespace_labels(survey: Survey) -> Mapping[str, Mapping[str, str]]:
    """Labels by the name of the namespace."""
    return {
        str(item["metadata"]["name"]): item["metadata"].get("labels") or {}
        for item in survey.all("namespaces")
    }


@functools.lru_cache(maxsize=1)  # every check asks
def members(survey: Survey) -> tuple[Member, ...]:
    """All pods that can be read, in the order of their names."""
    labels = namespace_labels(survey)
    troubles = {
        trouble.pod: trouble
        for view in node_views(survey)
        if view.report is not None
        for trouble in view.report.troubles
    }
    found: list[Member] = []
    for item in survey.all("pods"):
        try:
            pod = read_pod(Section(locate(item)))
        except ObjectError:
            continue  # the API server checks pods more strictly than we do
        meta = pod.meta
        seen = AgentPod(
            meta.uid,
            meta.name,
            meta.namespace,
            pod.service_account,
            pod.ips,
            meta.labels,
            meta.annotations,
            labels.get(meta.namespace, {}),
            pod.host_network,
            pod.phase,
        )
        found.append(
            Member(
                pod,
                decide_enrolment(seen, survey.installation.enrolment),
                meta.annotations.get(REDIRECTION, ""),
                troubles.get(f"{meta.namespace}/{meta.name}"),
            )
        )
    return tuple(sorted(found, key=str))


def node_views(survey: Survey) -> list[NodeView]:
    """All nodes, in the order of their names."""
    agents = _by_node(survey, survey.installation, AGENT)
    ztunnels = _by_node(survey, survey.installation, ZTUNNEL)
    views = []
    for item in sorted(survey.all("nodes"), key=lambda one: str(one["metadata"]["name"])):
        name = str(item["metadata"]["name"])
        agent = agents.get(name)
        views.append(NodeView(name, item, agent, ztunnels.get(name), report_of(agent)))
    return views


def report_of(agent: Json | None) -> NodeReport | None:
    """The report in the annotation of an agent's pod."""
    if agent is None:
        return None
    try:
        return read_report((agent["metadata"].get("annotations") or {}).get(REPORT, ""))
    except ValueError:
        return None


def pods_of(pods: Sequence[Json], namespace: str, owner: str) -> list[Json]:
    """Our own pods of one DaemonSet or Deployment: by the label that its selector asks for."""
    return [
        item
        for item in pods
        if item["metadata"].get("namespace") == namespace
        and (item["metadata"].get("labels") or {}).get("app") == owner
    ]


def _by_node(survey: Survey, installation: Installation, owner: str) -> Mapping[str, Json]:
    """The youngest of each node that is not being deleted, else one that is."""
    found: dict[str, Json] = {}
    pods = pods_of(survey.all("pods"), installation.namespace, owner)
    for item in sorted(
        pods,
        key=lambda one: (
            "deletionTimestamp" not in one["metadata"],
            str(one["metadata"].get("creationTimestamp", "")),
        ),
    ):
        node = str((item.get("spec") or {}).get("nodeName", ""))
        if node:
            found[node] = item
    return found


def is_ready(pod: Json | None) -> bool:
    """Does it say so?"""
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def last_words(pod: Json) -> str:
    """What its container said when it ended, or what it waits for; "" where all is well."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        state, last = status.get("state") or {}, status.get("lastState") or {}
        for ended in (state.get("terminated"), last.get("terminated")):
            if ended and not status.get("ready"):
                words = str(ended.get("message") or ended.get("reason") or "").strip()
                if words:
                    return words[-600:]
        waiting = state.get("waiting")
        if waiting:
            return f"{waiting.get('reason', '')} {waiting.get('message', '')}".strip()
    return ""


def image_version(pod: Json | None) -> str:
    """The tag (or digest) of its first container's image."""
    containers = ((pod or {}).get("spec") or {}).get("containers") or ()
    if not containers:
        return ""
    image = str(containers[0].get("image", ""))
    tail = image.rpartition("/")[2]
    return tail.partition("@")[2][:19] or tail.partition(":")[2] or "latest"
