"""A folder of Kubernetes YAML as a source of objects: read, watched, each change one step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import trio

from daemonset.control_plane.sources.file_reader import FileContent, read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.sources.last_good import LastGood
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.sources.scan import FolderScanner

POLL_INTERVAL = 0.1  # seconds
_IDLE_SHARE = 30  # of the time that a look takes

_log = logging.getLogger("daemonset.control_plane.sources")


class FolderError(Exception):
    """A folder that cannot be taken into use; ``problems`` says why."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join([message, *map(str, problems)]))
        self.problems = problems


class FolderSource:
    """Reads and watches ``folder``; ``last_good`` keeps good versions over restarts."""

    def __init__(self, folder: Path, last_good: LastGood | None = None) -> None:
        self._folder = folder
        self._scanner = FolderScanner(folder)
        self._last_good = last_good
        self._reported: frozenset[Problem] = frozenset()
        self._ignored: set[str] = set()
        self.state = FolderState()

    def load(self, *, refuse_errors: bool = True) -> None:
        """Read all files.

        Args:
            refuse_errors: a file that is refused and was never good makes the whole folder
                unusable: what it holds is unknown, and may be a policy.

        Raises:
            FolderError: the folder cannot be read, or see above.
        """
        changes = _first(self._scanner, self._folder)
        contents = _read(changes)
        for file, content in contents.items():
            old = self._last_good.read(file) if self._last_good is not None else None
            if content is not None and content.problems and old is not None:
                seed = read_file(file, old)
                if not seed.problems:
                    self.state.seed(seed)
        self.state.apply(contents)
        lost = self.state.refused_without_good_version
        if refuse_errors and lost:
            problems = tuple(item for item in self.state.problems if item.file in lost)
            raise FolderError(f"{self._folder} has errors:", problems)
        self._after(changes)

    async def next_change(self, interval: float = POLL_INTERVAL) -> None:
        """Wait until ``state`` has taken a step; looks every ``interval`` seconds."""
        pause = interval
        while True:
            await trio.sleep(pause)
            started = trio.current_time()
            # Looking and reading may take long on a slow disk: not in the way of others.
            changes = await trio.to_thread.run_sync(self._scanner.changes)
            # Thousands of files must not keep a core busy.
            pause = max(interval, _IDLE_SHARE * (trio.current_time() - started))
            if not changes:
                continue
            before = {file: self.state.newest(file) for file in changes}
            contents = await trio.to_thread.run_sync(_read, changes, before)
            self.state.apply(contents)
            for file in sorted(changes):
                _log.info("%s %s", file, "is gone" if changes[file] is None else "has changed")
            self._after(changes)
            return

    def _after(self, changes: Mapping[str, bytes | None]) -> None:
        problems = frozenset(self.state.problems)
        for problem in sorted(problems - self._reported):
            _log.error("%s (the last good version of this file stays in force)", problem)
        for file in sorted({p.file for p in self._reported} - {p.file for p in problems}):
            _log.info("%s has no errors any more", file)
        self._reported = problems
        for kind, place in self.state.ignored.items():
            if kind not in self._ignored:
                self._ignored.add(kind)
                _log.warning("%s: %s plays no part in the mesh and is ignored", place, kind)
        if self._last_good is None:
            return
        for file, data in changes.items():
            try:
                if data is None:
                    self._last_good.forget(file)
                elif self.state.is_newest_in_force(file):
                    self._last_good.write(file, data)
            except OSError as error:
                _log.error("no copy of %s can be kept for the next start: %s", file, error)


def read_folder(folder: Path) -> FolderState:
    """What a folder holds now, with all that is wrong with it; nothing is logged or kept.

    Raises:
        FolderError: it cannot be read.
    """
    state = FolderState()
    state.apply(_read(_first(FolderScanner(folder), folder)))
    return state


def _first(scanner: FolderScanner, folder: Path) -> dict[str, bytes | None]:
    try:
        return scanner.first()
    except OSError as error:
        raise FolderError(f"{folder}: {error.strerror or error}") from error


def _read(
    changes: Mapping[str, bytes | None], before: Mapping[str, FileContent | None] | None = None
) -> dict[str, FileContent | None]:
    known = before or {}
    return {
        file: None if data is None else read_file(file, data, known.get(file))
        for file, data in changes.items()
    }
