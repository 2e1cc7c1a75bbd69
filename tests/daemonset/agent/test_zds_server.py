"""The server against our own client over real sockets, and against ztunnels that misbehave."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from daemonset.agent.zds_connection import QUEUE, NoZtunnel, ZtunnelError
from daemonset.agent.zds_server import ZdsServer
from tests.support.descriptors import no_leak
from ztunnel.linux import netns
from ztunnel.linux.fds import receive_with_fds
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


class Handler:
    def __init__(self) -> None:
        self.pods: dict[str, netns.NamespaceIdentity] = {}
        self.refuse: set[str] = set()
        self.calls: list[str] = []

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None:
        self.calls.append(f"add {uid}")
        if uid in self.refuse:
            raise ValueError("as the test wants it")
        self.pods[uid] = identity_of(netns_fd)

    async def delete(self, uid: str) -> None:
        self.calls.append(f"delete {uid}")
        self.pods.pop(uid, None)


class BareZtunnel:
    """A ztunnel of which the test says every word."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.connect(str(path))

    async def receive(self) -> tuple[Request, list[int]]:
        data = b""
        with trio.fail_after(30):
            while not data:
                await trio.lowlevel.wait_readable(self.sock)
                data, fds = receive_with_fds(self.sock, 2000, 1)
                if not data:
                    raise EOFError
        return messages.decode_request(data), fds

    async def answer_next(self, error: str = "") -> Request:
        request, fds = await self.receive()
        for fd in fds:
            os.close(fd)
        self.sock.send(messages.encode_ack(error))
        return request

    async def start(self) -> list[Request]:
        """Hello and snapshot, all acknowledged."""
        self.sock.send(messages.encode_hello())
        seen: list[Request] = []
        while not seen or seen[-1] != SnapshotSent():
            seen.append(await self.answer_next())
        return seen


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        yield made


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    with no_leak():
        yield


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[ZdsServer, trio.Nursery]]:
    server = ZdsServer(tmp_path / "run" / "zds.sock")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        try:
            yield server, nursery
        finally:
            nursery.cancel_scope.cancel()
    server.close()
    assert not server.path.exists()


async def synchronised(server: ZdsServer) -> None:
    with trio.fail_after(30):
        while not server.synchronised:
            await server.wait_changed()


async def connections(server: ZdsServer, number: int) -> None:
    with trio.fail_after(30):
        while server.connected != number:
            await server.wait_changed()


