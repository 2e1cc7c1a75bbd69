"""A node's report is written when something is news, and no oftener."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from daemonset.agent import report_writer
from daemonset.agent.report import REPORT, NodeReport, read_report
from daemonset.agent.report_writer import ReportWriter
from tests.support.kube.scripted_api import Exchange, scripted_api


class Node:
    """What an agent knows, and what it has written of it."""

    def __init__(self) -> None:
        self.now = NodeReport("1", pods={"enrolled": 1})
        self.refusals = [503]
        self._changed = trio.Event()
        self._send, self._written = trio.open_memory_channel[NodeReport](10)

    def news(self, report: NodeReport) -> None:
        self.now = report
        self._changed.set()
        self._changed = trio.Event()

    async def written(self) -> NodeReport:
        with trio.fail_after(30):
            return await self._written.receive()

    async def api(self, exchange: Exchange) -> None:
        assert exchange.path == "/api/v1/namespaces/system/pods/agent-1/status"
        if self.refusals:
            await exchange.answer({"message": "not now"}, self.refusals.pop())
            return
        body = exchange.json
        self._send.send_nowait(read_report(body["metadata"]["annotations"][REPORT]))
        await exchange.answer({})

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with scripted_api(self.api) as client, trio.open_nursery() as nursery:
            writer = ReportWriter(
                client, "system", "agent-1", lambda: self.now, lambda: self._changed
            )
            nursery.start_soon(writer.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause", [3600.0, 0.01])
async def test_what_is_news_is_written_and_what_failed_again(
    monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setattr(report_writer, "PAUSE", 0.0)
    monkeypatch.setattr(report_writer, "COUNTS_PAUSE", pause)
    node = Node()
    async with node.at_work():
        assert await node.written() == node.now
        node.news(replace(node.now, pods={"enrolled": 2}))
        if pause < 1:
            assert await node.written() == node.now
        else:
            await trio.testing.wait_all_tasks_blocked()  # a number alone is no reason to write
        node.news(replace(node.now, host_rules="gone"))
        found = await node.written()
        assert (found.pods, found.host_rules) == ({"enrolled": 2}, "gone")
