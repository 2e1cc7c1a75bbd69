"""The mesh from a local file (or from the environment), instead of a control plane or beside it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztunnel.mesh.changes import Resource
from ztunnel.mesh.local_file import read_resources
from ztunnel.process.mesh_feed import MeshFeed
from ztunnel.xds.local_file import LocalFile


class LocalMesh:
    """Reads the resources, and reads the file again once it has changed and then stayed the same.

    Args:
        path: the file; None for `text`.

    Attributes:
        loaded: what the admin server tells.
    """

    def __init__(self, feed: MeshFeed, path: Path | None, text: str | None) -> None:
        self._feed = feed
        self._text = text or ""
        self._source = str(path) if path is not None else "LOCAL_XDS"
        self._file = LocalFile(path, _parse, self._apply) if path is not None else None
        self.loaded: dict[str, Any] = {}

    async def load(self) -> None:
        """Reads it for the first time.

        Raises:
            OSError: the file cannot be read.
            ValueError: it says something that makes no sense.
        """
        if self._file is not None:
            await self._file.load()
        else:
            await self._apply(_parse(self._text, self._source))

    async def watch(self) -> None:
        """Applies each change of the file. What makes no sense is said once and changes nothing."""
        if self._file is not None:
            await self._file.watch()

    async def _apply(self, resources: Sequence[Resource]) -> None:
        await self._feed.replace_local(resources)
        self.loaded = {"path": self._source, "loadedAt": time.time()}


def _parse(text: str, source: str) -> Sequence[Resource]:
    return read_resources(text, source)
