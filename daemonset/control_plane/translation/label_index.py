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
    """Objects by namespace, and by each label in it."""

    def __init__(self, items: Iterable[L]) -> None:
        self._by_namespace: dict[str, list[L]] = {}
        self._by_label: dict[tuple[str, str, str], list[L]] = {}
        for item in items:
            namespace = item.namespace
            self._by_namespace.setdefault(namespace, []).append(item)
            for key, value in item.labels.items():
                self._by_label.setdefault((namespace, key, value), []).append(item)

    def select(self, namespace: str, selector: LabelSelector) -> list[L]:
        """The objects of a namespace that match, in the order they came in."""
        candidates = self._by_namespace.get(namespace, [])
        for key, value in selector.labels.items():
            found = self._by_label.get((namespace, key, value), [])
            if len(found) < len(candidates):
                candidates = found
        return [item for item in candidates if selector.matches(item.labels)]

    def namespaces(self) -> Iterable[str]:
        return self._by_namespace
