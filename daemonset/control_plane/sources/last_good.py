"""Copies of the last good version of each file, for the next start.

Without them a restart while a file is broken would forget its objects, and among those may be the
policy that keeps somebody out.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from daemonset.control_plane.ca.private_files import make_private_folder, write_private


class LastGood:
    """A private folder with one copy per file, named by the hash of its path."""

    def __init__(self, folder: Path) -> None:
        """Raises UnsafeFileError or OSError."""
        make_private_folder(folder)
        self._folder = folder

    def read(self, file: str) -> bytes | None:
        """The copy of a file, or None. Raises OSError."""
        try:
            return self._path(file).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, file: str, data: bytes) -> None:
        """Raises OSError."""
        path = self._path(file)
        if not path.exists() or path.read_bytes() != data:
            write_private(path, data)

    def forget(self, file: str) -> None:
        """Raises OSError."""
        self._path(file).unlink(missing_ok=True)

    def _path(self, file: str) -> Path:
        return self._folder / f"{sha256(file.encode()).hexdigest()[:32]}.yaml"
