"""What the DNS proxy reports while it works."""

from __future__ import annotations

from typing import Protocol


class DnsObserver(Protocol):
    """Counts for one pod. `query_type` is in lower case (`a`, `aaaa`), `protocol` udp or tcp."""

    def request(self, query_type: str, protocol: str) -> None:
        """A question arrived."""
        ...

    def upstream_request(self, query_type: str, protocol: str) -> None:
        """A question is passed upstream."""
        ...

    def upstream_answer(self, query_type: str, protocol: str, seconds: float) -> None:
        """Upstream answered after `seconds`."""
        ...

    def upstream_failure(self, query_type: str, protocol: str) -> None:
        """No upstream answered: the client gets SERVFAIL."""
        ...
