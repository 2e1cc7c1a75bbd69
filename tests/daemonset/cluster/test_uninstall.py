"""What an uninstallation waits for, deletes and leaves."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from daemonset.agent.report import NodeReport, Trouble
from daemonset.cluster.names import PART_OF, SYSTEM, US
from daemonset.cluster.removal import KINDS_OF_OURS, WORKLOADS, Doomed
from daemonset.cluster.uninstall import summary
from daemonset.cluster.withdrawal import NodeProgress, progress
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from tests.support.kube.manifests import MANIFESTS
from tests.support.surveys import our_pod, survey

_LASTING = {"CustomResourceDefinition"}


def everything() -> list[Any]:
    """Objects of all manifests, but for patches (which are named in a kustomization)."""
    found = []
    for folder in sorted({path.parent for path in MANIFESTS.rglob("kustomization.yaml")}):
        for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
            if (folder / name).is_file():
                found += [one for one in yaml.safe_load_all((folder / name).read_text()) if one]
    return found


@pytest.mark.parametrize(
    "item", everything(), ids=lambda item: f"{item['kind']}-{item['metadata']['name']}"
)
def test_every_object_of_ours_is_found_again(item: Any) -> None:
    """By its label, and in a list of its kind: a new kind must be added to `removal`."""
    kind, meta = item["kind"], item["metadata"]
    if kind in _LASTING or (kind, meta["name"]) == ("Namespace", "istio-system"):
        return
    assert meta.get("labels", {}).get(PART_OF) == US, "give it the label app.kubernetes.io/part-of"
    plural = kind.lower() + ("ies" if kind.endswith("y") else "s")
    plural = plural.replace("yies", "ies")
    if plural == "namespaces":
        return
    if plural in ("daemonsets", "deployments"):
        assert (plural, meta["name"]) in WORKLOADS
        return
    group = item["apiVersion"].rpartition("/")[0]
    assert (group, plural) in {(one.group, one.plural) for one in KINDS_OF_OURS}


def test_nothing_that_users_wrote_is_listed() -> None:
    kinds = {(kind.resource.group, kind.resource.plural) for kind in KINDS if kind.needs}
    assert not kinds & {(one.group, one.plural) for one in KINDS_OF_OURS}
    assert all(one.query for one in KINDS_OF_OURS)


def agent(node: str, report: NodeReport | None = None, **status: Any) -> Any:
    return yaml.safe_load(our_pod("ambient-agent", node, report, **status).removesuffix("---\n"))


def pod(node: str, phase: str = "Running") -> Any:
    annotations = {"ambient.istio.io/redirection": "enabled"}
    meta = {"name": "p", "namespace": "shop", "annotations": annotations}
    return {"metadata": meta, "spec": {"nodeName": node}, "status": {"phase": phase}}


def test_each_node_is_waited_for_until_its_agent_has_answered_this_request() -> None:
    done = NodeReport("1", withdrawn="now", pods={"not in the mesh": 3})
    leaving = (Trouble("shop/slow", "leaving", "it is over"),)
    busy = NodeReport("1", pods={"enrolled": 2, "leaving": 1}, troubles=leaving)
    earlier = NodeReport("1", withdrawn="before")
    unclean = NodeReport("1", withdrawn="now", left=("pod shop/web: rules",))
    found = progress(
        [
            agent("a", done),
            agent("b", busy),
            agent("c", earlier),
            agent("d", unclean),
            agent("e", done, conditions=[]),
            agent("f", None, conditions=[]),
            agent("g"),
        ],
        [pod("a"), pod("h"), pod("i", "Succeeded"), pod("")],
        "now",
    )
    assert {one.node: one.clean for one in found} == {
        "a": True, "b": False, "c": False, "d": False, "e": True, "f": False, "g": False, "h": False
    }  # fmt: skip
    words = {one.node: one.waits_for for one in found}
    assert found[0] == NodeProgress("a", "", (), 3)
    assert words["b"] == "pods are leaving (2 enrolled, 1 leaving): shop/slow"
    assert "not ready" in words["f"]
    assert "has not reported" in words["g"]
    assert "no agent" in words["h"]
    assert found[3].left == ("pod shop/web: rules",)


def test_what_is_going_to_happen_is_said() -> None:
    strict = """
kind: PeerAuthentication
metadata: {name: all, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
    lines = summary(survey(strict, installed=True), [])
    assert any("PeerAuthentication shop/all demands mTLS" in line for line in lines)
    assert any(SYSTEM in line for line in lines)
    left = "kind: Pod\nmetadata: {name: p, annotations: {ambient.istio.io/redirection: enabled}}\n"
    [line] = summary(survey(left), [])
    assert "no node agent is there any more" in line
    assert summary(survey(), []) == []
    assert summary(survey(), [Doomed("/x", "x")]) == [
        "1 objects of an earlier installation are deleted"
    ]
