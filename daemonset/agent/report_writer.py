"""Keeps the report of this node up to date in the API (see `report`)."""

import logging
from collections.abc import Callable

import trio

from daemonset.agent.report import REPORT, NodeReport, report_text
from daemonset.kube.client import MERGE_PATCH, ApiError, ApiUnavailableError, KubeClient

logger = logging.getLogger("daemonset.agent")

PAUSE = 2.0
"""Seconds between two writings: the states of many pods change together."""
_LONGEST_PAUSE = 60.0


class ReportWriter:
    """Writes into the annotation of one pod: the agent's own."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        pod: str,
        report: Callable[[], NodeReport],
        next_change: Callable[[], trio.Event],
    ) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        self._report = report
        self._next_change = next_change

    async def run(self) -> None:
        """Write, until cancelled. Never raises else: what cannot be written is tried again."""
        written = ""
        pause = PAUSE
        while True:
            changed = self._next_change()
            text = report_text(self._report())
            try:
                if text != written:
                    await self._write(text)
                    written = text
                pause = PAUSE
            except (ApiError, ApiUnavailableError) as error:
                logger.warning("the report of this node cannot be written: %s", error)
                await trio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            await changed.wait()
            await trio.sleep(PAUSE)

    async def _write(self, text: str) -> None:
        body = {"metadata": {"annotations": {REPORT: text}}}
        await self._client.call("PATCH", self._path, body=body, content_type=MERGE_PATCH)
