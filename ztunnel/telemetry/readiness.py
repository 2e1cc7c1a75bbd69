"""Whether this proxy can take traffic, as the kubelet asks for it.

Ready means: every task that was named at start has reported. A pod that cannot be started never
appears here, so that one bad pod does not take the node's proxy out of service.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final

import trio

from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import Handler
from ztunnel.telemetry.routes import Route, router

PATH: Final = "/healthz/ready"

log = logging.getLogger("ztunnel.readiness")


class Readiness:
    """Named tasks, each pending or done. Tasks may become pending again."""

    def __init__(self, *tasks: str) -> None:
        self._pending: set[str] = set(tasks)
        self._changed = trio.Event()

    @property
    def pending(self) -> list[str]:
        """The tasks that are awaited, sorted."""
        return sorted(self._pending)

    def done(self, task: str) -> None:
        """``task`` is done. Doing it twice is no mistake."""
        if task in self._pending:
            self._pending.discard(task)
            log.info("task %r is done, pending: %s", task, ", ".join(self.pending) or "none")
            self._notify()

    def wait_for(self, task: str) -> None:
        """``task`` is (again) to be waited for."""
        if task not in self._pending:
            self._pending.add(task)
            self._notify()

    async def ready(self) -> None:
        """Returns when nothing is pending."""
        while self._pending:
            await self._changed.wait()

    def handler(self) -> Handler:
        """Answers GET /healthz/ready with 200, or with 500 and what is pending."""

        async def ready(request: Request) -> Response:
            if not self._pending:
                return Response(b"ready\n")
            text = f"not ready, pending: {', '.join(self.pending)}\n"
            return Response(text.encode(), HTTPStatus.INTERNAL_SERVER_ERROR)

        return router({PATH: Route(ready, ("GET",), "whether this proxy is ready")})

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
