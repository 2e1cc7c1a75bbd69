"""The client against an agent made of a bare socket, which can misbehave as no agent would."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.descriptors import no_leak
from ztunnel.linux import netns
from ztunnel.linux.fds import send_with_fds
from ztunnel.linux.netns import NetworkNamespace, identity_of
from ztunnel.zds import messages
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import (
    AddWorkload,
    DeleteWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    WorkloadInfo,
)

pytestmark = pytest.mark.root
INFO = WorkloadInfo("pod", "default", "account")


class Recorder:
    """A handler that notes what it is told, and fails where a test wants it to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.hang: dict[str, trio.Event] = {}
        self.identities: dict[str, netns.NamespaceIdentity] = {}
        self.called = trio.Condition()

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None:
        await self._note(f"add {uid}")
        self.identities[uid] = identity_of(netns_fd)
        if uid in self.hang:
            await self.hang[uid].wait()
        if uid in self.fail:
            raise self.fail[uid]

    async def delete(self, uid: str) -> None:
        await self._note(f"delete {uid}")
        if f"delete {uid}" in self.fail:
            raise self.fail[f"delete {uid}"]

    async def _note(self, call: str) -> None:
        async with self.called:
            self.calls.append(call)
            self.called.notify_all()


class FakeAgent:
    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.sock = listener

    async def accept(self) -> None:
        await trio.lowlevel.wait_readable(self.listener)
        self.sock = self.listener.accept()[0]
        self.sock.setblocking(False)
        messages.decode_hello(await self.receive())

    async def receive(self) -> bytes:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(self.sock)
        return self.sock.recv(4096)

    async def ask(self, request: Request, *fds: int) -> str:
        send_with_fds(self.sock, messages.encode_request(request), fds)
        return messages.decode_ack(await self.receive())

    async def ask_raw(self, data: bytes, *fds: int) -> str:
        send_with_fds(self.sock, data, fds)
        return messages.decode_ack(await self.receive())

    async def is_hung_up(self) -> bool:
        return await self.receive() == b""


