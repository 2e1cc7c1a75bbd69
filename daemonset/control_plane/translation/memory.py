"""What the last translation came to, so that one changed pod of thousands costs one encoding.

Every entry stands beside all that it was made from: as long as those inputs are equal (unchanged
objects are the same objects, which makes that cheap), so is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.translation.endpoints import Selectable, selectable_pod
from daemonset.control_plane.translation.label_index import LabelIndex
from daemonset.control_plane.translation.resource import Resource

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Results by key, each for as long as it is asked for in every turn."""

    def __init__(self) -> None:
        self._before: dict[K, tuple[tuple[object, ...], V]] = {}
        self._now: dict[K, tuple[tuple[object, ...], V]] = {}

    def turn(self) -> None:
        """The next translation begins: what the last one did not ask for is forgotten."""
        self._before, self._now = self._now, {}

    def get(self, key: K, inputs: tuple[object, ...], make: Callable[[], V]) -> V:
        """The result for ``inputs``, which are all that ``make`` depends on."""
        known = self._before.get(key)
        if known is None or known[0] != inputs:
            known = (inputs, make())
        self._now[key] = known
        return known[1]


class Memory:
    """All that one translator remembers."""

    def __init__(self) -> None:
        self.pods: Remembered[tuple[str, str], Resource] = Remembered()
        self.services: Remembered[str, Resource] = Remembered()
        self.selected: Remembered[tuple[str, str], bool] = Remembered()
        self._selectables: dict[tuple[str, str], tuple[Pod, Selectable]] = {}
        self._index: LabelIndex[Selectable] = LabelIndex(())

    def turn(self) -> None:
        """The next translation begins."""
        self.pods.turn()
        self.services.turn()
        self.selected.turn()

    def selectables(self, pods: list[Pod]) -> list[Selectable]:
        """Pods as selectors see them; those of unchanged pods are the same as before."""
        before, self._selectables = self._selectables, {}
        result: list[Selectable] = []
        for pod in pods:
            name = (pod.meta.namespace, pod.meta.name)
            known = before.get(name)
            if known is None or known[0] is not pod:
                known = (pod, selectable_pod(pod))
            self._selectables[name] = known
            result.append(known[1])
        return result

    def index(self, items: list[Selectable]) -> LabelIndex[Selectable]:
        """The items by their labels."""
        self._index = LabelIndex(items, self._index)
        return self._index
