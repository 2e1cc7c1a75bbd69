"""Tunnels that may move into the kernel, where the kernel does not take them.

What they do inside is checked in a virtual machine: tests/vm.
"""

import errno
import random
import socket

import pytest
import trio

from tests.support.sockets import receive_slowly, send_in_pieces
from tests.support.streams import joined
from ztunnel.kernel.paths import KernelPaths
from ztunnel.kernel.pipes import Pipes
from ztunnel.linux import ktls
from ztunnel.relay import kernel_tunnel
from ztunnel.relay.kernel_tunnel import KernelTunnel
from ztunnel.relay.probe import probe_paths
from ztunnel.relay.tunnel import Keepalive
from ztunnel.tls.errors import Alert
from ztunnel.tls.records import OwnRecords


@pytest.mark.parametrize("refused", ["attach", "set_keys"])
async def test_an_end_that_the_kernel_refuses_goes_on_by_itself(
    refused: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At whatever boundary it was, no byte is lost; the path is off, and that is said once."""
    tried: list[socket.socket] = []

    def refuse(sock: socket.socket, *_: object, **__: object) -> None:
        tried.append(sock)
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(ktls, "attach", lambda sock: None)
    monkeypatch.setattr(ktls, refused, refuse)
    monkeypatch.setattr(kernel_tunnel, "MOVE_AFTER", 1 << 16)
    paths = KernelPaths(pipes=Pipes(2), ktls=True)
    rng = random.Random(1)
    up, down = rng.randbytes(3_000_000), rng.randbytes(3_000_000)
    got: dict[str, bytes] = {}

    async def receive(name: str, stream: trio.SocketStream) -> None:
        got[name] = await receive_slowly(stream, random.Random(2))

    async with joined(paths=paths, client_path="ktls", server_path="ktls") as room:
        client, server = await room.connect()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_in_pieces, client.app, up, random.Random(3))
                nursery.start_soon(send_in_pieces, server.app, down, random.Random(4))
                nursery.start_soon(receive, "up", server.app)
                nursery.start_soon(receive, "down", client.app)
        assert got == {"up": up, "down": down}
        for end in (client, server):
            assert (await end.result()).error is None
            end.app.socket.close()
        for tunnel in (room.client, room.server):
            assert isinstance(tunnel, KernelTunnel)
            assert tunnel.path == "tls"
            assert not tunnel.sending
            assert not tunnel.receiving
    assert 0 < len(tried) <= 2
    assert not paths.ktls
    reason = "refused while in use: No such file or directory"
    assert paths.reasons["ktls"] == reason
    assert caplog.messages == [f"ktls is off: {reason}"]


async def test_without_the_module_the_probe_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(sock: socket.socket) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr("ztunnel.relay.probe.attach", missing)
    with caplog.at_level("INFO", "ztunnel.kernel"):
        paths = await probe_paths(False, False, True)
    assert not paths.ktls
    assert caplog.messages == [
        "kernel path ktls is off: this kernel has no tls module, or it is not loaded"
    ]
    paths.close()


async def test_a_tunnel_does_not_close_on_what_the_kernel_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closing drops records that TCP had no room for: `tick` asks until there are none."""
    records = 1 << 20  # more than TCP has been given
    said: list[tuple[int, bytes]] = []
    monkeypatch.setattr(ktls, "records_used", lambda *_, **__: records)
    monkeypatch.setattr(ktls, "send_control", lambda _, kind, content: said.append((kind, content)))
    async with joined(paths=KernelPaths(ktls=True), client_path="ktls") as room:
        client, server = await room.connect()
        tunnel = room.client
        assert isinstance(tunnel, KernelTunnel)
        for end in (client, server):
            await end.app.send_eof()
        for end in (client, server):
            assert (await end.result()).error is None
            end.app.socket.close()
        assert isinstance(tunnel.session, OwnRecords)
        tunnel.session.hand_over_sealing()
        tunnel.sending = True
        tunnel.finish_streams()
        tunnel.tick(trio.current_time(), Keepalive())
        assert room.client_owner.lost is None
        records = 0
        tunnel.tick(trio.current_time(), Keepalive())
        assert await room.client_owner.end() == "drained"
    assert said == [(ktls.ALERT, bytes((1, Alert.CLOSE_NOTIFY)))]
