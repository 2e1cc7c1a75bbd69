"""Who is calling. An interface, so that the local form's tokens and Kubernetes' can both answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Metadata = Sequence[tuple[str, str | bytes]]


class AuthenticationError(Exception):
    """The caller has not shown who it is; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A service account and, where its token is bound to them, pod and node."""

    namespace: str
    service_account: str
    pod: str = ""
    pod_uid: str = ""
    node: str = ""

    def __str__(self) -> str:
        place = f" on {self.node}" if self.node else ""
        return f"{self.namespace}/{self.service_account}{place}"


class Verifier(Protocol):
    """Turns a bearer token into a caller."""

    def verify(self, token: str, now: float) -> Caller:
        """Called in threads, and may block. Raises AuthenticationError."""
        ...


def bearer_token(metadata: Metadata) -> str:
    """The token of a call's metadata (RFC 6750 2.1).

    Raises:
        AuthenticationError: there is none, or more than one.
    """
    values = [value for key, value in metadata if key.lower() == "authorization"]
    if not values:
        raise AuthenticationError("no authorization in the call's metadata")
    if len(values) > 1:
        raise AuthenticationError("authorization is there more than once")
    value = values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0]
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise AuthenticationError("authorization is no bearer token")
    return token.strip()
