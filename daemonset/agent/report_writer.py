"""Keeps the report of this node up to date in the API (see `report`)."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import trio

from daemonset.agent.report import REPORT, NodeReport, report_text
from daemonset.kube.client import MERGE_PATCH, ApiError, ApiUnavailableError, KubeClient

logger = logging.getLogger("daemonset.agent")

PAUSE = 2.0
"""Seconds between two writings: the states of many pods change together."""
COUNTS_PAUSE = 30.0
"""Seconds for which mere numbers of pods may be out of date: every writing is an event for whoever
watches pods, and pods come and go all the time."""
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
        written: NodeReport | None = None
        at, pause = 0.0, PAUSE
        while True:
            changed = self._next_change()
            report = self._report()
            waits = 0.0
            if written is not None and replace(report, pods=written.pods) == written:
                waits = at + COUNTS_PAUSE - trio.current_time() if report != written else math.inf
            if waits > 0:
                with trio.move_on_after(waits):
                    await changed.wait()
                continue
            try:
                await self._write(report_text(report))
                written, at, pause = report, trio.current_time(), PAUSE
            except (ApiError, ApiUnavailableError) as error:
                logger.warning("the report of this node cannot be written: %s", error)
                pause = min(pause * 2, _LONGEST_PAUSE)
            await trio.sleep(pause)

    async def _write(self, text: str) -> None:
        body = {"metadata": {"annotations": {REPORT: text}}}
        await self._client.call("PATCH", self._path, body=body, content_type=MERGE_PATCH)
