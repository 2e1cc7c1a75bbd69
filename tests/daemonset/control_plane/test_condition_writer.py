"""How the status of objects is written, where the API server says what a test wants it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from daemonset.control_plane.condition_writer import ConditionWriter
from daemonset.control_plane.conditions import Judgement
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.kubernetes import KubernetesSource
from daemonset.control_plane.sources.kubernetes_store import KindStore
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.lease import LeaderElection
from daemonset.kube.reflector import Pace
from tests.support.kube.scripted_api import Exchange, scripted_api

QUICK = Pace(settle=0.01, longest_pause=0.06)
PATIENCE = 60.0
NAMED = ("shop", "p")


class Stand:
    """A writer for one policy, and what it asks of the API server."""

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.arrived = trio.Event()
        self.refusals: list[int] = []
        self.writer: ConditionWriter
        self.store: KindStore
        self.election: LeaderElection

    async def answer(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        status = self.refusals.pop(0) if self.refusals else 200
        body = {"kind": "Status", "reason": "Test", "message": "as the test wants it"}
        await exchange.answer(body, status)
        self.arrived.set()
        self.arrived = trio.Event()

    async def until_seen(self, number: int) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.seen) < number:
                await self.arrived.wait()

    def put(self, generation: int = 1, **meta: object) -> None:
        """The policy as the API server has it."""
        named = {"namespace": "shop", "name": "p", "uid": "u", "generation": generation, **meta}
        self.store.put({"metadata": named, "spec": {}})

    def judge(self, message: str = "") -> None:
        objects = ObjectSet(authorization_policies=dict(self.store.objects))  # type: ignore[arg-type]
        problem = Problem("", 0, "AuthorizationPolicy shop/p", "spec", message)
        self.writer.judged(Judgement(objects, (), (), (problem,) if message else ()))


@asynccontextmanager
async def stand(leads: bool = True) -> AsyncIterator[Stand]:
    made = Stand()
    async with scripted_api(made.answer) as client, trio.open_nursery() as nursery:
        source = KubernetesSource(client)
        made.store = source.store("AuthorizationPolicy")
        made.election = LeaderElection(client, "a", "b", "c")
        made.election.is_leader = leads
        made.writer = ConditionWriter(client, made.election, source, MeshSettings(), QUICK)
        made.put()
        nursery.start_soon(made.writer.run)
        yield made
        nursery.cancel_scope.cancel()


async def quiet() -> None:
    """Long enough for anything that is still to come."""
    await trio.sleep(QUICK.settle * 20)


async def test_a_policy_is_told_of_once() -> None:
    async with stand() as made:
        made.judge()
        await made.until_seen(1)
        [asked] = made.seen
        assert (asked.method, asked.query) == ("PATCH", {"fieldManager": "ambientd-status"})
        assert asked.path.endswith("/v1/namespaces/shop/authorizationpolicies/p/status")
        made.judge()
        await quiet()
        assert len(made.seen) == 1
        made.judge("something else")
        await made.until_seen(2)
        made.put(generation=2)
        made.judge("something else")
        await made.until_seen(3)  # for it speaks of another generation
        made.put(generation=2, uid="another of that name")
        made.judge("something else")
        await made.until_seen(4)
        await quiet()
        assert len(made.seen) == made.writer.written == 4


@pytest.mark.parametrize(
    ("status", "again"), [(500, True), (403, True), (409, False), (404, False)]
)
async def test_refusals(status: int, again: bool) -> None:
    async with stand() as made:
        made.refusals.append(status)
        made.judge()
        await made.until_seen(2 if again else 1)
        await quiet()
        assert len(made.seen) == (2 if again else 1)
        assert made.writer.written == (1 if again else 0)


async def test_who_does_not_lead_says_nothing_until_it_does() -> None:
    async with stand(leads=False) as made:
        made.judge()
        await quiet()
        assert made.seen == []
        made.election.is_leader = True
        made.election.changed.set()
        made.election.changed = trio.Event()
        await made.until_seen(1)


async def test_a_failure_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with stand() as made:
        broken: Any = None
        made.writer.judged(Judgement(broken, (), (), ()))
        with trio.fail_after(PATIENCE):
            while "cannot be worked out" not in caplog.text:
                await trio.sleep(0.01)
        made.judge()
        await made.until_seen(1)
