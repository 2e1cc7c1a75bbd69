"""The whole translation: objects in, resources and findings out.

A translator that has translated before looks at what is different, and works out again only what
that concerns. What comes out is what a new one would say of the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.finding import Finding
from daemonset.control_plane.translation.resident import Groups
from daemonset.control_plane.translation.resource import Resource
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.service_list import Allocators
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.state import TranslationState


@dataclass(frozen=True, slots=True)
class Translation:
    """What one set of objects comes to. Resources are keyed by name; parts that did not change
    are the same objects as before.

    ``residents`` are the workloads that somebody's proxy answers for, ``services`` those that the
    resources speak of.
    """

    addresses: Mapping[str, Resource]
    authorizations: Mapping[str, Resource]
    findings: tuple[Finding, ...]
    residents: Groups
    services: tuple[ServiceInfo, ...]


class Translator:
    """Translates again and again. Keeps the addresses that it has given."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._allocators = Allocators(settings)
        self._state: TranslationState | None = None

    def translate(
        self, objects: ObjectSet, captured: Set[tuple[str, str]] | None = None
    ) -> Translation:
        """Translate all objects.

        Args:
            objects: all of the mesh; must not be changed later.
            captured: (namespace, name) of the pods whose traffic a node proxy takes, where node
                agents report that; None: whatever labels want in the mesh counts as captured.
        """
        # If something goes wrong half-way, the next translation starts from nothing.
        state = self._state or TranslationState(self._settings, self._allocators)
        self._state = None
        state.update(objects, captured)
        self._state = state
        return Translation(
            state.addresses, state.authorizations, state.findings, state.residents, state.services
        )
