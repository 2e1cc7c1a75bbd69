"""What one client of the workload API may see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from daemonset.control_plane.translation.resident import Viewpoint


class ForbiddenError(Exception):
    """The client asks for more than it may see; the text says why, and the client is shown it."""


def _never() -> None:
    return


@dataclass(frozen=True, slots=True)
class Access:
    """What was found out about a client when it connected.

    Attributes:
        identity: who it is, for people.
        viewpoint: from where it looks; None: it sees everything.
        check: raises ForbiddenError where what was granted holds no more; asked before each answer.
    """

    identity: str = ""
    viewpoint: Viewpoint | None = None
    check: Callable[[], None] = _never

    def node_of(self, claimed: str) -> str:
        """The node that the client is on.

        Raises:
            ForbiddenError: it says of itself to be on another.
        """
        if self.viewpoint is None:
            return claimed
        node = self.viewpoint.node
        if claimed and node and claimed != node:
            raise ForbiddenError(f"{self.identity} says that it is on node {claimed!r}")
        return node


EVERYTHING = Access()
"""Where nobody is asked who they are (plaintext)."""
