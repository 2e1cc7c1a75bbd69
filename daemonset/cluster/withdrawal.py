"""How far the agents are with leaving their nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from daemonset.agent.pod_notes import REDIRECTION
from daemonset.cluster.members import is_ready, last_words, report_of
from daemonset.kube.client import Json

_SOME = 5


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """``left`` is what is still there according to its agent; ``waits_for`` why it is not done, ""
    once it is."""

    node: str
    waits_for: str = ""
    left: tuple[str, ...] = ()
    pods: int = 0

    @property
    def clean(self) -> bool:
        return not self.waits_for and not self.left


def progress(agents: Iterable[Json], pods: Iterable[Json], request: str) -> list[NodeProgress]:
    """One entry for each node that has an agent, or captured pods.

    Args:
        agents: the agents' pods; pods: all that may be captured.
        request: the value of the label that the agents were given.
    """
    by_node: dict[str, Json] = {}
    for agent in sorted(agents, key=lambda item: "deletionTimestamp" not in item["metadata"]):
        by_node[str((agent.get("spec") or {}).get("nodeName", ""))] = agent
    by_node.pop("", None)
    captured = {node_of(pod) for pod in pods if is_annotated(pod) and _runs(pod)} - {""}
    found = [_of(node, agent, request) for node, agent in by_node.items()]
    found += [
        NodeProgress(node, "it has captured pods and no agent")
        for node in captured - by_node.keys()
    ]
    return sorted(found, key=lambda one: one.node)


def _of(node: str, agent: Json, request: str) -> NodeProgress:
    report = report_of(agent)
    if report is not None and report.withdrawn == request:
        return NodeProgress(node, "", report.left, sum(report.pods.values()))
    if not is_ready(agent):
        words = last_words(agent)
        return NodeProgress(node, f"its agent is not ready{': ' + words if words else ''}")
    if report is None:
        return NodeProgress(node, "its agent has not reported")
    busy = ", ".join(f"{number} {state}" for state, number in sorted(report.pods.items()))
    names = [trouble.pod for trouble in report.troubles]
    some = f": {', '.join(names[:_SOME])}{', …' if len(names) > _SOME else ''}" if names else ""
    return NodeProgress(node, f"pods are leaving ({busy or 'none'}){some}")


def is_annotated(pod: Json) -> bool:
    """Does it say that it is captured?"""
    return REDIRECTION in (pod["metadata"].get("annotations") or {})


def node_of(pod: Json) -> str:
    """Where it runs."""
    return str((pod.get("spec") or {}).get("nodeName", ""))


def _runs(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