@asynccontextmanager
async def connected(
    tmp_path: Path, handler: Recorder
) -> AsyncIterator[tuple[ZdsClient, FakeAgent]]:
    path = tmp_path / "zds.sock"
    with no_leak(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        client = ZdsClient(handler, path)
        agent = FakeAgent(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await agent.accept()
            yield client, agent
            agent.sock.close()
            nursery.cancel_scope.cancel()


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        yield made


async def test_a_snapshot_makes_it_ready(
    tmp_path: Path, handler: Recorder, namespace: NetworkNamespace
) -> None:
    async with connected(tmp_path, handler) as (client, agent):
        assert await agent.ask(AddWorkload("a", INFO), namespace.fd) == ""
        assert handler.identities["a"] == namespace.identity
        early = client.state
        assert early.connected
        assert not early.ready
        assert await agent.ask(SnapshotSent()) == ""
        await client.wait_synchronised()
        assert client.state.ready
        assert client.state.running == {"a": INFO}
        assert await agent.ask(DeleteWorkload("a")) == ""
        assert await agent.ask(DeleteWorkload("never was")) == ""
        assert handler.calls == ["add a", "delete a"]


async def test_adding_again_is_nothing_new_but_another_namespace_is(
    tmp_path: Path, handler: Recorder, namespace: NetworkNamespace
) -> None:
    async with connected(tmp_path, handler) as (_, agent):
        for _ in range(2):
            assert await agent.ask(AddWorkload("a", INFO), namespace.fd) == ""
        assert handler.calls == ["add a"]
        with netns.create() as other:
            assert await agent.ask(AddWorkload("a", INFO), other.fd) == ""
            assert handler.calls == ["add a", "delete a", "add a"]
            assert handler.identities["a"] == other.identity


async def test_what_the_next_snapshot_does_not_name_is_stopped(
    tmp_path: Path, handler: Recorder, namespace: NetworkNamespace
) -> None:
    async with connected(tmp_path, handler) as (client, agent):
        for uid in ("a", "b", "c", "d"):
            await agent.ask(AddWorkload(uid, INFO), namespace.fd)
        await agent.ask(SnapshotSent())
        agent.sock.close()
        await agent.accept()
        # While the agent is away, and until its snapshot is there, everything goes on.
        assert set(client.state.running) == {"a", "b", "c", "d"}
        early = client.state
        assert not early.ready
        assert await agent.ask(AddWorkload("a", INFO), namespace.fd) == ""
        assert await agent.ask(KeepWorkload("b")) == ""
        assert await agent.ask(AddWorkload("c", INFO), namespace.fd) == ""
        assert await agent.ask(DeleteWorkload("c")) == ""
        handler.calls.clear()
        assert await agent.ask(SnapshotSent()) == ""
        assert handler.calls == ["delete d"]
        assert client.state.ready


async def test_an_adopted_pod_goes_on_only_if_the_agent_names_it(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    late: list[bool] = []

    class Late(Recorder):
        async def delete(self, uid: str) -> None:
            await super().delete(uid)
            if uid == "unnamed":  # a worker tells of one more while the snapshot is applied
                late.append(client.adopt("late", INFO, namespace.fd))

    recorder = Late()
    async with connected(tmp_path, recorder) as (client, agent):
        assert client.adopt("named", INFO, namespace.fd)
        assert client.adopt("unnamed", INFO, namespace.fd)
        assert await agent.ask(AddWorkload("named", INFO), namespace.fd) == ""
        assert await agent.ask(SnapshotSent()) == ""
        assert recorder.calls == ["delete unnamed", "delete late"]
        assert late == [True]
        assert set(client.state.running) == {"named"}
        assert client.adopt("named", INFO, namespace.fd)
        assert not client.adopt("too late", INFO, namespace.fd)


async def test_a_pod_that_fails_is_refused_tried_again_and_blocks_nobody(
    tmp_path: Path,
    handler: Recorder,
    namespace: NetworkNamespace,
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Real sockets, so the clock must not run away while a packet is under way.
    autojump_clock.autojump_threshold = 0.05
    handler.fail["bad"] = OSError(98, "Address already in use")
    async with connected(tmp_path, handler) as (client, agent):
        refused = await agent.ask(AddWorkload("bad", INFO), namespace.fd)
        assert refused == (
            "failure to start proxy for default/pod: OSError: [Errno 98] Address already in use"
        )
        assert await agent.ask(AddWorkload("good", INFO), namespace.fd) == ""
        assert await agent.ask(SnapshotSent()) == ""
        assert client.state.ready
        assert set(client.state.pending) == {"bad"}
        del handler.fail["bad"]
        async with handler.called:
            while handler.calls.count("add bad") < 2:
                await handler.called.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert client.state.pending == {}
        assert set(client.state.running) == {"bad", "good"}


async def test_a_pod_that_hangs_is_refused_in_time(
    tmp_path: Path,
    handler: Recorder,
    namespace: NetworkNamespace,
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    handler.hang["slow"] = trio.Event()
    async with connected(tmp_path, handler) as (client, agent):
        answer = await agent.ask(AddWorkload("slow", INFO), namespace.fd)
        assert "not serving after 4 s" in answer
        # Deleted while pending: the handler may have begun something, so it is told.
        assert await agent.ask(DeleteWorkload("slow")) == ""
        assert handler.calls == ["add slow", "delete slow"]
        assert client.state.pending == {}


async def test_asking_again_for_a_pending_pod_tries_at_once(
    tmp_path: Path, handler: Recorder, namespace: NetworkNamespace
) -> None:
    handler.fail["a"] = ValueError("not yet")
    async with connected(tmp_path, handler) as (client, agent):
        assert "ValueError: not yet" in await agent.ask(AddWorkload("a", INFO), namespace.fd)
        handler.fail.clear()
        assert await agent.ask(AddWorkload("a", INFO), namespace.fd) == ""
        assert client.state.running == {"a": INFO}


async def test_a_pod_that_cannot_be_stopped_is_not_forgotten(
    tmp_path: Path, handler: Recorder, namespace: NetworkNamespace
) -> None:
    async with connected(tmp_path, handler) as (client, agent):
        await agent.ask(AddWorkload("a", INFO), namespace.fd)
        handler.fail["delete a"] = RuntimeError("a worker does not answer")
        assert "a worker does not answer" in await agent.ask(DeleteWorkload("a"))
        assert set(client.state.running) == {"a"}
        del handler.fail["delete a"]
        assert await agent.ask(DeleteWorkload("a")) == ""
        assert client.state.running == {}


ADD = messages.encode_request(AddWorkload("x", INFO))
KEEP = messages.encode_request(KeepWorkload("a"))


@pytest.mark.parametrize(
    ("data", "descriptors", "reason"),
    [
        (ADD, 0, "without a network namespace"),
        (ADD, 2, "more than 1 descriptors"),
        (KEEP, 1, "KeepWorkload came with a descriptor"),
        (b"\x0a\x03\x0a\x01u", 1, "workload_info is missing"),
        (b"garbage", 0, "malformed"),
        (b"x" * 1025, 0, "longer than 1024 bytes"),
    ],
)
async def test_breaking_the_protocol_is_refused_and_starts_over(
    tmp_path: Path,
    handler: Recorder,
    namespace: NetworkNamespace,
    data: bytes,
    descriptors: int,
    reason: str,
) -> None:
    async with connected(tmp_path, handler) as (client, agent):
        assert await agent.ask(AddWorkload("a", INFO), namespace.fd) == ""
        assert await agent.ask(SnapshotSent()) == ""
        assert reason in await agent.ask_raw(data, *[namespace.fd] * descriptors)
        assert await agent.is_hung_up()
        agent.sock.close()
        await agent.accept()
        assert client.state.running == {"a": INFO}
        assert await agent.ask(KeepWorkload("a")) == ""
        assert await agent.ask(SnapshotSent()) == ""
        assert handler.calls == ["add a"]


@pytest.mark.parametrize("request_after", [KeepWorkload("a"), SnapshotSent()])
async def test_snapshot_messages_after_the_snapshot_start_over(
    tmp_path: Path, handler: Recorder, request_after: Request
) -> None:
    async with connected(tmp_path, handler) as (_, agent):
        await agent.ask(SnapshotSent())
        assert "came after the snapshot" in await agent.ask(request_after)
        assert await agent.is_hung_up()


async def test_some_other_descriptor_is_no_namespace(tmp_path: Path, handler: Recorder) -> None:
    async with connected(tmp_path, handler) as (_, agent):
        with socket.socket() as wrong:
            answer = await agent.ask(AddWorkload("a", INFO), wrong.fileno())
        assert "some other descriptor" in answer
        assert await agent.is_hung_up()
        assert handler.calls == []


async def test_pauses_grow_while_there_is_no_agent(
    tmp_path: Path, handler: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    client = ZdsClient(handler, tmp_path / "none.sock")
    with trio.move_on_after(100):
        await client.run()
    assert client._pause == 15.0
    assert "No such file" in client.state.last_error
    assert not client.state.connected
