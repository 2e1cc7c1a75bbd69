"""The agent with a ztunnel of another version, and the other way round: recorded connections.

Agent and ztunnel are replaced one after the other on every node, so for a while versions differ.
What was once said must be understood for ever, and what is said to an older one must be what it
knows.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from daemonset.agent import mark
from daemonset.agent.zds_connection import ZtunnelError
from daemonset.agent.zds_server import ZdsServer
from ztunnel.config.values import packet_mark
from ztunnel.linux import netns
from ztunnel.linux.fds import receive_with_fds, send_with_fds
from ztunnel.linux.netns import NamespaceIdentity, NetworkNamespace, identity_of
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import MAX_MESSAGE, WorkloadInfo, decode_ack

pytestmark = pytest.mark.root
RECORDINGS = Path(__file__).with_name("recordings")
OURS = sorted(RECORDINGS.glob("zds-[0-9]*.txt"))
ISTIOS = RECORDINGS / "zds-istio.txt"
UIDS = [f"5c1f0d4e-000{number}" for number in range(5)]
REFUSAL = "cannot listen on port 15008"
PATIENCE = 60.0


@dataclass(frozen=True)
class Packet:
    """``fd``: it carries the descriptor of a network namespace."""

    sender: str
    data: bytes
    fd: bool


def read(path: Path) -> list[Packet]:
    packets = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            sender, data, *fd = line.split()
            packets.append(Packet(sender, bytes.fromhex(data), fd == ["fd"]))
    return packets


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        yield made


def test_this_version_has_a_recording() -> None:
    project = tomllib.loads((RECORDINGS.parents[3] / "pyproject.toml").read_text())["project"]
    assert RECORDINGS / f"zds-{project['version']}.txt" in OURS


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
async def test_the_agent_says_what_an_older_ztunnel_knows(
    tmp_path: Path, namespace: NetworkNamespace, path: Path
) -> None:
    server = ZdsServer(tmp_path / "zds.sock")
    server.put(UIDS[1], WorkloadInfo("web-1", "shop", "web"), namespace)
    server.put(UIDS[2], WorkloadInfo("web-2", "shop", "web"), None)
    packets = read(path)
    heard: list[Packet] = []
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)

    async def old_ztunnel() -> None:
        ours.connect(str(tmp_path / "zds.sock"))
        for packet in packets:
            if packet.sender == "ztunnel":
                ours.send(packet.data)
                continue
            await trio.lowlevel.wait_readable(ours)
            data, fds = receive_with_fds(ours, 2 * MAX_MESSAGE, 1)
            assert all(identity_of(fd) == namespace.identity for fd in fds)
            heard.append(Packet("agent", data, bool(fds)))
            for fd in fds:
                os.close(fd)

    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as connection:
                connection.start_soon(old_ztunnel)
                while not server.synchronised:
                    await server.wait_changed()
                server.put(UIDS[3], WorkloadInfo("orders-1", "shop", "orders"), namespace)
                await server.add(UIDS[3])
                server.put(UIDS[4], WorkloadInfo("bad", "shop", "default"), namespace)
                with pytest.raises(ZtunnelError, match=REFUSAL):
                    await server.add(UIDS[4])
                await server.delete(UIDS[1])
        nursery.cancel_scope.cancel()
    ours.close()
    server.close()
    assert heard == [packet for packet in packets if packet.sender == "agent"]


class Handler:
    """Serves pods as ztunnel would, and notes whom."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.namespaces: list[NamespaceIdentity] = []

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None:
        self.calls.append((uid, f"{info.namespace}/{info.name} as {info.service_account}"))
        self.namespaces.append(identity_of(netns_fd))
        if info.name == "bad":
            raise ValueError(REFUSAL)

    async def delete(self, uid: str) -> None:
        self.calls.append((uid, "gone"))


@pytest.mark.parametrize("path", [*OURS, ISTIOS], ids=lambda path: path.stem)
async def test_ztunnel_understands_what_an_older_agent_says(
    tmp_path: Path, namespace: NetworkNamespace, path: Path
) -> None:
    packets = read(path)
    handler = Handler()
    said: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(str(tmp_path / "zds.sock"))
        listener.listen()
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ZdsClient(handler, tmp_path / "zds.sock").run)
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.wait_readable(listener)
                agent = listener.accept()[0]
                with agent:
                    for packet in packets:
                        if packet.sender == "agent":
                            send_with_fds(agent, packet.data, [namespace.fd] if packet.fd else [])
                            continue
                        await trio.lowlevel.wait_readable(agent)
                        said.append(agent.recv(2 * MAX_MESSAGE))
            nursery.cancel_scope.cancel()
    recorded = [packet.data for packet in packets if packet.sender == "ztunnel"]
    assert said[0] == recorded[0]  # hello
    # The words of a refusal are for people; that it is one is what both agree on.
    refused = [bool(decode_ack(data)) for data in recorded[1:]]
    assert [bool(decode_ack(data)) for data in said[1:]] == refused
    assert refused.count(True) == 1
    assert handler.calls[:4] == [
        (UIDS[1], "shop/web-1 as web"),
        (UIDS[3], "shop/orders-1 as orders"),
        (UIDS[4], "shop/bad as default"),
        (UIDS[1], "gone"),
    ]
    assert set(handler.namespaces) == {namespace.identity}


def test_ztunnel_reads_the_mark_that_an_older_agent_has_left(tmp_path: Path) -> None:
    """The other thing that both must agree on lies in a file: boot, and mark."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    file = tmp_path / mark.FILE_NAME
    file.touch(mode=0o600)
    file.write_text(f"{boot} 0x1234abcd\n")
    assert packet_mark(str(file)) == 0x1234ABCD
    assert mark.packet_mark(tmp_path) == 0x1234ABCD  # and the agent goes on with it
