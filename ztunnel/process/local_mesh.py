"""The mesh from a local file (or from the environment), instead of a control plane or beside it."""

import logging
import time
from pathlib import Path
from typing import Any, Final

import trio

from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.local_file import read_resources
from ztunnel.process.mesh_feed import MeshFeed

log = logging.getLogger("ztunnel.control")

WATCH_EVERY: Final = 2.0  # seconds


class LocalMesh:
    """Reads the resources, and reads the file again when it has changed.

    Args:
        path: the file; None for `text`.

    Attributes:
        loaded: what the admin server tells.
    """

    def __init__(self, feed: MeshFeed, path: Path | None, text: str | None) -> None:
        self._feed = feed
        self._path = path
        self._text = text or ""
        self._source = str(path) if path is not None else "LOCAL_XDS"
        self._seen: str | None = None
        self._complaint = ""
        self.loaded: dict[str, Any] = {}

    async def load(self) -> None:
        """Reads it, and applies what is new.

        Raises:
            OSError: the file cannot be read.
            ResourceError, ValueError: it says something that makes no sense; the last good
                version stays in force.
        """
        text = self._text
        if self._path is not None:
            text = await trio.Path(self._path).read_text("utf-8")
        if text != self._seen:
            self._seen = text
            resources = read_resources(text, self._source)
            await self._feed.replace_local(resources)
            self.loaded = {"path": self._source, "loadedAt": time.time()}
            self._complaint = ""

    async def watch(self) -> None:
        """Loads again and again. What is wrong is said once."""
        while self._path is not None:
            await trio.sleep(WATCH_EVERY)
            try:
                await self.load()
            except (OSError, ValueError, ResourceError) as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("the last good version stays in force: %s", error)
