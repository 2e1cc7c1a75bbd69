"""What the offline validator says of the objects of which the API server's policies are asked too
(tests/kube/test_validation.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from daemonset.control_plane.objects.objectset import object_set
from daemonset.control_plane.objects.registry import AnyObject
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator
from tests.support.admission_cases import AROUND, CASES, Case, Json, Verdict

OF_ONE_OBJECT = {
    "UnsupportedValue",
    "NoRules",
    "EnforcedAtGateway",
    "TargetNotFound",
    "SelectorInRootNamespace",
    "PortWithoutName",
    "UnknownTrafficDistribution",
    "NoWaypointForWildcardService",
    "UnknownMode",
    "UnknownJoin",
    "ExcludedNamespace",
}
"""What can be found without looking at any other object (but for the namespace's labels)."""


def objects_of(items: Iterable[Json]) -> list[AnyObject]:
    content = read_file("around.yaml", json.dumps({"kind": "List", "items": [*items]}).encode())
    assert not content.problems
    return [loaded.object for loaded in content.objects]


def judge(case: Json) -> tuple[Verdict, str]:
    """What `ambient validate` makes of one object, and why."""
    if case["metadata"]["labels"].get("istio.io/rev"):
        # Left to its own control plane, readable or not.
        return Verdict.FINE, ""
    content = read_file("case.yaml", json.dumps(case).encode())
    if content.problems:
        return Verdict.REFUSED, str(content.problems[0])
    [loaded] = content.objects
    around = [one for one in objects_of(AROUND) if one.meta.key != loaded.key]
    found = Translator(MeshSettings()).translate(object_set([*around, loaded.object])).findings
    words = [str(one) for one in found if one.object == loaded.key and one.reason in OF_ONE_OBJECT]
    return (Verdict.WARNED, "\n".join(words)) if words else (Verdict.FINE, "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_offline_validator_agrees(case: Case) -> None:
    verdict, why = judge(case.object)
    assert verdict is case.verdict, why
