"""List-and-watch against a server that misbehaves as told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio

from daemonset.kube.reflector import Pace, Reflector, Resource
from tests.support.kube.scripted_api import Exchange, Script, scripted_api

PODS = Resource("", ("v1",), "pods")
ISTIO = Resource("security.istio.io", ("v1", "v1beta1"), "things")
QUICK = Pace(first_pause=0.01, longest_pause=0.05, absent=0.05, relist=0.02, page=2)
PATIENCE = 30.0


def item(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


def event(kind: str, name: str, version: int) -> dict[str, Any]:
    return {"type": kind, "object": item(name, version)}


def page(*names: str, version: int = 10, more: str = "") -> dict[str, Any]:
    meta = {"resourceVersion": str(version), "continue": more}
    return {"metadata": meta, "items": [item(name, version) for name in names]}


class Names:
    """A sink that knows names, and can be waited for."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.lost: set[str] = set()
        self.absent = False
        self.commits = 0
        self._listed: set[str] | None = None
        self._change = trio.Event()

    def begin(self) -> None:
        self._listed = set()

    def put(self, thing: dict[str, Any]) -> None:
        name = thing["metadata"]["name"]
        self.names.add(name)
        if self._listed is not None:
            self._listed.add(name)
        self._change.set()

    def remove(self, thing: dict[str, Any]) -> None:
        self.names.discard(thing["metadata"]["name"])
        self._change.set()

    def commit(self) -> None:
        assert self._listed is not None
        self.lost |= self.names - self._listed
        self.names &= self._listed
        self._listed = None
        self.commits += 1
        self._change.set()

    def set_absent(self, absent: bool) -> None:
        self.absent = absent
        self._change.set()

    async def until(self, *names: str) -> None:
        with trio.fail_after(PATIENCE):
            while self.names != set(names):
                self._change = trio.Event()
                await self._change.wait()


@asynccontextmanager
async def reflected(script: Script, resource: Resource = PODS) -> AsyncIterator[Names]:
    async with scripted_api(script) as client, trio.open_nursery() as nursery:
        sink = Names()
        limiter = trio.CapacityLimiter(1)
        reflector = Reflector(client, resource, sink, limiter, lambda: None, QUICK)
        nursery.start_soon(reflector.run)
        yield sink
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pieces", [0, 1, 7])
async def test_pages_then_events_from_the_version_of_the_list(pieces: int) -> None:
    asked: list[dict[str, str]] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.query)
        if not exchange.watches:
            second = "continue" in exchange.query
            await exchange.answer(page("c") if second else page("a", "b", more="token"))
            return
        changes = (event("ADDED", "d", 11), event("DELETED", "a", 12))
        await exchange.events(*changes, pieces=pieces)
        await trio.sleep_forever()

    async with reflected(script) as sink:
        await sink.until("b", "c", "d")
        assert [query.get("continue") for query in asked] == [None, "token", None]
        assert asked[0]["limit"] == "2"
        assert asked[2]["resourceVersion"] == "10"
        assert asked[2]["allowWatchBookmarks"] == "true"


async def test_a_watch_resumes_from_the_last_bookmark() -> None:
    versions: list[str] = []

    async def script(exchange: Exchange) -> None:
        if not exchange.watches:
            await exchange.answer(page("a"))
            return
        versions.append(exchange.query["resourceVersion"])
        if len(versions) == 1:
            await exchange.events({"type": "BOOKMARK", "object": item("", 99)}, end=True)
        elif len(versions) == 2:
            await exchange.events(event("ADDED", "b", 100))
            await exchange.reset()
        else:
            await exchange.events(event("ADDED", "c", 101))
            await trio.sleep_forever()

    async with reflected(script) as sink:
        await sink.until("a", "b", "c")
        assert versions == ["10", "99", "100"]
        assert sink.commits == 1


