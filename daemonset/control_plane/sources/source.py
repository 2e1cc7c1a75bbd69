"""Where objects come from: a folder, or the Kubernetes API."""

from __future__ import annotations

from typing import Protocol

import trio

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.problem import Problem


class Source(Protocol):
    """Objects and their changes. All of it in the trio thread."""

    @property
    def objects(self) -> ObjectSet:
        """Those in force; what was handed out does not change."""
        ...

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why something is refused."""
        ...

    @property
    def off(self) -> tuple[str, ...]:
        """What does not work for want of something that the source could have, in words."""
        ...

    def place(self, key: ObjectKey, field: str = "") -> str:
        """Where a field of an object stands, for people."""
        ...

    async def open(self, nursery: trio.Nursery) -> None:
        """Load all objects; whatever must run meanwhile runs in ``nursery``."""
        ...

    async def next_change(self) -> None:
        """Wait until something of the above has changed."""
        ...
