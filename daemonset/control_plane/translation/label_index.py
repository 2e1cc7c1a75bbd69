"""Finding the objects that a selector matches without looking at all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from daemonset.control_plane.objects.selector import LabelSelector


class Labelled(Protocol):
    """What can be selected."""

    @property
    def namespace(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...


L = TypeVar("L", bound=Labelled)


class LabelIndex(Generic[L]):
    """Objects by namespace, and by each label in it.

    Args:
        before: an index of earlier; the parts for namespaces whose items are the same, in the same
            order, are taken over from it.
    """

    def __init__(self, items: Iterable[L], before: LabelIndex[L] | None = None) -> None:
        self._by_namespace: dict[str, list[L]] = {}
        self._by_label: dict[str, dict[tuple[str, str], list[L]]] = {}
        for item in items:
            self._by_namespace.setdefault(item.namespace, []).append(item)
        for namespace, inside in self._by_namespace.items():
            if before is not None and before._by_namespace.get(namespace) == inside:
                self._by_label[namespace] = before._by_label[namespace]
                continue
            labels = self._by_label[namespace] = {}
            for item in inside:
                for label in item.labels.items():
                    labels.setdefault(label, []).append(item)

    def select(self, namespace: str, selector: LabelSelector) -> list[L]:
        """The objects of a namespace that match, in the order they came in."""
        candidates = self._by_namespace.get(namespace, [])
        labels = self._by_label.get(namespace, {})
        for label in selector.labels.items():
            found = labels.get(label, [])
            if len(found) < len(candidates):
                candidates = found
        return [item for item in candidates if selector.matches(item.labels)]

    def namespaces(self) -> Iterable[str]:
        return self._by_namespace
