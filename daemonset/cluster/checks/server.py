"""The API server: its version, what it knows, and what may be asked of it. Pure."""

from __future__ import annotations

import re

from daemonset.cluster.survey import RESOURCES, Access, Survey
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from daemonset.control_plane.translation.finding import Findings, Severity

OLDEST = (1, 30)
"""ValidatingAdmissionPolicy, AppArmor as a field, and tokens that name their node."""
_SERVER = ObjectKey("APIServer", "", "/version")
_NEEDED_TO_INSTALL = (
    ("", "namespaces"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
)


def wanted_access(survey: Survey) -> list[Access]:
    """What to ask the API server about: before an installation whether this user may install, and
    after it whether its parts may do their work."""
    installation = survey.installation
    if not installation.is_there:
        return [Access("create", group, resource) for group, resource in _NEEDED_TO_INSTALL]
    found: list[Access] = []
    account = f"system:serviceaccount:{installation.namespace}"
    if installation.agent is not None:
        agent = f"{account}:ambient-agent"
        found += [
            Access(verb, "", resource, who=agent)
            for verb, resource in (
                ("list", "pods"),
                ("watch", "pods"),
                ("list", "namespaces"),
                ("watch", "namespaces"),
                ("patch", "pods/status"),
                ("create", "events"),
            )
        ]
    if installation.control_plane is not None:
        plane = f"{account}:ambient-control-plane"
        found.append(Access("create", "authentication.k8s.io", "tokenreviews", who=plane))
        for kind in KINDS:
            resource = kind.resource
            found += [
                Access(verb, resource.group, resource.plural, who=plane)
                for verb in ("list", "watch")
            ]
    return found


def check_server(survey: Survey, findings: Findings) -> None:
    """Version, permissions, and kinds that are not there."""
    found = parsed_version(survey)
    if found is None:
        text = survey.version.get("gitVersion", "nothing")
        findings.warning(_SERVER, "gitVersion", "UnknownVersion", f"is {text!r}: no version.")
    elif found < OLDEST:
        findings.error(
            _SERVER,
            "gitVersion",
            "TooOld",
            f"is {survey.version.get('gitVersion')}: ValidatingAdmissionPolicy, AppArmor profiles "
            "as fields and tokens that name their node are missing, and the manifests need them.",
            f"Use Kubernetes {OLDEST[0]}.{OLDEST[1]} or later.",
        )
    for name, reason in sorted(survey.unseen.items()):
        findings.warning(
            ObjectKey("API", "", str(RESOURCES.get(name, name))),
            "",
            "NotSeen",
            f"cannot be listed, so that nothing is known of it here: {reason}",
            "Ask somebody who may, or have the right to list it.",
        )
    _access(survey, findings)
    _definitions(survey, findings)


def parsed_version(survey: Survey) -> tuple[int, int] | None:
    """Major and minor version of Kubernetes; minor may have a "+" at its end."""
    numbers = [re.match(r"\d+", survey.version.get(part, "")) for part in ("major", "minor")]
    major, minor = numbers
    return None if major is None or minor is None else (int(major[0]), int(minor[0]))


def _access(survey: Survey, findings: Findings) -> None:
    for access in survey.access:
        if access.allowed:
            continue
        if access.who:
            findings.error(
                ObjectKey("User", "", access.who),
                "",
                "NotAllowed",
                f"may not {access}: this part of the mesh does not work without.",
                "Apply daemonset/manifests/base again; it holds the roles.",
            )
        else:
            findings.warning(
                ObjectKey("User", "", "you"),
                "",
                "MayNotInstall",
                f"may not {access}: an installation needs that.",
                "Install as somebody who may.",
            )


def _definitions(survey: Survey, findings: Findings) -> None:
    """Kinds that are not installed, and what does not work without them."""
    if "definitions" in survey.unseen:
        return
    known = {str(item["metadata"]["name"]): item for item in survey.all("definitions")}
    for kind in KINDS:
        if not kind.needs:
            continue
        name = f"{kind.resource.plural}.{kind.resource.group}"
        key = ObjectKey("CustomResourceDefinition", "", name)
        ours = kind.resource.group.endswith(".istio.io")
        if name not in known:
            findings.add(
                Severity.WARNING if ours and survey.installation.is_there else Severity.INFO,
                key,
                "",
                "NotInstalled",
                f"is not there: {kind.without}.",
                "kubectl apply --server-side -k daemonset/manifests/lasting brings it."
                if ours
                else "Install the Gateway API's definitions, if you want that.",
            )
            continue
        versions = known[name]["spec"].get("versions") or ()
        served = [str(one.get("name")) for one in versions if one.get("served")]
        if not set(served) & set(kind.resource.versions):
            findings.error(
                key,
                "spec.versions",
                "UnknownVersions",
                f"serves {', '.join(served) or 'no version'}, none of which can be read "
                f"({', '.join(kind.resource.versions)}): {kind.without}.",
                "Let it serve one of these as well.",
            )
