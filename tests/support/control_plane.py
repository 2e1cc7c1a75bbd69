"""Meshes from YAML for tests of the control plane."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from daemonset.control_plane.ca.admission import Directory
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.finding import Finding
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translation, Translator
from ztunnel.proto import authorization_pb2, workload_pb2


def read_objects(text: str) -> ObjectSet:
    """Objects of one YAML text, which must be without errors."""
    state = FolderState()
    state.apply({"mesh.yaml": read_file("mesh.yaml", textwrap.dedent(text).encode())})
    assert not state.problems, [str(problem) for problem in state.problems]
    return state.objects


def directory_of(text: str, belongs: Callable[[Pod], bool] = lambda pod: True) -> Directory:
    """What admission knows of a mesh."""
    objects = read_objects(text)
    residents = Translator(MeshSettings()).translate(objects).residents
    return Directory(objects.pods, belongs, residents)


class Translated:
    """A translation, decoded."""

    def __init__(self, translation: Translation) -> None:
        self.raw = translation

    def workload(self, name: str) -> workload_pb2.Workload:
        """By uid, or by the end of it."""
        for key, resource in self.raw.addresses.items():
            if key == name or key.endswith(f"/{name}"):
                address = workload_pb2.Address.FromString(resource.payload)
                if address.HasField("workload"):
                    return address.workload
        raise AssertionError(f"no workload {name} among {sorted(self.raw.addresses)}")

    def service(self, name: str) -> workload_pb2.Service:
        address = workload_pb2.Address.FromString(self.raw.addresses[name].payload)
        assert address.HasField("service")
        return address.service

    def policy(self, name: str) -> authorization_pb2.Authorization:
        payload = self.raw.authorizations[name].payload
        return authorization_pb2.Authorization.FromString(payload)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.raw.findings

    @property
    def reasons(self) -> list[str]:
        return [finding.reason for finding in self.raw.findings]


def translate(
    text: str, captured: set[tuple[str, str]] | None = None, **settings: Any
) -> Translated:
    """Translate one YAML text; ``settings`` are those of MeshSettings."""
    translator = Translator(MeshSettings(**settings))
    return Translated(translator.translate(read_objects(text), captured))


AMBIENT_SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""
"""A namespace in the mesh; documents may follow at once."""
