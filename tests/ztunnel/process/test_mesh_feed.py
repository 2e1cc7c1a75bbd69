"""The mesh's way from the control process to a worker: whole, in order, in pieces."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import trio

from tests.support.to_proto import workload_to_proto
from tests.ztunnel.mesh.builders import allow, deny, pod, service
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload, WorkloadStatus
from ztunnel.process import messages
from ztunnel.process.channel import Channel, Message, pair
from ztunnel.process.mesh_feed import ADDRESS_TYPE, PIECE, MeshFeed
from ztunnel.process.worker_link import WorkerLink
from ztunnel.proto import workload_pb2

PODS = [pod(f"p{n}", f"10.0.{n >> 8}.{n & 255}", services={}) for n in range(PIECE * 2 + 50)]
WEB = service("web", "10.1.0.1")


class Follower:
    """A worker's side: a state that does what it is told, and says so."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.state = MeshState()
        self.kinds: list[int] = []
        self.largest = 0
        self.names: set[str] = set()
        self.settled = trio.Event()

    async def run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self.channel.socket)
                for message in self.channel.receive() or ():
                    self.take(message)
                self.channel.flush()
        finally:
            self.channel.close()

    def take(self, message: Message) -> None:
        self.kinds.append(message.kind)
        if message.kind == messages.SNAPSHOT:
            self.state.replace_policies(pickle.loads(message.values[0]))
        elif message.kind == messages.SNAPSHOT_END:
            self.state.keep_only(self.names)
            self.settled.set()
        else:
            sequence, body, removed, removed_policies = message.values
            upserts: list[Resource] = pickle.loads(body)
            self.largest = max(self.largest, len(upserts))
            self.names |= {one.uid if isinstance(one, Workload) else one.key for one in upserts}
            self.state.apply(Batch(upserts, removed, removed_policies))
            self.channel.queue(messages.APPLIED, sequence)


class Pair:
    """A feed with one worker."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.link = WorkerLink(0, 1, Channel(ours), lambda link, message: None)
        self.follower = Follower(Channel(theirs))
        self.feed = MeshFeed(MeshState(), lambda: [self.link])

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.run)
            nursery.start_soon(self.follower.run)
            task_status.started()


@pytest.fixture
async def joined(nursery: trio.Nursery) -> Pair:
    made = Pair()
    await nursery.start(made.run)
    return made


def held(state: MeshState) -> tuple[list[Workload], list[object], list[object]]:
    return (
        sorted(state.workloads, key=lambda one: one.uid),
        sorted((record.service for record in state.services), key=str),
        sorted(state.policies(), key=str),
    )


async def test_a_worker_is_welcomed_with_everything_and_loses_what_is_no_more(
    joined: Pair,
) -> None:
    joined.feed.state.apply(Batch([*PODS, WEB, deny("d")]))
    joined.follower.state.apply(Batch([pod("gone", "10.9.9.9"), allow("gone")]))
    with trio.fail_after(30):
        await joined.feed.welcome(joined.link)
        await joined.follower.settled.wait()
    assert held(joined.follower.state) == held(joined.feed.state)
    assert joined.follower.kinds[0] == messages.SNAPSHOT  # policies before anything
    assert joined.follower.largest <= PIECE


async def test_changes_during_a_welcome_are_not_undone_by_it(joined: Pair) -> None:
    feed = joined.feed
    feed.state.apply(Batch(PODS))
    last = PODS[-1]
    changed = replace(last, status=WorkloadStatus.UNHEALTHY)
    new = pod("new", "10.8.0.1")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.welcome, joined.link)
            while not joined.link.welcome:
                await trio.lowlevel.checkpoint()
            await feed.apply([changed, new], [PODS[0].uid, PODS[-2].uid], [])
        await joined.follower.settled.wait()
    state = joined.follower.state
    assert held(state) == held(feed.state)
    assert state.workload(last.uid) == changed
    assert state.workload(new.uid) == new
    assert state.workload(PODS[-2].uid) is None


async def test_a_large_response_comes_in_pieces_and_is_applied_when_apply_returns(
    joined: Pair,
) -> None:
    joined.link.welcome = True
    bodies = [
        (one.uid, workload_pb2.Address(workload=workload_to_proto(one)).SerializeToString())
        for one in PODS
    ]
    with trio.fail_after(30):
        assert await joined.feed.apply_encoded(ADDRESS_TYPE, bodies, []) == []
    assert held(joined.follower.state) == held(joined.feed.state)
    assert len(joined.follower.kinds) == 3
    assert joined.follower.largest == PIECE


async def test_policies_are_never_applied_in_part(joined: Pair) -> None:
    joined.link.welcome = True
    policies = [deny(f"d{number}") for number in range(PIECE * 2)]
    with trio.fail_after(30):
        await joined.feed.apply(policies, [], [])
    assert joined.follower.kinds == [messages.UPDATE]
    assert held(joined.follower.state) == held(joined.feed.state)


async def test_what_changes_nothing_is_not_sent(joined: Pair) -> None:
    joined.link.welcome = True
    with trio.fail_after(30):
        await joined.feed.apply([PODS[0], PODS[1]], [], [])
        await joined.feed.apply([PODS[0], PODS[1]], [], [])
        await joined.feed.apply([PODS[0], PODS[1], PODS[2]], [], [])
    assert joined.follower.kinds == [messages.UPDATE, messages.UPDATE]
    assert joined.follower.largest == 2  # the first; the second brought one
