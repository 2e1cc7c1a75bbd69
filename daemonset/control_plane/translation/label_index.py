"""Finding what a selector matches, and which selectors match, without looking at all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.selector import LabelSelector

Label = tuple[str, str]


class Labelled(Protocol):
    """What can be selected."""

    @property
    def key(self) -> ObjectKey: ...

    @property
    def labels(self) -> Mapping[str, str]: ...


L = TypeVar("L", bound=Labelled)
N = TypeVar("N", bound=Hashable)


class LabelIndex(Generic[L]):
    """Objects by namespace, and by each label in it."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[ObjectKey, L]] = {}
        self._by_label: dict[tuple[str, Label], dict[ObjectKey, L]] = {}

    def get(self, key: ObjectKey) -> L | None:
        return self._by_namespace.get(key.namespace, {}).get(key)

    def put(self, item: L) -> None:
        """Take in an object, in place of what was there by its key."""
        key = item.key
        self.drop(key)
        self._by_namespace.setdefault(key.namespace, {})[key] = item
        for label in item.labels.items():
            self._by_label.setdefault((key.namespace, label), {})[key] = item

    def drop(self, key: ObjectKey) -> None:
        inside = self._by_namespace.get(key.namespace, {})
        item = inside.pop(key, None)
        if item is None:
            return
        if not inside:
            del self._by_namespace[key.namespace]
        for label in item.labels.items():
            place = (key.namespace, label)
            del self._by_label[place][key]
            if not self._by_label[place]:
                del self._by_label[place]

    def select(self, namespace: str, selector: LabelSelector) -> list[L]:
        """The objects of a namespace that match."""
        candidates = self._by_namespace.get(namespace, {})
        for label in selector.labels.items():
            found = self._by_label.get((namespace, label), {})
            if len(found) < len(candidates):
                candidates = found
        return [item for item in candidates.values() if selector.matches(item.labels)]

    def inside(self, namespace: str) -> Iterable[ObjectKey]:
        """All objects of a namespace."""
        return self._by_namespace.get(namespace, {}).keys()

    def namespaces(self) -> Iterable[str]:
        return self._by_namespace.keys()


class SelectorIndex(Generic[N]):
    """Selectors by name, each for one namespace or (namespace "") for all."""

    def __init__(self) -> None:
        self._places: dict[N, tuple[str, Label | None]] = {}
        self._at: dict[tuple[str, Label | None], dict[N, LabelSelector]] = {}

    def __contains__(self, name: N) -> bool:
        return name in self._places

    def put(self, name: N, namespace: str, selector: LabelSelector) -> None:
        """Take in a selector, in place of what was there by its name."""
        self.drop(name)
        # It is found by one of its labels: the one that the fewest others are found by.
        labels: list[Label | None] = [*selector.labels.items()]
        places = [(namespace, label) for label in labels or [None]]
        place = min(places, key=lambda place: len(self._at.get(place, ())))
        self._places[name] = place
        self._at.setdefault(place, {})[name] = selector

    def drop(self, name: N) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            del self._at[place][name]
            if not self._at[place]:
                del self._at[place]

    def matching(self, namespace: str, labels: Mapping[str, str]) -> list[N]:
        """The names of those that match an object of this namespace."""
        found: list[N] = []
        for space in ("", namespace):
            for label in (None, *labels.items()):
                for name, selector in self._at.get((space, label), {}).items():
                    if selector.matches(labels):
                        found.append(name)
        return found
