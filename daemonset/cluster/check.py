"""``ambient check``: what is wrong with a cluster, before and after the mesh is installed in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from daemonset.agent.report import Feature
from daemonset.cluster.checks.networks import check_networks
from daemonset.cluster.checks.nodes import check_nodes
from daemonset.cluster.checks.owners import check_owners
from daemonset.cluster.checks.server import check_server
from daemonset.cluster.checks.system import check_system
from daemonset.cluster.survey import Survey
from daemonset.control_plane.translation.finding import Finding, Findings, Severity

_MARKS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "i"}
_CHECKS = (check_server, check_owners, check_system, check_nodes, check_networks)


def check_survey(survey: Survey) -> tuple[Finding, ...]:
    """Pure: everything that is worth knowing, the worst first."""
    findings = Findings()
    for check in _CHECKS:
        check(survey, findings)
    return tuple(sorted(findings.sorted(), key=lambda one: -one.severity))


def exit_code(findings: Iterable[Finding]) -> int:
    """1 where something does not work, or would not."""
    return int(any(finding.severity is Severity.ERROR for finding in findings))


def as_lines(survey: Survey, findings: Iterable[Finding], *, everything: bool) -> list[str]:
    """For people; without ``everything`` what is merely worth knowing is only counted."""
    found = list(findings)
    lines = [_headline(survey)]
    for finding in found:
        if finding.severity is Severity.INFO and not everything:
            continue
        place = f" {finding.field}" if finding.field else ""
        lines.append(f"{_MARKS[finding.severity]} {finding.object}{place} {finding.message}")
        if finding.advice:
            lines.append(f"    → {finding.advice}")
    counts = Counter(finding.severity for finding in found)
    words = [
        f"{counts[severity]} {name}{'s' if counts[severity] > 1 else ''}"
        for severity, name in ((Severity.ERROR, "error"), (Severity.WARNING, "warning"))
        if counts[severity]
    ]
    notes = counts[Severity.INFO]
    if notes:
        shown = "" if everything else " (--verbose shows them)"
        words.append(f"{notes} note{'s' if notes > 1 else ''}{shown}")
    lines.append(", ".join(words) or "nothing is wrong")
    return lines


def as_json(survey: Survey, findings: Iterable[Finding]) -> str:
    """For programs."""
    found = [
        {
            "severity": finding.severity.name.lower(),
            "kind": finding.object.kind,
            "namespace": finding.object.namespace,
            "name": finding.object.name,
            "field": finding.field,
            "reason": finding.reason,
            "message": finding.message,
            "advice": finding.advice,
        }
        for finding in findings
    ]
    return json.dumps(
        {
            "kubernetes": survey.version.get("gitVersion", ""),
            "installed": survey.installation.is_there,
            "findings": found,
        },
        indent=1,
        ensure_ascii=False,
    )


def _headline(survey: Survey) -> str:
    version = survey.version.get("gitVersion", "of an unknown version")
    nodes = len(survey.all("nodes"))
    what = (
        f"the mesh is installed in {survey.installation.namespace}"
        if survey.installation.is_there
        else f"no mesh is installed in {survey.installation.namespace}: what follows is about"
        " installing one"
    )
    return f"Kubernetes {version}, {nodes} node{'' if nodes == 1 else 's'}; {what}"


def feature_lines(features: Iterable[Feature]) -> tuple[int, list[str]]:
    """Exit status and lines for what a kernel was tried for."""
    lines: list[str] = []
    code = 0
    for feature in features:
        mark = "✓" if feature.works else "✗" if feature.needed else "!"
        lines.append(f"{mark} {feature.name}{': ' + feature.detail if feature.detail else ''}")
        if feature.needed and not feature.works:
            code = 1
    lines.append(
        "pods of this machine can be captured"
        if code == 0
        else "pods of this machine cannot be captured"
    )
    return code, lines
