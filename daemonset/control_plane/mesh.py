"""The mesh as it is at this moment: objects, what node agents report, and the translation."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from daemonset.control_plane.ca.admission import Directory
from daemonset.control_plane.metrics import ControlPlaneMetrics
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.translation.enrolment import is_captured, is_selected
from daemonset.control_plane.translation.finding import Finding, Severity
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translation, Translator
from daemonset.control_plane.xds.snapshot import Snapshot

_log = logging.getLogger("daemonset.control_plane")

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}

Place = Callable[[Finding], str]
"""Where a finding's field stands: "file:line"."""


class Mesh:
    """Turns objects into snapshots, one after the other."""

    def __init__(self, settings: MeshSettings, metrics: ControlPlaneMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._translator = Translator(settings)
        self._reported: frozenset[Finding] = frozenset()
        self._severities: Counter[Severity] = Counter()
        self.findings: tuple[Finding, ...] = ()
        self.services: tuple[ServiceInfo, ...] = ()
        self.snapshot = Snapshot(0, {}, {})
        self.directory = Directory({}, lambda pod: False, {})

    def update(
        self,
        objects: ObjectSet,
        captured: frozenset[tuple[str, str]] | None,
        place: Place,
        problems: int,
    ) -> Snapshot:
        """Translate, and make the result current. One call at a time, from any thread."""
        started = time.perf_counter()
        translation = self._translator.translate(objects, captured)
        snapshot = Snapshot(
            self.snapshot.generation + 1,
            translation.addresses,
            translation.authorizations,
            self.snapshot,
            translation.residents,
        )
        seconds = time.perf_counter() - started
        belongs = _belonging(objects, captured, self._settings)
        self.directory = Directory(objects.pods, belongs, translation.residents)
        self.snapshot = snapshot
        self.services = translation.services
        if translation.findings is not self.findings:
            self.findings = translation.findings
            self._report(translation, place)
        self._count(translation, seconds, problems)
        return snapshot

    def _report(self, translation: Translation, place: Place) -> None:
        found = frozenset(translation.findings)
        self._severities = Counter(finding.severity for finding in translation.findings)
        for finding in sorted(found - self._reported):
            _log.log(_LEVELS[finding.severity], "%s: %s", place(finding), finding)
        self._reported = found

    def _count(self, translation: Translation, seconds: float, problems: int) -> None:
        self._metrics.translated(
            seconds,
            {
                "address": len(translation.addresses),
                "authorization": len(translation.authorizations),
            },
            {severity.name.lower(): self._severities[severity] for severity in Severity},
            problems,
        )


def _belonging(
    objects: ObjectSet, captured: frozenset[tuple[str, str]] | None, settings: MeshSettings
) -> Callable[[Pod], bool]:
    """A pod belongs to the mesh while it is wanted there, and until it has left it."""

    def belongs(pod: Pod) -> bool:
        if is_captured(pod.meta):
            return True
        if captured is not None and (pod.meta.namespace, pod.meta.name) in captured:
            return True
        return is_selected(pod, objects.namespaces.get(pod.meta.namespace), settings)

    return belongs