async def test_our_own_client_gets_the_snapshot_and_what_follows(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        handler = Handler()
        client = ZdsClient(handler, server.path)
        server.put("a", INFO, namespace)
        with pytest.raises(NoZtunnel, match="no ztunnel is connected"):
            await server.add("a")
        nursery.start_soon(client.run)
        await client.wait_synchronised()
        await synchronised(server)
        assert handler.pods == {"a": namespace.identity}
        with netns.create() as second:
            server.put("b", INFO, second)
            await server.add("b")
            await server.add("a")
            assert handler.pods["b"] == second.identity
        handler.refuse.add("c")
        server.put("c", INFO, namespace)
        with pytest.raises(ZtunnelError, match="as the test wants it"):
            await server.add("c")
        await server.delete("a")
        await server.delete("c")
        await server.delete("never was")
        assert set(handler.pods) == {"b"}
        assert handler.calls.count("add a") == 1


async def test_the_agent_restarts_and_only_what_changed_meanwhile_changes(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    handler = Handler()
    client = ZdsClient(handler, tmp_path / "run" / "zds.sock")
    async with trio.open_nursery() as clients:
        async with running(tmp_path) as (server, _):
            for uid in ("a", "b"):
                server.put(uid, INFO, namespace)
            clients.start_soon(client.run)
            await client.wait_synchronised()
        handler.calls.clear()
        async with running(tmp_path) as (server, _):
            for uid in ("b", "c"):
                server.put(uid, INFO, namespace)
            await connections(server, 1)
            await synchronised(server)
            assert handler.calls == ["add c", "delete a"]
        clients.cancel_scope.cancel()


async def test_additions_go_to_the_latest_and_deletions_to_all(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        server.put("a", INFO, namespace)
        old = BareZtunnel(server.path)
        await old.start()
        new = BareZtunnel(server.path)
        assert await new.start() == [AddWorkload("a", INFO), SnapshotSent()]
        server.put("b", INFO, namespace)
        nursery.start_soon(server.add, "b")
        assert await new.answer_next() == AddWorkload("b", INFO)
        nursery.start_soon(server.delete, "a")
        assert await new.answer_next() == DeleteWorkload("a")
        assert await old.answer_next() == DeleteWorkload("a")
        old.sock.close()
        await connections(server, 1)
        nursery.start_soon(server.add, "b")
        assert await new.answer_next() == AddWorkload("b", INFO)
        new.sock.close()


async def test_when_the_new_one_goes_the_old_one_is_the_latest_again(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        old, new = BareZtunnel(server.path), BareZtunnel(server.path)
        await old.start()
        await new.start()
        new.sock.close()
        await connections(server, 1)
        server.put("b", INFO, namespace)
        nursery.start_soon(server.add, "b")
        assert await old.answer_next() == AddWorkload("b", INFO)
        old.sock.close()


async def test_a_pod_deleted_during_the_snapshot_is_not_named_any_more(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        for uid in ("a", "b", "c"):
            server.put(uid, INFO, namespace)
        ztunnel = BareZtunnel(server.path)
        ztunnel.sock.send(messages.encode_hello())
        request, fds = await ztunnel.receive()
        os.close(fds[0])
        assert request == AddWorkload("a", INFO)
        # Two are deleted meanwhile, and one comes: b has not been named, a has.
        for uid in ("a", "b"):
            nursery.start_soon(server.delete, uid)
            await trio.testing.wait_all_tasks_blocked()
        server.put("d", INFO, namespace)
        nursery.start_soon(server.add, "d")
        await trio.testing.wait_all_tasks_blocked()
        ztunnel.sock.send(messages.encode_ack())
        seen = [await ztunnel.answer_next() for _ in range(5)]
        assert seen == [
            AddWorkload("c", INFO),
            SnapshotSent(),
            DeleteWorkload("a"),
            DeleteWorkload("b"),
            AddWorkload("d", INFO),
        ]
        ztunnel.sock.close()


async def test_a_pod_without_a_namespace_is_kept(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        server.put("a", INFO, namespace)
        server.put("a", INFO, None)
        server.put("b", INFO, None)
        with pytest.raises(ZtunnelError, match="no namespace"):
            await server.add("b")
        ztunnel = BareZtunnel(server.path)
        assert await ztunnel.start() == [AddWorkload("a", INFO), KeepWorkload("b"), SnapshotSent()]
        await synchronised(server)
        server.put("b", INFO, namespace)
        nursery.start_soon(server.add, "b")
        assert await ztunnel.answer_next() == AddWorkload("b", INFO)
        ztunnel.sock.close()


async def test_a_pod_refused_in_the_snapshot_holds_nothing_up(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, _):
        for uid in ("a", "b"):
            server.put(uid, INFO, namespace)
        ztunnel = BareZtunnel(server.path)
        ztunnel.sock.send(messages.encode_hello())
        await ztunnel.answer_next("cannot bind")
        assert await ztunnel.answer_next() == AddWorkload("b", INFO)
        assert await ztunnel.answer_next() == SnapshotSent()
        await synchronised(server)
        assert server.refusals == {"a": "cannot bind"}
        ztunnel.sock.close()


async def test_hanging_up_releases_whoever_waits(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        ztunnel = BareZtunnel(server.path)
        await ztunnel.start()
        server.put("a", INFO, namespace)
        failures: list[str] = []

        async def add() -> None:
            with pytest.raises(NoZtunnel) as failure:
                await server.add("a")
            failures.append(str(failure.value))

        for _ in range(3):
            nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        # A deletion that meets a reconnection must not wait for ever either.
        nursery.start_soon(server.delete, "a")
        _, fds = await ztunnel.receive()
        os.close(fds[0])
        ztunnel.sock.close()
        await connections(server, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert failures == ["the connection to ztunnel ended: it has hung up"] * 3


async def test_one_that_hangs_up_while_nothing_happens_is_noticed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as (server, _):
        one, other = BareZtunnel(server.path), BareZtunnel(server.path)
        for ztunnel in (one, other):
            await ztunnel.start()
        await synchronised(server)
        one.sock.close()
        await connections(server, 1)
        assert "no ztunnel is connected any more" not in caplog.text
        other.sock.close()
        await connections(server, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert "no ztunnel is connected any more" in caplog.text
    caplog.clear()
    async with running(tmp_path) as (server, _):
        ztunnel = BareZtunnel(server.path)
        await ztunnel.start()
        await synchronised(server)
    ztunnel.sock.close()
    # The agent itself has ended, and the next one is on its way.
    assert "no ztunnel is connected any more" not in caplog.text


@pytest.mark.parametrize("silent_at", ["hello", "snapshot", "live"])
async def test_one_that_falls_silent_is_given_up(
    tmp_path: Path,
    namespace: NetworkNamespace,
    autojump_clock: trio.testing.MockClock,
    silent_at: str,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running(tmp_path) as (server, _):
        server.put("a", INFO, namespace)
        ztunnel = BareZtunnel(server.path)
        start = trio.current_time()
        if silent_at == "live":
            await ztunnel.start()
            await synchronised(server)
            start = trio.current_time()
            with pytest.raises(NoZtunnel, match="did not answer within 5 s"):
                await server.add("a")
        else:
            if silent_at == "snapshot":
                ztunnel.sock.send(messages.encode_hello())
            await connections(server, 1)
        await connections(server, 0)
        assert 5 <= trio.current_time() - start < 7
        ztunnel.sock.close()


@pytest.mark.parametrize(
    "words",
    [
        [b"\x08\x02"],
        [b"garbage"],
        [b"x" * 1025],
        [messages.encode_hello(), b"\xff"],
        [messages.encode_hello(), messages.encode_ack(), messages.encode_ack()],
    ],
)
async def test_one_that_breaks_the_protocol_is_hung_up_on(
    tmp_path: Path, words: list[bytes]
) -> None:
    async with running(tmp_path) as (server, _):
        ztunnel = BareZtunnel(server.path)
        with pytest.raises(EOFError):
            for word in words:
                ztunnel.sock.send(word)
                if word == messages.encode_hello():
                    await ztunnel.receive()
            await ztunnel.receive()
        await connections(server, 0)
        ztunnel.sock.close()
        # The next one is welcome.
        good = BareZtunnel(server.path)
        await good.start()
        good.sock.close()


async def test_a_flood_of_changes_is_refused_not_piled_up(
    tmp_path: Path, namespace: NetworkNamespace
) -> None:
    async with running(tmp_path) as (server, nursery):
        ztunnel = BareZtunnel(server.path)
        await ztunnel.start()
        await synchronised(server)
        server.put("a", INFO, namespace)
        refused: list[str] = []

        async def add() -> None:
            try:
                await server.add("a")
            except NoZtunnel as error:
                refused.append(str(error))

        for _ in range(QUEUE + 10):
            nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        assert set(refused) == {"ztunnel does not keep up: 100 changes are waiting"}
        assert 1 <= len(refused) <= 10
        ztunnel.sock.close()


async def test_a_stale_socket_is_replaced_and_a_newer_one_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "zds.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(path))
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as old_nursery:
            await old_nursery.start(ZdsServer(path).run)
            assert path.stat().st_mode & 0o777 == 0o600
            await nursery.start(ZdsServer(path).run)
            old_nursery.cancel_scope.cancel()
        ztunnel = BareZtunnel(path)
        await ztunnel.start()
        ztunnel.sock.close()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "zds.sock"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="in the way"):
        await ZdsServer(path).run()
    assert path.read_text() == "mine"
