"""The objects of one kind as the API server last had them. No I/O.

An object that cannot be read is refused: the last good version of it stays in force, and where
there is none a closed one stands in for what guards something (``unreadable``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from daemonset.control_plane.conditions import TYPES, Standing, standing
from daemonset.control_plane.objects.located import locate
from daemonset.control_plane.objects.registry import AnyObject, read_object
from daemonset.control_plane.objects.section import ObjectError
from daemonset.control_plane.sources.kubernetes_kinds import Json, WatchedKind
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.sources.unreadable import CONSEQUENCES, stand_in

_log = logging.getLogger("daemonset.control_plane.sources")

Name = str | tuple[str, str]
"""As ObjectSet has it: a name, or (namespace, name)."""


class KindStore:
    """A sink for one kind (see ``daemonset.kube.reflector.Sink``).

    Args:
        on_change: called when something that matters has changed.
    """

    def __init__(self, kind: WatchedKind, on_change: Callable[[], None]) -> None:
        self.kind = kind
        self.is_absent = False
        self._on_change = on_change
        self._objects: dict[Name, AnyObject] = {}
        self._problems: dict[Name, Problem] = {}
        self._stood_in: set[Name] = set()
        self._view: Mapping[Name, AnyObject] | None = None
        self._listed: set[Name] | None = None
        self._standing: dict[Name, Standing] = {}

    @property
    def objects(self) -> Mapping[Name, AnyObject]:
        """As they are now; what was handed out does not change."""
        if self._view is None:
            self._view = dict(self._objects)
        return self._view

    @property
    def problems(self) -> Mapping[Name, Problem]:
        return self._problems

    @property
    def standing(self) -> Mapping[Name, Standing]:
        """What the API server says of objects whose status is written here, readable or not."""
        return self._standing

    def begin(self) -> None:
        self._listed = set()

    def put(self, item: Json) -> None:
        name = _name(item)
        if self._listed is not None:
            self._listed.add(name)
        if self.kind.kind in TYPES:
            self._note(name, standing(item, self.kind.kind))
        value = locate(self.kind.document(item))
        problem = None
        try:
            found = read_object(value)
            self._stood_in.discard(name)
        except ObjectError as error:
            found = None if name in self._stood_in else self._objects.get(name)
            if found is None:
                found = stand_in(self.kind.kind, value)
                self._stood_in.add(name)
            problem = self._problem(name, error)
        if problem != self._problems.get(name):
            if problem is None:
                del self._problems[name]
                _log.info("%s can be read again", self._describe(name))
            else:
                self._problems[name] = problem
                _log.error("%s", problem)
            self._on_change()
        if found is not None and found != self._objects.get(name):
            self._objects[name] = found
            self._changed()

    def remove(self, item: Json) -> None:
        self._remove(_name(item))

    def commit(self) -> None:
        assert self._listed is not None
        for name in (self._objects.keys() | self._problems.keys()) - self._listed:
            self._remove(name)
        self._listed = None

    def set_absent(self, absent: bool) -> None:
        if absent != self.is_absent:
            self.is_absent = absent
            self._on_change()
            if absent:
                _log.warning("%s", self.off)
            else:
                _log.info("%s is there now", self.kind.resource)

    @property
    def off(self) -> str:
        """What does not work while the kind is absent."""
        kind = self.kind
        return f"{kind.resource} is not installed (needs {kind.needs}): {kind.without}"

    def _remove(self, name: Name) -> None:
        self._stood_in.discard(name)
        self._standing.pop(name, None)
        if self._problems.pop(name, None) is not None:
            self._on_change()
        if self._objects.pop(name, None) is not None:
            self._changed()

    def _note(self, name: Name, now: Standing) -> None:
        before = self._standing.get(name)
        self._standing[name] = now
        # What is said of the object is to name the generation that it is about.
        if before is not None and (before.uid, before.generation) != (now.uid, now.generation):
            self._on_change()

    def _changed(self) -> None:
        self._view = None
        self._on_change()

    def _problem(self, name: Name, error: ObjectError) -> Problem:
        if name not in self._stood_in:
            consequence = "the last good version of it stays in force"
        else:
            consequence = CONSEQUENCES.get(self.kind.kind, "it is left out")
        message = f"{error.problem} ({consequence})"
        return Problem("", 0, self._describe(name), error.field, message)

    def _describe(self, name: Name) -> str:
        place = name if isinstance(name, str) else "/".join(name)
        return f"{self.kind.kind} {place}"


def _name(item: Json) -> Name:
    meta = item["metadata"]
    namespace, name = str(meta.get("namespace", "")), str(meta["name"])
    return (namespace, name) if namespace else name
