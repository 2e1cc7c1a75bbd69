"""Which version of each file is in force.

A file with an error is refused as a whole and the last good version of its objects stays in
force. An object that two files hold is an error of the file that came later, and an object may
move from one file to another in one step. No I/O here.
"""

from __future__ import annotations

from collections.abc import Mapping

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet, object_set
from daemonset.control_plane.sources.file_reader import FileContent, LoadedObject
from daemonset.control_plane.sources.problem import Problem


class FolderState:
    """The objects of a folder, fed with changes of its files."""

    def __init__(self) -> None:
        self._newest: dict[str, FileContent] = {}
        self._in_force: dict[str, FileContent] = {}
        self._conflicts: dict[str, tuple[Problem, ...]] = {}
        self._objects: dict[ObjectKey, LoadedObject] = {}
        self._loose = False  # are there versions in force that are not settled?

    def seed(self, content: FileContent) -> None:
        """A version of a file that was good once, from before this process started."""
        self._in_force[content.file] = content
        self._loose = True

    def apply(self, changes: Mapping[str, FileContent | None]) -> None:
        """Take over the new contents of some files (None: the file is gone) as one step."""
        simple = not self._conflicts and not self._loose
        for file, content in changes.items():
            known = self._newest.pop(file, None)
            if content is not None:
                self._newest[file] = content
            # Where nothing is refused, nothing falls back and nothing is contested.
            sound = known is None or not known.problems
            simple = simple and sound and (content is None or not content.problems)
        if not (simple and self._replace(changes)):
            self._settle()
        self._loose = False

    def newest(self, file: str) -> FileContent | None:
        """What was read of the file last, whether it is in force or not."""
        return self._newest.get(file)

    def _replace(self, changes: Mapping[str, FileContent | None]) -> bool:
        """Take these versions into force in place of those before; False (and nothing done) where
        two files would have one object."""
        objects = dict(self._objects)
        for file in changes:
            before = self._in_force.get(file)
            for loaded in before.objects if before is not None else ():
                del objects[loaded.key]
        for content in changes.values():
            for loaded in content.objects if content is not None else ():
                if objects.setdefault(loaded.key, loaded) is not loaded:
                    return False
        self._objects = objects
        for file, content in changes.items():
            if content is None:
                self._in_force.pop(file, None)
            else:
                self._in_force[file] = content
        return True

    def _settle(self) -> None:
        before = {file: content for file, content in self._in_force.items() if file in self._newest}
        refused = {file for file, content in self._newest.items() if content.problems}
        conflicts: dict[str, tuple[Problem, ...]] = {}
        # Refusing one file brings its older objects back, which may clash with a third file: go on
        # until nothing clashes. Each round refuses one more file, or gives up an older version.
        while True:
            chosen = {
                file: before.get(file) if file in refused else content
                for file, content in self._newest.items()
            }
            clashes = _clashes(chosen, before, refused)
            if not clashes:
                break
            for file, problems in clashes.items():
                if file in refused:
                    del before[file]
                else:
                    refused.add(file)
                    conflicts[file] = problems
        self._conflicts = conflicts
        self._in_force = {file: content for file, content in chosen.items() if content is not None}
        self._objects = {
            loaded.key: loaded
            for file in sorted(self._in_force)
            for loaded in self._in_force[file].objects
        }

    def is_newest_in_force(self, file: str) -> bool:
        """Is what was read of the file last what counts?"""
        content = self._newest.get(file)
        return content is not None and self._in_force.get(file) is content

    @property
    def objects(self) -> ObjectSet:
        """The objects in force."""
        return object_set(loaded.object for loaded in self._objects.values())

    def __len__(self) -> int:
        """How many objects are in force."""
        return len(self._objects)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why files are refused, in order of files and lines."""
        found = [problem for content in self._newest.values() for problem in content.problems]
        found += [problem for problems in self._conflicts.values() for problem in problems]
        return tuple(sorted(found))

    @property
    def refused_without_good_version(self) -> tuple[str, ...]:
        """Files that are refused and of which no version has ever been good."""
        return tuple(sorted(file for file in self._newest if file not in self._in_force))

    @property
    def ignored(self) -> Mapping[str, str]:
        """Kinds that play no part here -> ``file:line`` of the first object of that kind."""
        result: dict[str, str] = {}
        for file in sorted(self._in_force):
            for kind, line in self._in_force[file].ignored:
                result.setdefault(kind, f"{file}:{line}")
        return result

    def place(self, key: ObjectKey, field: str = "") -> str:
        """``file:line`` of an object's field, or the name of the object where it has no file."""
        loaded = self._objects.get(key)
        return loaded.place(field) if loaded is not None else str(key)


def _clashes(
    chosen: Mapping[str, FileContent | None],
    before: Mapping[str, FileContent],
    refused: set[str],
) -> dict[str, tuple[Problem, ...]]:
    """Files that hold what belongs to another: to one that cannot give way (it is refused
    already), else to the one that holds it in force, else to the first by name.
    """
    holders: dict[ObjectKey, list[LoadedObject]] = {}
    for content in chosen.values():
        if content is not None:
            for loaded in content.objects:
                holders.setdefault(loaded.key, []).append(loaded)
    shared = {key: held for key, held in holders.items() if len(held) > 1}
    if not shared:
        return {}
    held_before = {
        (content.file, loaded.key) for content in before.values() for loaded in content.objects
    }
    clashes: dict[str, list[Problem]] = {}
    for key, held in shared.items():
        held.sort(
            key=lambda loaded: (
                loaded.file not in refused,
                (loaded.file, loaded.key) not in held_before,
                loaded.file,
            )
        )
        owner = held[0]
        for loaded in held[1:]:
            message = f"is already defined at {owner.place()}"
            problem = Problem(loaded.file, loaded.line, str(key), "", message)
            clashes.setdefault(loaded.file, []).append(problem)
    return {file: tuple(problems) for file, problems in clashes.items()}
