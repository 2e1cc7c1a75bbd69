"""A folder of YAML as the machine under the mesh sees it, and its changes.

The control plane reads the same folder by itself; both use the same scanner and the same rule: a
file with an error is refused as a whole, and what it said before stays in force.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.sources.scan import FolderScanner
from daemonset.local.objects import Object, TopologyError, parse


class FolderView:
    """The objects in force of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read it for the first time.

        Raises:
            TopologyError: the folder cannot be read, or a file in it has an error.
        """
        self.folder = folder
        self._scanner = FolderScanner(folder)
        self._state = FolderState()
        self._files: dict[str, list[Object]] = {}
        try:
            changes = self._scanner.first()
        except OSError as error:
            raise TopologyError(f"{folder}: {error.strerror}") from error
        problems = self._take(changes)
        if problems:
            raise TopologyError("\n".join(problems))

    def poll(self) -> list[str] | None:
        """Take over changed files; None when nothing changed, else what is wrong with them."""
        changes = self._scanner.changes()
        return self._take(changes) if changes else None

    def _take(self, changes: Mapping[str, bytes | None]) -> list[str]:
        self._state.apply(
            {
                file: None if data is None else read_file(file, data)
                for file, data in changes.items()
            }
        )
        problems = [str(problem) for problem in self._state.problems]
        for file, data in changes.items():
            if data is None:
                self._files.pop(file, None)
                continue
            try:
                self._files[file] = list(parse(data.decode(), file))
            except (UnicodeDecodeError, TopologyError) as error:
                if not problems:  # the strict reader has said the same with more detail
                    problems.append(str(error))
        return problems

    @property
    def problems(self) -> frozenset[str]:
        """Why files are refused, in words."""
        return frozenset(map(str, self._state.problems))

    @property
    def ignored(self) -> Mapping[str, str]:
        """Kinds that play no part here -> ``file:line`` of the first object of that kind."""
        return self._state.ignored

    @property
    def objects(self) -> ObjectSet:
        """As the control plane reads them."""
        return self._state.objects

    @property
    def raw(self) -> list[Object]:
        """As they are written."""
        return [one for file in sorted(self._files) for one in self._files[file]]

    def external_names(self) -> Iterator[tuple[tuple[str, str], str]]:
        """(namespace, name) and ``spec.externalName`` of each Service that is only an alias."""
        for one in self.raw:
            if one.kind == "Service" and one.get("spec.type", str) == "ExternalName":
                yield (one.namespace, one.name), one.get("spec.externalName", str, "")
