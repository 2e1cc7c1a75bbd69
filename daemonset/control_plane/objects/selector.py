"""Label selectors: matchLabels of Istio, matchLabels and matchExpressions of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daemonset.control_plane.objects.section import Section

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions entry."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All of it must match; an empty selector matches everything."""

    labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        for key, value in self.labels.items():
            if labels.get(key) != value:
                return False
        # Most have none, and this is asked of every pod for every selector.
        return not self.requirements or all(
            requirement.matches(labels) for requirement in self.requirements
        )


def read_selector(section: Section) -> LabelSelector:
    """Read a Kubernetes LabelSelector.

    Raises:
        ObjectError: an unknown operator, or a value of the wrong type.
    """
    requirements: list[Requirement] = []
    for item in section.sections("matchExpressions"):
        operator = item.choice("operator", _OPERATORS)
        if not operator:
            raise item.error("operator", "is missing")
        values = frozenset(item.texts("values"))
        if operator in ("In", "NotIn") and not values:
            raise item.error("values", f"{operator} needs at least one value")
        requirements.append(Requirement(item.required_text("key"), operator, values))
        item.finish()
    labels = section.text_map("matchLabels")
    section.finish()
    return LabelSelector(labels, tuple(requirements))
