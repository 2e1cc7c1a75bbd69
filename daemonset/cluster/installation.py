"""What is installed of us in a cluster, and how it is set. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daemonset.agent.enrolment import DEFAULT_SELECTORS, EnrolmentOptions, parse_selectors
from daemonset.cluster.names import AGENT, CONTROL_PLANE, PART_OF, US, ZTUNNEL
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import Json


@dataclass(frozen=True, slots=True)
class Installation:
    """The parts that are there, each as the API has it.

    Attributes:
        namespace: the one that was looked in.
    """

    namespace: str
    agent: Json | None = None
    ztunnel: Json | None = None
    control_plane: Json | None = None
    enrolment: EnrolmentOptions = field(default_factory=EnrolmentOptions)
    settings: MeshSettings = field(default_factory=MeshSettings)

    @property
    def is_there(self) -> bool:
        """Anything of it?"""
        return any((self.agent, self.ztunnel, self.control_plane))


def find_installation(
    namespace: str, daemon_sets: Iterable[Json], deployments: Iterable[Json]
) -> Installation:
    """Our parts, with the settings that they were given. Others have the same names: ztunnel is
    also Istio's, so that the label counts.

    Raises:
        SelectorError: the agent was given selectors that cannot be read.
    """
    sets = {_name(item): item for item in daemon_sets if _is_ours(item, namespace)}
    planes = {_name(item): item for item in deployments if _is_ours(item, namespace)}
    agent, control_plane = sets.get(AGENT), planes.get(CONTROL_PLANE)
    return Installation(
        namespace,
        agent,
        sets.get(ZTUNNEL),
        control_plane,
        _enrolment(_options(agent), namespace),
        _settings(_options(control_plane)),
    )


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])


def _is_ours(item: Json, namespace: str) -> bool:
    meta = item["metadata"]
    return meta.get("namespace") == namespace and (meta.get("labels") or {}).get(PART_OF) == US


def _options(owner: Json | None) -> Mapping[str, str]:
    """The arguments of a workload's first container, and its environment under its own names."""
    found: dict[str, str] = {}
    if owner is None:
        return found
    containers: list[Json] = owner["spec"]["template"]["spec"].get("containers") or [{}]
    first = containers[0]
    for entry in first.get("env") or ():
        if "value" in entry:
            found[str(entry["name"])] = str(entry["value"])
    words = [str(word) for word in (*(first.get("command") or ()), *(first.get("args") or ()))]
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if not word.startswith("--"):
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        found[name] = value if equals else "" if following.startswith("--") else following
    return found


def _enrolment(options: Mapping[str, str], namespace: str) -> EnrolmentOptions:
    excluded = options.get("excluded-namespaces", options.get("EXCLUDE_NAMESPACES", "kube-system"))
    selectors = options.get("selectors", options.get("AMBIENT_ENABLEMENT_SELECTOR", ""))
    return EnrolmentOptions(
        parse_selectors(selectors) if selectors else DEFAULT_SELECTORS,
        frozenset(name for name in excluded.split(",") if name),
        options.get("system-namespace", options.get("SYSTEM_NAMESPACE", namespace)),
        revision=options.get("revision", options.get("REVISION", "default")),
    )


def _settings(options: Mapping[str, str]) -> MeshSettings:
    usual = MeshSettings()
    return MeshSettings(
        cluster_id=options.get("cluster-id", usual.cluster_id),
        trust_domain=options.get("trust-domain", usual.trust_domain),
        cluster_domain=options.get("cluster-domain", usual.cluster_domain),
        root_namespace=options.get("root-namespace", usual.root_namespace),
        revision=options.get("revision", usual.revision),
        like_istio="like-istio" in options,
    )
