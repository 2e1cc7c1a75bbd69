"""Whatever an agent sends: an answer that names the problem, and what is served goes on."""

import random
import socket
from pathlib import Path

import pytest
import trio

from tests.support.descriptors import no_leak
from ztunnel.linux import netns
from ztunnel.linux.fds import send_with_fds
from ztunnel.zds import client as zds_client
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import (
    AddWorkload,
    DeleteWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    WorkloadInfo,
    decode_ack,
    decode_hello,
    encode_request,
)

pytestmark = pytest.mark.root
ROUNDS = 150


class Accepting:
    """A handler that takes everything."""

    def __init__(self) -> None:
        self.served: set[str] = set()

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None:
        self.served.add(uid)

    async def delete(self, uid: str) -> None:
        self.served.discard(uid)


def packet(rng: random.Random) -> bytes:
    """Noise, or a good request, or one that was damaged on the way."""
    info = WorkloadInfo("pod", "default", "account")
    uid = rng.choice("abc")
    requests: list[Request] = [
        AddWorkload(uid, info), KeepWorkload(uid), DeleteWorkload(uid), SnapshotSent(),
    ]  # fmt: skip
    good = encode_request(rng.choice(requests))
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.choice((1, 5, 60, 1023, 1024, 1025, 4000)))
    if kind < 0.6:
        damaged = bytearray(good or b"x")
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    return good


async def test_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zds_client, "LONGEST_PAUSE", 0.02)
    path = tmp_path / "zds.sock"
    rng = random.Random(7)
    reasons: list[str] = []
    refusals = 0
    with (
        no_leak(),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        netns.create() as namespace,
    ):
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        client = ZdsClient(Accepting(), path, reasons.append)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                sent = 0
                while sent < ROUNDS:
                    await trio.lowlevel.wait_readable(listener)
                    agent, _ = listener.accept()
                    with agent:
                        agent.setblocking(False)
                        await trio.lowlevel.wait_readable(agent)
                        decode_hello(agent.recv(4096))
                        answered = True
                        while answered and sent < ROUNDS:
                            sent += 1
                            fds = [namespace.fd] * rng.choice((0, 0, 1, 1, 2))
                            try:
                                send_with_fds(agent, packet(rng), fds)
                            except BrokenPipeError:
                                break  # it has hung up, as it must after some answers
                            await trio.lowlevel.wait_readable(agent)
                            reply = agent.recv(4096)
                            answered = reply != b""
                            refusals += answered and decode_ack(reply) != ""
                # After all that, a well-behaved agent finds it as it should be.
                await trio.lowlevel.wait_readable(listener)
                agent, _ = listener.accept()
                with agent:
                    agent.setblocking(False)
                    await trio.lowlevel.wait_readable(agent)
                    decode_hello(agent.recv(4096))
                    info = WorkloadInfo("pod", "default", "account")
                    for request, fds in (
                        (AddWorkload("last", info), [namespace.fd]),
                        (SnapshotSent(), []),
                    ):
                        send_with_fds(agent, encode_request(request), fds)
                        await trio.lowlevel.wait_readable(agent)
                        assert decode_ack(agent.recv(4096)) == ""
                    assert client.state.ready
                    assert set(client.state.running) == {"last"}
                nursery.cancel_scope.cancel()
    assert refusals > 20
    assert "protocol" in reasons
