"""What is installed is found, with the settings that it was given."""

from __future__ import annotations

import copy
from typing import Any

from daemonset.agent.enrolment import DEFAULT_SELECTORS
from daemonset.cluster.installation import find_installation
from daemonset.cluster.names import SYSTEM
from daemonset.control_plane.translation.settings import MeshSettings
from tests.support.kube.manifests import MANIFESTS, read_base

BASE = read_base(MANIFESTS / "base")


def of_kind(kind: str) -> list[Any]:
    return [copy.deepcopy(item) for item in BASE if item["kind"] == kind]


def test_our_own_manifests() -> None:
    found = find_installation(SYSTEM, of_kind("DaemonSet"), of_kind("Deployment"))
    assert found.is_there
    assert all((found.agent, found.ztunnel, found.control_plane))
    assert found.enrolment.excluded_namespaces == {"kube-system"}
    assert found.enrolment.selectors == DEFAULT_SELECTORS
    assert found.enrolment.system_namespace == SYSTEM
    assert found.settings == MeshSettings()


def test_nothing_elsewhere() -> None:
    assert not find_installation("other", of_kind("DaemonSet"), of_kind("Deployment")).is_there


def test_ztunnel_is_istios_where_the_label_is_not_ours() -> None:
    [theirs] = [item for item in of_kind("DaemonSet") if item["metadata"]["name"] == "ztunnel"]
    theirs["metadata"]["labels"] = {"app.kubernetes.io/part-of": "istio"}
    assert not find_installation(SYSTEM, [theirs], []).is_there


def test_settings_are_those_that_were_given() -> None:
    sets, planes = of_kind("DaemonSet"), of_kind("Deployment")
    for item in sets:
        container = item["spec"]["template"]["spec"]["containers"][0]
        container["args"] += ["--revision", "canary", "--no-dns-capture"]
        container["env"].append({"name": "AMBIENT_ENABLEMENT_SELECTOR", "value": "[{}]"})
    container = planes[0]["spec"]["template"]["spec"]["containers"][0]
    container["args"] += ["--like-istio", "--trust-domain=td", "--root-namespace", "root"]
    found = find_installation(SYSTEM, sets, planes)
    assert found.enrolment.revision == "canary"
    assert found.enrolment.selectors != DEFAULT_SELECTORS
    assert found.settings == MeshSettings(trust_domain="td", root_namespace="root", like_istio=True)
