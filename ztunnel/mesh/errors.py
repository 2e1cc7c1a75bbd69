"""Errors of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel.mesh.policy import Authorization


class ResourceError(Exception):
    """A workload, service or policy that cannot be taken over as it is.

    Attributes:
        name: the resource (uid, "namespace/hostname" or "namespace/name"; "?" when the
            resource does not even say that).
        reason: field and cause, in words.
        fallback: for a policy whose name and scope could be read although its rules could
            not: a policy of the same name and scope that denies. Upserting it keeps a last
            good version in force where there is one, and fails closed where there is none.
    """

    def __init__(self, name: str, reason: str, fallback: Authorization | None = None) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.fallback = fallback
