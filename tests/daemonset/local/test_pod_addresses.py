"""Addresses that the mesh gives to pods, on their way to its control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.local import control_plane
from daemonset.local.control_plane import PodAddresses
from daemonset.local.shared_files import MadePod, PodsFile
from tests.support.control_plane import read_objects

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: quick, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop}
"""


def addresses(objects: ObjectSet) -> dict[str, tuple[str, ...]]:
    return {name: tuple(pod.ips) for (_, name), pod in objects.pods.items()}


def test_an_address_that_comes_late_is_taken_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_plane, "_PATIENCE", 0.05)
    made = PodsFile(tmp_path)
    quick = {"shop/quick": MadePod("1", ("10.244.1.2",), "")}
    made.write(quick)
    objects = read_objects(PODS)
    filler = PodAddresses(made)
    assert addresses(filler.complete(objects)) == {"quick": ("10.244.1.2",), "late": ()}
    assert not filler.have_come()
    made.write({**quick, "shop/late": MadePod("2", ("10.244.1.3",), "")})
    assert filler.have_come()
    assert not filler.have_come()
    assert addresses(filler.complete(objects))["late"] == ("10.244.1.3",)
    assert not filler.have_come()
