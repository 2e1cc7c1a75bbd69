"""Is this pod in the mesh? A pure function of labels and annotations, with the reason in words.

Names and meaning are Istio's, so that a cluster can change agents without changing labels.
"""

from dataclasses import dataclass, field

from daemonset.agent.pods import Pod
from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.control_plane.objects.selector import LabelSelector, Requirement, read_selector
from daemonset.control_plane.sources.yaml_documents import YamlError, read_documents
from daemonset.control_plane.translation.revisions import REVISION, revision_of

MODE_LABEL = "istio.io/dataplane-mode"
SIDECAR_ANNOTATION = "sidecar.istio.io/status"
BYPASS_INBOUND_ANNOTATION = "ambient.istio.io/bypass-inbound-capture"
DNS_ANNOTATION = "ambient.istio.io/dns-capture"
REROUTE_ANNOTATION = "istio.io/reroute-virtual-interfaces"

_LONGEST_INTERFACE = 15


@dataclass(frozen=True, slots=True)
class EnablementSelector:
    """A pod matches when both its own labels and its namespace's do."""

    pod: LabelSelector = field(default_factory=LabelSelector)
    namespace: LabelSelector = field(default_factory=LabelSelector)


class SelectorError(ValueError):
    """Enablement selectors that cannot be understood; the message names field and line."""


def parse_selectors(text: str) -> tuple[EnablementSelector, ...]:
    """The YAML list of AMBIENT_ENABLEMENT_SELECTOR: `podSelector`, `namespaceSelector` each.

    Raises SelectorError: what is misspelt would otherwise select every pod, or none.
    """
    try:
        documents = read_documents(text)
        if len(documents) != 1:
            raise SelectorError(f"one YAML list is expected, not {len(documents)} documents")
        root = Section(Located({"selectors": documents[0]}, documents[0].line), strict=True)
        return tuple(_read_selector(entry) for entry in root.sections("selectors"))
    except (YamlError, ObjectError) as error:
        raise SelectorError(str(error)) from error


def _read_selector(entry: Section) -> EnablementSelector:
    selector = EnablementSelector(
        read_selector(entry.section("podSelector")),
        read_selector(entry.section("namespaceSelector")),
    )
    entry.finish()
    return selector


_AMBIENT = LabelSelector({MODE_LABEL: "ambient"})
_NOT_NONE = LabelSelector({}, (Requirement(MODE_LABEL, "NotIn", frozenset({"none"})),))
DEFAULT_SELECTORS = (
    EnablementSelector(pod=_AMBIENT),
    EnablementSelector(pod=_NOT_NONE, namespace=_AMBIENT),
)
"""The pod's own label decides, else its namespace's. Unknown values count as none given."""


@dataclass(frozen=True, slots=True)
class EnrolmentOptions:
    """`system_namespace` is where ztunnel itself lives (pods there with the label app=ztunnel);
    pods of another `revision` (label istio.io/rev) are another mesh's."""

    selectors: tuple[EnablementSelector, ...] = DEFAULT_SELECTORS
    excluded_namespaces: frozenset[str] = frozenset({"kube-system"})
    system_namespace: str = "istio-system"
    dns_capture: bool = True
    revision: str = "default"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Whether a pod is in the mesh, why, and what of its traffic is captured.

    `notes` are things about its annotations that its owner should know.
    """

    enrolled: bool
    reason: str
    dns: bool = False
    inbound: bool = True
    reroute_interfaces: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def decide_enrolment(pod: Pod, options: EnrolmentOptions) -> Enrolment:
    """The decision for one pod. Never raises: an annotation that makes no sense is a note."""
    obstacle = _obstacle(pod, options)
    if obstacle:
        return Enrolment(False, obstacle)
    for selector in options.selectors:
        if selector.pod.matches(pod.labels) and selector.namespace.matches(pod.namespace_labels):
            wanted = revision_of(pod.labels, pod.namespace_labels)
            if wanted not in ("", options.revision):
                return Enrolment(
                    False,
                    f"label {REVISION} gives it to the control plane of revision {wanted}; this "
                    f"one is {options.revision}",
                )
            return _captured(pod, options, _why(selector))
    if pod.labels.get(MODE_LABEL) == "none":
        return Enrolment(False, f"its label {MODE_LABEL} is none")
    return Enrolment(False, "neither its labels nor its namespace's ask for it")


def _obstacle(pod: Pod, options: EnrolmentOptions) -> str:
    if pod.host_network:
        return "it uses the node's own network (hostNetwork)"
    if SIDECAR_ANNOTATION in pod.annotations:
        return f"it has a sidecar (annotation {SIDECAR_ANNOTATION})"
    if pod.namespace in options.excluded_namespaces:
        return f"namespace {pod.namespace} is excluded"
    if pod.namespace == options.system_namespace and pod.labels.get("app") == "ztunnel":
        return "it is ztunnel itself"
    if pod.terminated:
        return f"it has ended ({pod.phase})"
    return ""


def _why(selector: EnablementSelector) -> str:
    parts = [
        f"{whose} labels match {words}"
        for whose, words in (
            ("pod", _in_words(selector.pod)),
            ("namespace", _in_words(selector.namespace)),
        )
        if words
    ]
    return " and ".join(parts) or "every pod is selected"


def _in_words(selector: LabelSelector) -> str:
    parts = [f"{key}={value}" for key, value in selector.labels.items()]
    for requirement in selector.requirements:
        values = f" ({', '.join(sorted(requirement.values))})" if requirement.values else ""
        parts.append(f"{requirement.key} {requirement.operator}{values}")
    return ", ".join(parts)


def _captured(pod: Pod, options: EnrolmentOptions, reason: str) -> Enrolment:
    notes: list[str] = []
    dns = _boolean(pod, DNS_ANNOTATION, options.dns_capture, notes)
    bypass = _boolean(pod, BYPASS_INBOUND_ANNOTATION, False, notes)
    names = [name.strip() for name in pod.annotations.get(REROUTE_ANNOTATION, "").split(",")]
    kept = tuple(name for name in names if 0 < len(name.encode()) <= _LONGEST_INTERFACE)
    notes += [
        f"annotation {REROUTE_ANNOTATION}: {name} is too long for an interface; ignored"
        for name in names
        if len(name.encode()) > _LONGEST_INTERFACE
    ]
    return Enrolment(True, reason, dns, not bypass, kept, tuple(notes))


def _boolean(pod: Pod, name: str, default: bool, notes: list[str]) -> bool:
    value = pod.annotations.get(name)
    if value is None:
        return default
    if value in ("true", "false"):
        return value == "true"
    notes.append(f"annotation {name} is {value!r}, neither true nor false; ignored")
    return default