@pytest.mark.parametrize("in_stream", [True, False])
async def test_gone_history_means_one_new_list(in_stream: bool) -> None:
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    lists = 0

    async def script(exchange: Exchange) -> None:
        nonlocal lists
        if not exchange.watches:
            lists += 1
            await exchange.answer(page("a") if lists == 1 else page("b", version=20))
        elif lists == 2:
            await trio.sleep_forever()
        elif in_stream:
            await exchange.events({"type": "ERROR", "object": gone})
        else:
            await exchange.answer(gone, 410)

    async with reflected(script) as sink:
        await sink.until("b")  # and "a", deleted meanwhile, is gone
        assert (lists, sink.commits) == (2, 2)


async def test_a_page_that_expires_starts_the_list_anew() -> None:
    lists = 0

    async def script(exchange: Exchange) -> None:
        nonlocal lists
        if exchange.watches:
            await trio.sleep_forever()
        if "continue" in exchange.query:
            await exchange.answer({"code": 410, "reason": "Expired"}, 410)
            return
        lists += 1
        await exchange.answer(page("a", "gone", more="t") if lists == 1 else page("a", "b"))

    async with reflected(script) as sink:
        await sink.until("a", "b")
        assert sink.commits == 1


async def test_refusals_are_tried_again_with_pauses_that_grow() -> None:
    times: list[float] = []

    async def script(exchange: Exchange) -> None:
        if exchange.watches:
            await trio.sleep_forever()
        times.append(trio.current_time())
        if len(times) < 6:
            await exchange.answer({"reason": "Forbidden", "message": "no rights"}, 403)
        else:
            await exchange.answer(page("a"))

    async with reflected(script) as sink:
        await sink.until("a")
    pauses = [later - before for before, later in pairwise(times)]
    assert all(pause >= 0.005 for pause in pauses)
    assert pauses[4] >= 0.025  # half of the longest


async def test_another_version_is_tried_where_one_is_not_served() -> None:
    async def script(exchange: Exchange) -> None:
        if "/v1/" in exchange.path:
            await exchange.answer({"reason": "NotFound"}, 404)
        elif exchange.watches:
            await trio.sleep_forever()
        else:
            await exchange.answer(page("old"))

    async with reflected(script, ISTIO) as sink:
        await sink.until("old")
        assert not sink.absent


async def test_a_kind_that_vanishes_for_a_moment_keeps_its_objects() -> None:
    stage = 0

    async def script(exchange: Exchange) -> None:
        nonlocal stage
        if stage == 0 and not exchange.watches:
            await exchange.answer(page("policy"))
            stage = 1
        elif stage < 4:
            # Both versions are unknown, once, and the watch that asked for them.
            stage += 1
            await exchange.answer({"reason": "NotFound"}, 404)
        elif not exchange.watches:
            await exchange.answer(page("policy", "more"))
        else:
            await trio.sleep_forever()

    async with reflected(script, ISTIO) as sink:
        await sink.until("policy")
        await sink.until("policy", "more")
        assert not sink.lost


async def test_a_kind_that_is_removed_takes_its_objects_along_and_may_come_back() -> None:
    there = True

    async def script(exchange: Exchange) -> None:
        if not there:
            await exchange.answer({"reason": "NotFound"}, 404)
        elif exchange.watches:
            await exchange.events(end=True)
        else:
            await exchange.answer(page("policy"))

    async with reflected(script, ISTIO) as sink:
        await sink.until("policy")
        there = False
        await sink.until()
        assert sink.absent
        there = True
        await sink.until("policy")
        with trio.fail_after(PATIENCE):
            while sink.absent:
                await trio.sleep(0.01)


async def test_nonsense_from_the_server_ends_nothing() -> None:
    answers = [b"not json\n", b"[]\n", b'{"type": "ADDED"}\n', b'{"type": "ADDED", "object": 1}\n']
    number = 0

    async def script(exchange: Exchange) -> None:
        nonlocal number
        if not exchange.watches:
            await exchange.answer(page("a"))
            return
        number += 1
        if number <= len(answers):
            await exchange.events()
            await exchange.raw(answers[number - 1])
        else:
            await exchange.events(event("ADDED", "b", 11))
        await trio.sleep_forever()

    async with reflected(script) as sink:
        await sink.until("a", "b")
        assert sink.commits == 1
