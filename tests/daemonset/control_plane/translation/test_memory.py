"""A translator that has translated before says what a new one says."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.memory import Kept
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator
from tests.support.control_plane import read_objects

MESH = """
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {LABEL: ambient}}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-a, labels: {topology.kubernetes.io/zone: ZONE}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: APP}},
 spec: {nodeName: node-a, serviceAccountName: web}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}},
 spec: {nodeName: node-a}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: PORT}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop},
 spec: {selector: {matchLabels: {app: SELECTED}}}}
"""
CHOICES = {
    "LABEL": ("istio.io/dataplane-mode", "other"),
    "ZONE": ("one", "two"),
    "APP": ("web", "shop"),
    "PORT": ("80", "81"),
    "SELECTED": ("web", "db"),
}
meshes = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})
sides = st.sets(st.sampled_from([("shop", "web"), ("shop", "db")]))


def objects_of(mesh: dict[str, str], before: ObjectSet | None) -> ObjectSet:
    """Objects that did not change are the same objects as before, as sources have it."""
    text = MESH
    for name, value in mesh.items():
        text = text.replace(name, value)
    now = read_objects(text)
    if before is None:
        return now
    fields = {}
    for field in dataclasses.fields(ObjectSet):
        old, new = getattr(before, field.name), getattr(now, field.name)
        fields[field.name] = {
            key: old[key] if old.get(key) == item else item for key, item in new.items()
        }
    return ObjectSet(**fields)


@given(steps=st.lists(st.tuples(meshes, sides), min_size=2, max_size=4))
def test_what_is_remembered_changes_nothing(
    steps: list[tuple[dict[str, str], set[tuple[str, str]]]],
) -> None:
    remembering = Translator(MeshSettings())
    before = None
    for mesh, captured in steps:
        before = objects_of(mesh, before)
        for given_captured in (captured, None):
            fresh = Translator(MeshSettings()).translate(before, given_captured)
            assert remembering.translate(before, given_captured) == fresh


def test_what_is_kept_is_kept_for_its_inputs() -> None:
    memory: Kept[str, int] = Kept()
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    assert memory.get("a", (1,), make) == 0
    assert memory.get("a", (1,), make) == 0
    assert memory.get("a", (2,), make) == 1
    memory.drop("a")
    assert memory.get("a", (2,), make) == 2
